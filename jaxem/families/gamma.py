"""Gamma components: positive numbers in d independent columns."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient

from jaxem.families import cells
from jaxem.families.units import column_scale
from jaxem.numerics.special import inverse_minus_trigamma, log_minus_digamma, stirling_term
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.model import Bank
from jaxem.protocol.priors import GammaConjugatePrior, require_kind
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO
from jaxem.protocol.units import Standardized

NEWTON_STEPS = 8
"""Steps of Minka's iteration for the shape. Each gains about two digits more than the last."""


LARGEST_SHIFT = {4: 3e3, 8: 7e7}
"""By bytes of a number, the largest relative step of a mean up to which the spread about the old
mean keeps half its digits."""


@pytree(eq=False)
class GammaParams:
    """shape (k, d) and rate (k, d); the mean is shape/rate, so that rates are in inverse units of
    the data."""

    shape: Any
    rate: Any


class GammaStatistics(NamedTuple):
    """Σw (k,) or by column (k, d), Σw·(r − 1) and Σw·(log r − r + 1) (k, d), r = x over the mean
    that params hold."""

    count: Any
    first: Any
    second: Any


@pytree(static=("missing",))
class Gamma(Bank):
    """log p(x | k) = Σ_d a log b − log Γ(a) + (a − 1) log x − b x, a = shape_kd, b = rate_kd

    x: (n, d), positive.  prior: a `GammaConjugatePrior`, or None.  The M-step solves
    log a − ψ(a) = log mean(x) − mean(log x) by Minka's generalised Newton iteration (2002).
    Data are divided by the component's mean, so that narrow components lose no digits. missing:
    whether NaN marks a cell that was not observed, which then drops out. Raises TypeError for
    another prior or missing.
    """

    prior: GammaConjugatePrior | None = None
    varies: Any = dataclasses.field(default=None, repr=False)  # set by `standardize` alone
    missing: bool = False

    _separate = True

    def __post_init__(self):
        require_kind(self, GammaConjugatePrior)
        cells.require_flag(self.missing)

    @property
    def domain(self):
        return cells.domain_of(domains.SPREAD_POSITIVE, self.missing)

    def init(self, key, x, weights):
        if self.missing:
            mean = cells.column_means(x, weights.sum(1), cells.observed(x, True))
        else:
            share = weights.sum(1) / weights.sum()
            mean = jnp.matmul(share, x, precision=Precision.HIGHEST)
        rate = jnp.broadcast_to(1 / mean, (weights.shape[1], x.shape[1]))
        start = GammaParams(jnp.ones_like(rate), rate)
        return self.maximize(start, self.statistics(start, x, None, weights))

    def posterior(self, params, x):
        _, excess = relative(params, x)
        shape = params.shape
        mask = cells.observed(x, self.missing)
        density = cells.masked(mask, stirling_term(shape) + shape * excess).sum(-1)
        return None, self.domain.outside(x, density - _logs(x)[:, None])

    def statistics(self, params, x, q, weights):
        moved, excess = relative(params, x)
        mask = cells.observed(x, self.missing)
        sums = (cells.sums(weights, mask, each) for each in (moved, excess))
        return GammaStatistics(cells.counts(weights, mask), *sums)

    def maximize(self, params, stats):
        mean, weight = params.shape / params.rate, cells.by_column(stats.count)
        first, second = stats.first, stats.second
        if self.prior is not None:
            pseudo, excess = self.prior.count, self.prior.mean / mean - 1
            first = first + pseudo * excess
            second = second + pseudo * (self.prior.mean_log - jnp.log(mean) - excess)
            weight = weight + pseudo
        else:
            weight = safe(weight)
        shift = jnp.maximum(first / weight, -0.999999)
        spread = jnp.log1p(shift) - shift - second / weight
        shape = solve_shape(jnp.maximum(spread, smallest_spread(spread.dtype)))
        # Of a mean that has moved far, the spread has lost its digits. The new mean is the best one
        # for any shape, and at the next step it is the centre.
        is_far = shift > LARGEST_SHIFT[spread.dtype.itemsize]
        shape = jnp.where(is_far, params.shape, shape)
        updated = GammaParams(shape, shape / (mean * (1 + shift)))
        return keep_empty(stats.count, updated, params) if self.prior is None else updated

    def restricted(self, held):
        """A closed form for fixed shapes: the rate is then the shape over the mean."""
        is_shape_fixed, is_rate_fixed = held.shape.fixed, held.rate.fixed
        if held.shape.tied or held.rate.tied or (is_rate_fixed & ~is_shape_fixed).any():
            return by_rows(self, held)

        def maximize(params, stats):
            updated = self.maximize(params, stats)
            held_shape = jnp.where(is_shape_fixed, params.shape, updated.shape)
            return GammaParams(held_shape, updated.rate * (held_shape / updated.shape))

        return maximize

    def spaces(self, params):
        return GammaParams(ABOVE_ZERO, ABOVE_ZERO)

    def whitened(self, params, step):
        """Shape and mean, which are uncorrelated, each times the root of its information."""
        a = params.shape
        of_shape = jnp.sqrt(-inverse_minus_trigamma(a)) * step.shape
        return GammaParams(of_shape, jnp.sqrt(a) * (step.shape / a - step.rate / params.rate))

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.shape, params.rate)

    def degenerate(self, params):
        spread = log_minus_digamma(params.shape)
        is_collapsed = spread <= 1.01 * smallest_spread(spread.dtype)
        if self.varies is not None:  # a constant feature says nothing about components
            is_collapsed &= self.varies | ~jnp.any(self.varies)
        return jnp.any(is_collapsed, axis=-1)

    def sample(self, key, params, z):
        shape = params.shape[z]
        return jax.random.gamma(key, shape, dtype=shape.dtype) / params.rate[z]

    def embed(self, x):
        return cells.filled_by_mean(jnp.log(x)) if self.missing else jnp.log(x)

    def standardize(self, x, weights):
        mask = cells.observed(x, self.missing)
        filled = cells.masked(mask, x)
        scale = stop_gradient(column_scale(filled, weights, mask))
        prior = self.prior
        if prior is not None:
            prior = GammaConjugatePrior(
                prior.count, prior.mean / scale, prior.mean_log - jnp.log(scale)
            )
        present = (weights > 0)[:, None]
        present = present if mask is None else present & mask
        highest = jnp.max(jnp.where(present, x, 0), axis=0)
        lowest = jnp.min(jnp.where(present, x, jnp.inf), axis=0)
        varies = highest > lowest * (1 + 4 * jnp.finfo(x.dtype).eps)
        model = Gamma(prior, varies, self.missing)
        return Standardized(model, x / scale, scale, cells.volume(jnp.log(scale), mask))

    def inward(self, scale, params):
        return GammaParams(params.shape, params.rate * scale)

    def outward(self, scale, params):
        return GammaParams(params.shape, params.rate / scale)


def smallest_spread(dtype) -> float:
    """log mean − mean log up to which a component counts as collapsed onto one value."""
    return float(jnp.finfo(dtype).eps)


def relative(params, x):
    """r − 1 and log r − r + 1 for r = x / mean, shape (n, k, d)."""
    r = jnp.where(x > 0, x, 1)[:, None, :] * (params.rate / params.shape)
    moved = r - 1
    return moved, jnp.where(jnp.abs(moved) < 0.5, jnp.log1p(moved), jnp.log(r)) - moved


def _logs(x):
    return jnp.log(jnp.where(x > 0, x, 1)).sum(-1)


@jax.custom_jvp
def solve_shape(spread):
    """The a with log a − ψ(a) = spread, for spread > 0; differentiable by that equation."""
    root = jnp.sqrt((spread - 3) ** 2 + 24 * spread)
    of_large = 2 / (root + jnp.maximum(spread, 3) - 3)  # without cancellation
    start = jnp.where(spread > 3, of_large, (3 - spread + root) / (12 * spread))

    def newton(_, a):
        # log a − ψ(a) ≈ 1/(2a): the iteration is Newton's in 1/a.
        return 1 / (1 / a + (log_minus_digamma(a) - spread) / (a**2 * inverse_minus_trigamma(a)))

    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)


@solve_shape.defjvp
def _solve_shape_rule(primals, tangents):
    shape = solve_shape(*primals)
    return shape, tangents[0] / inverse_minus_trigamma(shape)
