"""Negative binomial components: overdispersed counts in d independent columns.

The mean of a component is the weighted mean of its counts, whatever the dispersion is. The M-step
of τ = log θ, θ = 1/dispersion, is the Newton step of `families.regression.negative_binomial` at
that mean, shortened by the same bound so that it cannot lower the expected log-likelihood.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxem.families import cells
from jaxem.families.regression.negative_binomial import (
    LEAST_CURVATURE,
    NegativeBinomialResponse,
    of_counts,
    of_mean,
    safe_length,
)
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.model import Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import POSITIVE, Positive

RESPONSE = NegativeBinomialResponse()

FIRST_DISPERSIONS = (1e-3, 1e3)
"""The limits of the dispersion of a start, from moments."""


@pytree(eq=False)
class NegativeBinomialParams:
    """mean (k, d), a count per unit, and dispersion (k, d); the variance is mean + dispersion ·
    mean²."""

    mean: Any
    dispersion: Any


class NegativeBinomialStatistics(NamedTuple):
    """Σw (k,) or by column (k, d); Σw·(x − mean), and Σw·Σ_{j<x} j/(θ + j) and
    Σw·Σ_{j<x} jθ/(θ + j)² (k, d), at the params."""

    count: Any
    first: Any
    shortfall: Any
    curvature: Any


@pytree(static=("missing",))
class NegativeBinomial(Bank):
    """log p(x | k) = Σ_d log Γ(x + θ)/(Γ(θ) x!) + x log(m/(m + θ)) − θ log(1 + m/θ),
    m = mean_kd, θ = 1/dispersion_kd

    Args:
      missing: whether NaN marks a cell that was not observed, which then drops out.

    x: (n, d) counts 0, 1, 2, …  The dispersion lies between 1e-8 and 1e8. Where the variance of a
    component is at most its mean, the likelihood rises to the Poisson limit, dispersion 0: the fit
    ends CONVERGED at a dispersion that is too small to matter. Raises TypeError where missing is
    no bool. Source: Lawless 1987.
    """

    missing: bool = False

    _separate = True

    def __post_init__(self):
        cells.require_flag(self.missing)

    @property
    def domain(self):
        return cells.domain_of(domains.COUNTS, self.missing)

    def init(self, key, x, weights):
        x, mask = self._counts(x)
        mean, variance = cells.moments(weights, mask, x)
        safe_mean = jnp.where(mean > 0, mean, 1)
        dispersion = jnp.clip((variance - mean) / safe_mean / safe_mean, *FIRST_DISPERSIONS)
        start = NegativeBinomialParams(mean, dispersion)
        return self.maximize(start, self._sums(start, x, mask, weights))

    def posterior(self, params, x):
        x, mask = self._counts(x)
        y, mean = x[:, None], params.mean
        is_possible = (mean > 0) | (y == 0)
        eta = jnp.log(jnp.where(mean > 0, mean, 1))[:, None]
        eta = jnp.broadcast_to(eta, (mean.shape[0], *x.shape))
        each = RESPONSE.log_density(eta, params.dispersion[:, None], x, None).swapaxes(0, 1)
        each = jnp.where(mean > 0, each, 0)
        density = jnp.where(is_possible, cells.masked(mask, each), -jnp.inf).sum(-1)
        return None, self.domain.outside(x, density)

    def statistics(self, params, x, q, weights):
        return self._sums(params, *self._counts(x), weights)

    def _sums(self, params, x, mask, weights):
        y = x[:, None]
        every = y - params.mean, *of_counts(1 / params.dispersion[None], y, 0)
        sums = (cells.sums(weights, mask, each) for each in every)
        return NegativeBinomialStatistics(cells.counts(weights, mask), *sums)

    def _size_of_terms(self, params, stats):
        u = params.mean * params.dispersion
        size = jnp.log1p(u) / params.dispersion + params.mean * jnp.log1p(1 / jnp.maximum(u, 1e-30))
        size = jnp.where(u * jnp.sqrt(1 / params.dispersion) < 1, 1, size)
        return (cells.by_column(stats.count) * size).sum()

    def maximize(self, params, stats):
        return self._moved(params, stats, False)

    def restricted(self, held):
        """A closed form for fixed means and for fixed dispersions."""
        if held.mean.tied or held.dispersion.tied:
            return by_rows(self, held)
        return lambda params, stats: self._moved(params, stats, held.mean.fixed)

    def _moved(self, params, stats, is_mean_fixed):
        count = safe(cells.by_column(stats.count))
        found = jnp.maximum(params.mean + stats.first / count, 0)
        mean = jnp.where(is_mean_fixed, params.mean, found)
        shortfall, curvature = stats.shortfall / count, stats.curvature / count
        part, below = of_mean(mean, params.dispersion)
        first = found * part - shortfall - below
        second = curvature + (mean - found) * part / (1 + mean * params.dispersion) - below
        sizes = curvature + (mean + found) * part / (1 + mean * params.dispersion) + below
        least = LEAST_CURVATURE * sizes + float(jnp.finfo(sizes.dtype).tiny) ** 0.5
        step = first / jnp.where(-second > least, -second, sizes + least)
        most, rate = sizes * jnp.square(step), 2 * jnp.abs(step)
        length = safe_length(first * step, -second * jnp.square(step), most, rate)
        dispersion = jnp.clip(RESPONSE.moved(params.dispersion, length * step), *RESPONSE.limits)
        return keep_empty(stats.count, NegativeBinomialParams(mean, dispersion), params)

    def spaces(self, params):
        return NegativeBinomialParams(POSITIVE, Positive(*RESPONSE.limits, zero=False))

    def whitened(self, params, step):
        mean, dispersion = params.mean, params.dispersion
        of_mean = step.mean / jnp.sqrt(mean * (1 + dispersion * mean))
        return NegativeBinomialParams(of_mean, step.dispersion / (2**0.5 * dispersion))

    def sample(self, key, params, z):
        mean = params.mean[z]
        eta = jnp.log(jnp.where(mean > 0, mean, 1))
        draws = RESPONSE.draw(key, eta, params.dispersion[z], None)
        return jnp.where(mean > 0, draws, 0)

    def embed(self, x):
        return cells.filled_by_mean(jnp.sqrt(x)) if self.missing else jnp.sqrt(x)

    def _counts(self, x):
        """x with 0 in missing cells, and the mask."""
        mask = cells.observed(x, self.missing)
        return cells.masked(mask, x), mask
