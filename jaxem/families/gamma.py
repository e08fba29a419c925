"""Gamma components: positive numbers in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import lgamma

from jaxem.families.exponential import column_scale
from jaxem.families.exponential_family import ExponentialFamily
from jaxem.model import View
from jaxem.priors import GammaConjugatePrior
from jaxem.pytree import pytree
from jaxem.special import inverse_minus_trigamma, log_minus_digamma

NEWTON_STEPS = 8
"""Minka's iteration for the shape gains about two digits more a step than the one before."""


@pytree(eq=False)
class GammaParams:
    """shape (k, d) and rate (k, d); the mean is shape/rate."""

    shape: Any
    rate: Any


@pytree
class Gamma(ExponentialFamily):
    """log p(x | k) = Σ_d a log b − log Γ(a) + (a − 1) log x − b x, a = shape_kd, b = rate_kd

    x: (n, d), positive.  prior: a `GammaConjugatePrior`, or None.  The M-step solves
    log a − ψ(a) = log mean(x) − mean(log x) by Minka's generalised Newton iteration (2002).
    """

    prior: GammaConjugatePrior | None = None

    def features(self, x):
        return jnp.concatenate([x, jnp.log(jnp.where(x <= 0, 1, x))], axis=1)

    def base_measure(self, x):
        return jnp.where(x <= 0, -jnp.inf, jnp.zeros_like(x)).sum(-1)

    def natural(self, params):
        return jnp.concatenate([-params.rate, params.shape - 1], axis=1)

    def log_partition(self, params):
        return (lgamma(params.shape) - params.shape * jnp.log(params.rate)).sum(-1)

    def estimate(self, count, total):
        first, logs = jnp.split(total, 2, axis=1)
        weight = count[:, None]
        if self.prior is not None:
            first = first + self.prior.count * self.prior.mean
            logs = logs + self.prior.count * self.prior.mean_log
            weight = weight + self.prior.count
        mean, mean_log = jnp.where(first > 0, first / weight, 1), logs / weight
        spread = jnp.maximum(jnp.log(mean) - mean_log, smallest_spread(mean.dtype))
        shape = solve_shape(spread)
        return GammaParams(shape, shape / mean)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.shape, params.rate)

    def degenerate(self, params):
        spread = log_minus_digamma(params.shape)
        return jnp.any(spread <= 1.01 * smallest_spread(spread.dtype), axis=-1)

    def sample(self, key, params, z):
        shape = params.shape[z]
        return jax.random.gamma(key, shape, dtype=shape.dtype) / params.rate[z]

    def n_parameters(self, params):
        return params.shape.size + params.rate.size

    def embed(self, x):
        return jnp.log(x)

    def valid(self, x):
        return (x > 0) & (x < float("inf"))

    def support(self):
        return "finite positive numbers"

    def view(self, x, weights):
        scale = column_scale(x, weights)
        prior = self.prior
        if prior is not None:
            prior = GammaConjugatePrior(
                prior.count, prior.mean / scale, prior.mean_log - jnp.log(scale)
            )

        def inward(params):
            return GammaParams(params.shape, params.rate * scale)

        def outward(params):
            return GammaParams(params.shape, params.rate / scale)

        return View(Gamma(prior), x / scale, inward, outward, jnp.log(scale).sum())


def smallest_spread(dtype) -> float:
    """log mean − mean log below which a component is taken for collapsed onto one value."""
    return 32 * float(jnp.finfo(dtype).eps)


def solve_shape(spread):
    """The a with log a − ψ(a) = spread, for spread > 0."""
    start = (3 - spread + jnp.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)

    def newton(_, a):
        # log a − ψ(a) ≈ 1/(2a): the iteration is Newton's in 1/a.
        return 1 / (1 / a + (log_minus_digamma(a) - spread) / (a**2 * inverse_minus_trigamma(a)))

    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)
