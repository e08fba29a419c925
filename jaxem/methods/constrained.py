"""`Constrained`: posterior regularisation, an E-step with bounds on expected features."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.methods.e_steps import require_finite
from jaxem.methods.em import Exact, Expectation
from jaxem.numerics.linalg import solve_positive
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import float_dtype, is_traced, pytree
from jaxem.protocol.posterior import with_responsibilities

MOST_NEWTON_STEPS = 60
"""The most Newton steps in the dual problem. Two or three are enough from the multipliers of the
EM step before."""


@pytree(static=("equal",))
class Constrained(Exact):
    """The q nearest to the posterior among those whose expected features obey bounds.

    q = argmin KL(q ‖ p(z | x, θ)) subject to Σ_i w_i E_q[φ(z_i)] / Σ_i w_i ≤ bound, or = bound. So
    q ∝ p(x, z | θ) exp(−λ·φ(z)), with λ from the dual problem: min over λ (≥ 0 for bounds from
    above) of Σ_i w_i log Z_i(λ) + Σw λ·bound. Its value is F at that q, the objective, which no EM
    step lowers. Result.log_likelihood is log p(x | θ). Source: Ganchev, Graça, Gillenwater & Taskar
    2010.

    Args:
      features: φ, (k, m), m features of every component; or (n, k, m), of every unit and component.
      bound: (m,), per unit of weight. Some q must satisfy it; else the dual has no minimum.
      equal: whether expectations must equal the bound; else they may be below it.

    Raises ValueError or TypeError for features or bounds of other shapes, or that are no numbers.
    """

    features: Any
    bound: Any
    equal: bool = False

    measures_evidence = False

    def __post_init__(self):
        for name, axes in (("features", (2, 3)), ("bound", (1,))):
            value = getattr(self, name)
            is_number = is_traced(value) or np.asarray(value).dtype.kind in "fiub"
            if not is_number or np.ndim(value) not in axes:
                raise TypeError(
                    f"{name} must be an array of numbers, features (k, m) or (n, k, m) and bound "
                    f"(m,), got {value!r:.60}"
                )
        if np.shape(self.features)[-1] != np.shape(self.bound)[0]:
            raise ValueError(
                f"features have {np.shape(self.features)[-1]} columns and bound has "
                f"{np.shape(self.bound)[0]} entries: give one bound a feature"
            )

    @classmethod
    def sizes(cls, shares):
        """The constraint that components hold exactly these shares (k,) of the total weight.

        Raises TypeError where shares are no array (k,)."""
        if not is_traced(shares) and np.asarray(shares).dtype.kind not in "fiu":
            raise TypeError(f"shares must be k numbers that sum to 1, got {shares!r:.60}")
        shares = jnp.asarray(shares, jnp.result_type(float))
        return cls(jnp.eye(shares.shape[0]), shares, equal=True)

    def start(self, model, params, x, weights):
        return jnp.zeros(jnp.shape(self.bound), float_dtype(params))

    def expect(self, model, params, x, weights, memory):
        require_finite(model, self)
        joint = model.log_joint(params, x)
        r, value, multipliers = self.project(joint, weights, memory)
        q, _ = model.posterior(params, x)
        return Expectation(with_responsibilities(q, r), value, multipliers)

    def project(self, joint, weights, initial=None):
        """(q (n, k), F per unit (n,), multipliers (m,)) for joint, log p(x, z | θ) (n, k).
        initial: multipliers (m,) to begin with, None for 0."""
        features, bound = (jnp.asarray(a, joint.dtype) for a in (self.features, self.bound))
        features = jnp.broadcast_to(features, (*joint.shape, bound.shape[0]))
        normalised_weights = weights / weights.sum()
        dual = Dual(joint, features, bound, normalised_weights, self.equal)
        initial = jnp.zeros_like(bound) if initial is None else initial
        multipliers = dual.minimiser(initial)
        q, log_z = dual.tilted(multipliers)
        return q, log_z + multipliers @ bound, multipliers


class Dual:
    """The dual problem: min over λ of Σ_i w_i log Σ_k exp(joint_ik − λ·φ_ik) + λ·bound.

    It is convex and smooth. normalised_weights (n,): w, with the sum 1.
    """

    def __init__(self, joint, features, bound, normalised_weights, equal):
        self.joint, self.features, self.bound = joint, features, bound
        self.normalised_weights, self.equal = normalised_weights, equal

    def tilted(self, multipliers):
        """q (n, k) ∝ exp(joint − λ·φ) and its log normaliser log Z (n,)."""
        tilt = jnp.einsum("nkm,m->nk", self.features, multipliers, precision=Precision.HIGHEST)
        return normalize(self.joint - tilt)

    def value(self, multipliers):
        log_z = jnp.where(self.normalised_weights > 0, self.tilted(multipliers)[1], 0)
        return jnp.sum(self.normalised_weights * log_z) + multipliers @ self.bound

    def slopes(self, multipliers):
        """The gradient (m,), bound − E[φ], and the Hessian (m, m), the covariance of φ under q."""
        q, _ = self.tilted(multipliers)
        mean = jnp.einsum("nk,nkm->nm", q, self.features, precision=Precision.HIGHEST)
        deviation = self.features - mean[:, None]
        weight = q * self.normalised_weights[:, None]
        product = "nk,nkm,nkl->ml"
        covariance = jnp.einsum(product, weight, deviation, deviation, precision=Precision.HIGHEST)
        return self.bound - self.normalised_weights @ mean, covariance

    def minimiser(self, initial):
        """The minimiser λ by Newton's method, projected on λ ≥ 0 for bounds from above."""
        eps = jnp.finfo(initial.dtype).eps
        tolerance = 8 * eps * (1 + jnp.abs(self.features).max())

        def project(multipliers):
            return multipliers if self.equal else jnp.maximum(multipliers, 0)

        def newton_step(carry):
            step, multipliers, _ = carry
            gradient, hessian = self.slopes(multipliers)
            is_active = (
                jnp.zeros(multipliers.shape, bool)
                if self.equal
                else (multipliers <= 0) & (gradient > 0)
            )
            is_free = ~is_active
            ridge = 8 * eps * (jnp.trace(hessian) + eps)
            hessian = jnp.where(is_free[:, None] & is_free, hessian, 0) + jnp.diag(
                jnp.where(is_active, 1, ridge)
            )
            newton = solve_positive(hessian, jnp.where(is_free, gradient, 0))
            updated = self.line_search(multipliers, project, newton)
            largest_gradient = jnp.max(jnp.where(is_free, jnp.abs(gradient), 0))
            return (
                step + 1,
                updated,
                (largest_gradient > tolerance) & jnp.any(updated != multipliers),
            )

        def unconverged(carry):
            return (carry[0] < MOST_NEWTON_STEPS) & carry[2]

        return jax.lax.while_loop(
            unconverged, newton_step, (0, project(initial), jnp.asarray(True))
        )[1]

    def line_search(self, multipliers, project, newton):
        """multipliers − s · newton, projected, for the first step length s = 1, ½, ¼, … that does
        not raise the dual by more than its rounding error; the multipliers where no s > 1e-12 is
        found."""
        value = self.value(multipliers)
        rounding = 4 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))

        def raises(length):
            raised = self.value(project(multipliers - length * newton)) > value + rounding
            return (length > 1e-12) & raised

        length = jax.lax.while_loop(raises, lambda length: length / 2, jnp.ones((), value.dtype))
        return jnp.where(length > 1e-12, project(multipliers - length * newton), multipliers)
