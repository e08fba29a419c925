"""Multinomial logits: probabilities of classes that depend on covariates.

The M-step is one Newton step on Σ_t Σ_j r_tj log p_j(z_t), shortened as in `numerics.newton_step`
so that it cannot lower that sum: along a step δ the third derivative is at most the range R of
z'δ_j over classes, times the second (p_j are the probabilities of a variable with that range). All
that is needed are sums over units.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.numerics.newton_step import newton_step, step_length
from jaxem.numerics.tree import is_traced, pytree

LEAST_CURVATURE = 1e-7
"""The ridge added to every diagonal entry of the curvature in a Newton step, as a part of that
entry; at least the square of it times the largest entry, since a class that never occurs with a
covariate has no curvature there."""


class GateStatistics(NamedTuple):
    """Of every origin o: count (o,): Σ r; gradient (o, k, m): Σ_t (r_tj − r_t p_tj) z_t; curvature
    (o, k, m, k, m): Σ_t r_t (p_tj [j = l] − p_tj p_tl) z_t z_t'. Additive over units."""

    count: Any
    gradient: Any
    curvature: Any


@pytree(eq=False)
class GateParams:
    """coefficients (k, 1 + g), or (k, g) without an intercept: log p(class j | covariates), up to
    the log of their sum; the intercept comes first, and the first row is 0."""

    coefficients: Any


@pytree(static=("intercept",))
class SoftmaxGate:
    """A multinomial logit: p(class j | z) ∝ exp(coefficients_j · z) for covariates z.

    The coefficients of the first class are 0. `fit` scales the covariates, so that their units do
    not matter.

    Args:
      intercept: whether z begins with 1.
      prior: the precision of a normal prior with mean 0 of every slope, in the units of the
        covariates, a number or one for each covariate (g,); None: maximum likelihood.

    Raises ValueError where prior is not above 0. Source: Jacobs, Jordan, Nowlan & Hinton 1991.
    """

    intercept: bool = True
    prior: Any = None

    def __post_init__(self):
        if self.prior is None or is_traced(self.prior):
            return
        prior = np.asarray(self.prior)
        is_sound = prior.dtype.kind in "fiu" and prior.ndim <= 1 and np.isfinite(prior).all()
        if not (is_sound and (prior > 0).all()):
            raise ValueError(
                "prior must be a precision above 0, one for each covariate, or None, got "
                f"{self.prior!r}"
            )

    def covariates(self, inputs):
        """z (..., m) from inputs (..., g): with the intercept m = 1 + g, else m = g."""
        if not self.intercept:
            return inputs
        return jnp.concatenate([jnp.ones((*inputs.shape[:-1], 1), inputs.dtype), inputs], -1)

    def constant(self, probabilities, inputs: int):
        """Coefficients (..., k, m) with which the probabilities (..., k) do not depend on the
        inputs."""
        level = jnp.log(probabilities) - jnp.log(probabilities[..., :1])
        zeros = jnp.zeros((*level.shape, inputs), level.dtype)
        return jnp.concatenate([level[..., None], zeros], -1) if self.intercept else zeros

    def log_probabilities(self, coefficients, z):
        """log p (k, n) from coefficients (k, m) and z (m, n)."""
        logits = jnp.matmul(coefficients, z, precision=Precision.HIGHEST)
        return jax.nn.log_softmax(logits, axis=0)

    def probabilities(self, coefficients, z):
        """p (o, k, n) from coefficients (o, k, m) and z (m, n), for o origins: the states from
        which a chain moves, and one in a mixture."""
        logits = jnp.einsum("okm,mn->okn", coefficients, z, precision=Precision.HIGHEST)
        return jax.nn.softmax(logits, axis=1)

    def summed(self, coefficients):
        """At coefficients (o, k, m), a function of targets r (o, k, n) and z (m, n): the
        `GateStatistics` of every unit, with a last axis n."""

        def statistics(r, z):
            p, count = self.probabilities(coefficients, z), r.sum(1)
            gradient = (r - count[:, None] * p)[:, :, None] * z
            k = p.shape[1]
            spread = (
                jnp.eye(k, dtype=p.dtype)[:, :, None] * p[:, :, None] - p[:, :, None] * p[:, None]
            )
            spread = count[:, None, None] * spread  # (o, k, k, n)
            outer = z[:, None] * z  # (m, m, n)
            curvature = spread[:, :, None, :, None] * outer[:, None]
            return GateStatistics(count, gradient, curvature)

        return statistics

    def totals(self, coefficients, r, z) -> GateStatistics:
        """The `GateStatistics` of one origin, summed over units, by two products of matrices. Those
        of the first class, whose coefficients are fixed, are 0.

        coefficients (k, m); r (k, n): weights times responsibilities; z (m, n). The largest array
        has (k − 1)·m·n numbers.
        """
        (k, m), n = coefficients.shape, z.shape[1]
        p = jnp.exp(self.log_probabilities(coefficients, z))
        count, free = r.sum(0), p[1:]
        gradient = matmul((r - count * p)[1:], z.T)
        others = matmul(1 - jnp.eye(k, dtype=p.dtype)[1:], p)  # 1 − p, to its own digits
        columns = (free[:, None] * z).reshape(-1, n)
        within = matmul(((free * others * count)[:, None] * z).reshape(-1, n), z.T)
        across = matmul(columns * count, columns.T).reshape(k - 1, m, k - 1, m)
        is_same = jnp.eye(k - 1, dtype=bool)[:, None, :, None]
        curvature = jnp.where(is_same, within.reshape(k - 1, m, 1, m), -across)
        more = (1, 0)
        return GateStatistics(
            count.sum()[None],
            jnp.pad(gradient, (more, (0, 0)))[None],
            jnp.pad(curvature, (more, (0, 0), more, (0, 0)))[None],
        )

    def maximize(self, coefficients, stats: GateStatistics, directions=None):
        """The coefficients (o, k, m) after a step from statistics `stats` that does not lower the
        expected log-likelihood. The covariates must lie between −1 and 1.

        directions: (f, (k − 1)·m), the steps of which this one is a combination; None: all.
        """
        k, m = coefficients.shape[1:]
        # The derivative by those of the first class must be 0, for gradients through a fit.
        coefficients = coefficients - coefficients[:, :1]
        gradient, curvature = stats.gradient, stats.curvature
        if self.prior is not None:
            ridge = self._precisions(m, coefficients.dtype)
            gradient = gradient - ridge * coefficients
            curvature = curvature + jnp.einsum(
                "jl,f,fg->jflg", jnp.eye(k), ridge, jnp.eye(m)
            ).astype(curvature.dtype)
        free = (k - 1) * m

        def step(gradient, curvature):
            g = gradient[1:].reshape(free)
            h = curvature[1:, :, 1:].reshape(free, free)
            if directions is not None:
                g, h = directions @ g, directions @ h @ directions.T
            part = max(LEAST_CURVATURE, 8 * float(jnp.finfo(h.dtype).eps))
            diagonal = jnp.abs(jnp.diagonal(h))
            least = part * jnp.maximum(diagonal, jnp.maximum(part * diagonal.max(), 1e-30))
            found = newton_step(g, h + jnp.diag(least))
            return found if directions is None else found @ directions

        if not free or (directions is not None and not len(directions)):
            return coefficients
        steps = jax.vmap(step)(gradient, curvature).reshape(-1, k - 1, m)
        steps = jnp.concatenate([jnp.zeros_like(steps[:, :1]), steps], 1)
        apart = jnp.abs(steps[:, :, None] - steps[:, None]).sum(-1).max((1, 2))
        return coefficients + step_length(apart)[:, None, None] * steps

    def log_prior(self, coefficients):
        """The log prior of the slopes of coefficients (o, k, m), with its constant."""
        if self.prior is None:
            return 0.0
        ridge = self._precisions(coefficients.shape[-1], coefficients.dtype)
        logs = jnp.where(ridge > 0, jnp.log(jnp.where(ridge > 0, ridge, 1) / (2 * jnp.pi)), 0)
        each = 0.5 * (logs - ridge * jnp.square(coefficients[:, 1:]))
        return jnp.sum(each)

    def rescaled(self, coefficients, scale):
        """The coefficients (..., m) of covariates that are divided by scale (g,)."""
        ones = jnp.ones(1, scale.dtype)
        scale = jnp.concatenate([ones, scale]) if self.intercept else scale
        return coefficients * scale

    def standardized(self, scale):
        """The gate of covariates that are divided by scale (g,)."""
        if self.prior is None:
            return self
        prior = jnp.asarray(self.prior, scale.dtype) / jnp.square(scale)
        return SoftmaxGate(self.intercept, prior)

    def require_width(self, covariates: int) -> None:
        """ValueError where the prior is not of so many covariates."""
        if self.prior is not None and jnp.shape(self.prior) not in ((), (covariates,)):
            raise ValueError(
                f"SoftmaxGate prior must be one number, or one for each of the {covariates} "
                f"covariates, got shape {jnp.shape(self.prior)}"
            )

    def _precisions(self, m, dtype):
        """Those of the normal priors of the coefficients (m,) of a class, 0 for the intercept."""
        slopes = m - self.intercept
        each = jnp.broadcast_to(jnp.asarray(self.prior, dtype), (slopes,))
        return jnp.pad(each, (int(self.intercept), 0))


def matmul(a, b):
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
