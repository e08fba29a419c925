"""Constraints on q: posterior regularisation, the nearest q whose expected features are bounded."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.methods.em import Exact, Expectation
from jaxem.numerics.linalg import solve_positive
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import float_dtype, pytree
from jaxem.protocol.posterior import with_shares

MOST = 60
"""Newton steps in the dual; from the multipliers of the step before, two or three are enough."""


@pytree(static=("equal",))
class Constrained(Exact):
    """The q nearest to the posterior whose features have bounded expectations.

    q = argmin KL(q ‖ p(z | x, θ)) subject to Σ_i w_i E_q[φ(z_i)] / Σ_i w_i ≤ bound, or = bound. So
    q ∝ p(x, z | θ) exp(−λ·φ(z)), with λ from the dual, min over λ (≥ 0) of Σ_i w_i log Z_i(λ) +
    Σw λ·bound, whose value is the objective: F at that q, which never falls. Result.log_likelihood
    is still log p(x | θ). Source: Ganchev, Graça, Gillenwater & Taskar 2010.

    Args:
      features: φ, (k, m): m features of every component; or (n, k, m), of every unit too.
      bound: (m,), per unit of weight. It must be attainable: else the objective grows without end.
      equal: whether expectations must equal the bound.
    """

    features: Any
    bound: Any
    equal: bool = False

    measures_evidence = False

    @classmethod
    def sizes(cls, shares):
        """Components that hold exactly these shares (k,) of the weight; even ones for balance."""
        shares = jnp.asarray(shares, jnp.result_type(float))
        return cls(jnp.eye(shares.shape[0]), shares, equal=True)

    def start(self, model, params, x, weights):
        return jnp.zeros(jnp.shape(self.bound), float_dtype(params))

    def expect(self, model, params, x, weights, memory):
        joint = model.log_joint(params, x)
        r, value, multipliers = self.project(joint, weights, memory)
        q, _ = model.posterior(params, x)
        return Expectation(with_shares(q, r), value, multipliers)

    def project(self, joint, weights, start=None):
        """(q (n, k), F per unit (n,), multipliers (m,)) for log p(x, z | θ) (n, k)."""
        features, bound = (jnp.asarray(a, joint.dtype) for a in (self.features, self.bound))
        features = jnp.broadcast_to(features, (*joint.shape, bound.shape[0]))
        share = weights / weights.sum()
        dual = Dual(joint, features, bound, share, self.equal)
        start = jnp.zeros_like(bound) if start is None else start
        multipliers = dual.minimised(start)
        q, log_z = dual.tilted(multipliers)
        return q, log_z + multipliers @ bound, multipliers


class Dual:
    """min over λ of Σ_i share_i log Σ_k exp(joint_ik − λ·φ_ik) + λ·bound: convex and smooth."""

    def __init__(self, joint, features, bound, share, equal):
        self.joint, self.features, self.bound = joint, features, bound
        self.share, self.equal = share, equal

    def tilted(self, multipliers):
        """q (n, k) and log Z (n,)."""
        tilt = jnp.einsum("nkm,m->nk", self.features, multipliers, precision=Precision.HIGHEST)
        return normalize(self.joint - tilt)

    def value(self, multipliers):
        log_z = jnp.where(self.share > 0, self.tilted(multipliers)[1], 0)
        return jnp.sum(self.share * log_z) + multipliers @ self.bound

    def slopes(self, multipliers):
        """Gradient (m,) and Hessian (m, m): bound − E[φ], and the covariance of φ."""
        q, _ = self.tilted(multipliers)
        mean = jnp.einsum("nk,nkm->nm", q, self.features, precision=Precision.HIGHEST)
        away = self.features - mean[:, None]
        weight = q * self.share[:, None]
        cov = jnp.einsum("nk,nkm,nkl->ml", weight, away, away, precision=Precision.HIGHEST)
        return self.bound - self.share @ mean, cov

    def minimised(self, start):
        """λ by Newton's method, projected on λ ≥ 0 where expectations are bounded from above."""
        eps = jnp.finfo(start.dtype).eps
        precise = 8 * eps * (1 + jnp.abs(self.features).max())

        def project(multipliers):
            return multipliers if self.equal else jnp.maximum(multipliers, 0)

        def body(carry):
            step, here, _ = carry
            gradient, cov = self.slopes(here)
            held = jnp.zeros(here.shape, bool) if self.equal else (here <= 0) & (gradient > 0)
            free = ~held
            ridge = 8 * eps * (jnp.trace(cov) + eps)
            cov = jnp.where(free[:, None] & free, cov, 0) + jnp.diag(jnp.where(held, 1, ridge))
            newton = solve_positive(cov, jnp.where(free, gradient, 0))
            there = self.searched(here, project, newton)
            left = jnp.max(jnp.where(free, jnp.abs(gradient), 0))
            return step + 1, there, (left > precise) & jnp.any(there != here)

        def going(carry):
            return (carry[0] < MOST) & carry[2]

        return jax.lax.while_loop(going, body, (0, project(start), jnp.asarray(True)))[1]

    def searched(self, here, project, newton):
        """The first of here − newton · 1, ½, ... that does not raise the dual beyond rounding."""
        value = self.value(here)
        slack = 4 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))

        def worse(size):
            raised = self.value(project(here - size * newton)) > value + slack
            return (size > 1e-12) & raised

        size = jax.lax.while_loop(worse, lambda size: size / 2, jnp.ones((), value.dtype))
        return jnp.where(size > 1e-12, project(here - size * newton), here)
