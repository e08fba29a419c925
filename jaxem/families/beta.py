"""Beta components: numbers between 0 and 1 in d independent columns.

With the mean μ = a/(a + b), s = a + b, u = x/μ and v = (1 − x)/(1 − μ) the log density is

  −log x − log(1 − x) + T(a) + T(b) − T(s) + a (log u − u + 1) + b (log v − v + 1),

T(a) = a log a − a − log Γ(a), without differences of large terms for narrow components. The M-step
solves, with D(a) = log a − ψ(a) and means over the units,

  mean log x = log μ − D(a) + D(s),   mean log(1 − x) = log(1 − μ) − D(b) + D(s)

by Fisher's scoring in logit μ and log s, which are nearly uncorrelated for large s.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families import cells
from jaxem.numerics.special import (
    betaln,
    inverse_minus_trigamma,
    log_minus_digamma,
    stirling_term,
)
from jaxem.numerics.tree import pytree
from jaxem.passes.linear import Linear, roomy
from jaxem.protocol import domains
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.model import Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO
from jaxem.protocol.units import Standardized

SCORING_STEPS = 16
"""Steps of Fisher's scoring for μ and s."""

LONGEST_STEP = 1.0
"""The longest step of logit μ and of log s."""

LARGEST_SHIFT = {4: 3e3, 8: 7e7}
"""By bytes of a number, the largest step of a mean, as a part of it, up to which the spread about
the old mean keeps half its digits."""


@pytree(eq=False)
class BetaParams:
    """a (k, d) and b (k, d); the mean is a/(a + b)."""

    a: Any
    b: Any


class BetaStatistics(NamedTuple):
    """Σw (k,) or by column (k, d); Σw·(x − μ), Σw·(log u − u + 1) and Σw·(log v − v + 1) (k, d)
    with the mean μ that params hold."""

    count: Any
    first: Any
    lower: Any
    upper: Any


def _remedy(values) -> str:
    if values.size and values.min() >= 0 and values.max() <= 1:
        return "move values of exactly 0 and 1 inward, as by (x (n - 1) + 0.5) / n of n units"
    if values.size and values.min() >= 0 and values.max() <= 100:
        return "divide percentages by 100"
    return ""


DOMAIN = domains.Matrix(
    "numbers above 0 and below 1", lambda x: (x > 0) & (x < 1), remedy=_remedy, variances=True
)


@pytree(static=("missing", "relative"))
class Beta(Bank):
    """log p(x | k) = Σ_d (a − 1) log x + (b − 1) log(1 − x) − log B(a, b), a = a_kd, b = b_kd

    Args:
      missing: whether NaN marks a cell that was not observed, which then drops out.

    x: (n, d), above 0 and below 1. The M-step is exact. Where the values of a component are equal
    its likelihood grows with a + b without bound: a + b is limited by rounding, and the status of
    the fit is DEGENERATE. Raises TypeError where missing is no bool. Source: Johnson, Kotz &
    Balakrishnan 1995, chapter 25.
    """

    missing: bool = False
    relative: bool = dataclasses.field(default=False, repr=False)
    # Without −log x − log(1 − x), which is in the log volume; set by `standardize` alone.
    varies: Any = dataclasses.field(default=None, repr=False)  # likewise

    _separate = True

    def __post_init__(self):
        cells.require_flag(self.missing)

    @property
    def domain(self):
        return cells.domain_of(DOMAIN, self.missing)

    def init(self, key, x, weights):
        x, mask = self._inside(x)
        mean, _ = cells.moments(weights, mask, x)
        start = BetaParams(mean, 1 - mean)
        return self.maximize(start, self._sums(start, x, mask, weights))

    def posterior(self, params, x):
        inner, mask = self._inside(x)
        _, lower, upper = relative(params, inner)
        a, b = params.a, params.b
        of_a, of_b, of_total = stirling_term(jnp.stack([a, b, a + b]))
        each = of_a + of_b - of_total + a * lower + b * upper
        density = cells.masked(mask, each).sum(-1)
        if self.relative:
            return None, density
        return None, self.domain.outside(x, density - _logs(inner, mask)[:, None])

    def statistics(self, params, x, q, weights):
        return self._sums(params, *self._inside(x), weights)

    def _sums(self, params, x, mask, weights):
        sums = (cells.sums(weights, mask, each) for each in relative(params, x))
        return BetaStatistics(cells.counts(weights, mask), *sums)

    def _size_of_terms(self, params, stats):
        """The terms of log u − (u − 1) are as large as |u − 1|, whose sum is at most
        √(2 Σw · S) + S, S that of their difference (by Cauchy's inequality)."""
        a, b = params.a, params.b
        levels = jnp.abs(stirling_term(jnp.stack([a, b, a + b]))).sum(0)
        count = stats.count if stats.count.ndim == 2 else stats.count[:, None]

        def of_logarithms(total):
            total = jnp.abs(total)
            return 2 * (jnp.sqrt(2 * count * total) + total)

        of_both = a * of_logarithms(stats.lower) + b * of_logarithms(stats.upper)
        return (of_both + count * levels).sum()

    def linear(self, x):
        """The form with the features log x, log(1 − x), x, masks where cells may be missing, and
        1."""
        d, missing = x.shape[1], self.missing
        constant = (4 if missing else 3) * d

        def columns(x):
            x, mask = self._inside(x)
            parts = [jnp.log(x), jnp.log1p(-x), x]
            if mask is not None:
                parts = [cells.masked(mask, part) for part in parts] + [mask.astype(x.dtype)]
            return jnp.concatenate(parts, axis=1).T

        def features(columns):
            return jnp.concatenate([columns, jnp.ones((1, columns.shape[1]), columns.dtype)])

        def coefficients(params, level):
            a, b = params.a, params.b
            parts = [a, b, jnp.zeros_like(a)]
            if missing:
                parts.append(-betaln(a, b))
            else:
                level = level - betaln(a, b).sum(-1)
            return jnp.concatenate([*parts, level[:, None]], axis=1)

        def statistics(params, sums):
            log, log_rest, total = (sums[i * d : (i + 1) * d].T for i in range(3))
            count = sums[3 * d : constant].T if missing else sums[constant]
            column, (mean, rest) = cells.by_column(count), means(params)
            first = total - column * mean
            lower = log - column * jnp.log(mean) - first / mean
            upper = log_rest - column * jnp.log(rest) + first / rest
            return BetaStatistics(count, first, lower, upper)

        def terms(params):
            mean, rest = means(params)
            of_logs = params.a * (1 - jnp.log(mean)) + params.b * (1 - jnp.log(rest))
            return of_logs.sum(-1).max()

        def base(x):
            return None if self.relative else -_logs(*self._inside(x))

        return Linear(
            constant + 1,
            constant,
            roomy(x),
            columns,
            features,
            coefficients,
            base,
            statistics,
            terms,
        )

    def maximize(self, params, stats):
        count, (mean, rest) = safe(cells.by_column(stats.count)), means(params)
        shift = stats.first / count
        least = 1e-6
        up, down = jnp.maximum(shift / mean, least - 1), jnp.maximum(-shift / rest, least - 1)
        lower = up - jnp.log1p(up) + stats.lower / count
        upper = down - jnp.log1p(down) + stats.upper / count
        mean, rest = mean * (1 + up), rest * (1 + down)
        spread = -mean * lower - rest * upper
        # Where all values are equal, or the spread has lost its digits, the smallest spread.
        lost = jnp.maximum(smallest_spread(spread.dtype) - spread, 0)
        a, b = solve(mean, rest, jnp.maximum(-lower + lost, 0), jnp.maximum(-upper + lost, 0))
        is_far = jnp.maximum(up, down) > LARGEST_SHIFT[spread.dtype.itemsize]
        total = params.a + params.b
        updated = BetaParams(jnp.where(is_far, total * mean, a), jnp.where(is_far, total * rest, b))
        return keep_empty(stats.count, updated, params)

    def restricted(self, held):
        """A closed form for components that are fixed or tied as a whole."""
        return by_rows(self, held)

    def spaces(self, params):
        return BetaParams(ABOVE_ZERO, ABOVE_ZERO)

    def whitened(self, params, step):
        """By the information of logit μ and log s, with μ = a/(a + b) and s = a + b."""
        a, b = params.a, params.b
        of_logit, across, of_total = information(*means(params), a, b)
        logit, total = step.a / a - step.b / b, (step.a + step.b) / (a + b)
        root = jnp.sqrt(of_logit)
        rest = of_total - jnp.square(across) / of_logit
        return BetaParams(root * logit + across / root * total, jnp.sqrt(rest) * total)

    def degenerate(self, params):
        a, b = params.a, params.b
        mean, rest = means(params)
        of_a, of_b, of_total = log_minus_digamma(jnp.stack([a, b, a + b]))
        spread = mean * of_a + rest * of_b - of_total
        is_collapsed = spread <= 1.01 * smallest_spread(spread.dtype)
        if self.varies is not None:  # a constant feature says nothing about components
            is_collapsed &= self.varies | ~jnp.any(self.varies)
        return jnp.any(is_collapsed, axis=-1)

    def sample(self, key, params, z):
        a, b = params.a[z], params.b[z]
        kind = jnp.finfo(a.dtype)
        return jnp.clip(jax.random.beta(key, a, b, dtype=a.dtype), kind.tiny, 1 - kind.eps)

    def embed(self, x):
        points = jnp.arcsin(jnp.sqrt(x))
        return cells.filled_by_mean(points) if self.missing else points

    def standardize(self, x, weights):
        inner, mask = self._inside(x)
        tolerance = 4 * float(jnp.finfo(x.dtype).eps)
        varies = cells.varying(stop_gradient(inner), weights, mask, tolerance)
        model = dataclasses.replace(self, relative=True, varies=varies)
        return Standardized(model, x, log_volume=_logs(inner, mask))

    def inward(self, units, params):
        return params

    def outward(self, units, params):
        return params

    def _inside(self, x):
        """x with 1/2 in missing cells and outside the support, and the mask."""
        is_inside = (x > 0) & (x < 1)
        return jnp.where(is_inside, x, 0.5), cells.observed(x, self.missing)


def means(params):
    """μ and 1 − μ."""
    total = params.a + params.b
    return params.a / total, params.b / total


def relative(params, x):
    """x − μ, log u − u + 1 and log v − v + 1, shape (n, k, d)."""
    (mean, rest), x = means(params), x[:, None]
    moved = jnp.where(mean < 0.5, x - mean, rest - (1 - x))
    up, down = moved / mean, -moved / rest

    def excess(change, log):
        is_near = jnp.abs(change) < 0.5
        return jnp.where(is_near, jnp.log1p(jnp.where(is_near, change, 0)), log) - change

    lower = excess(up, jnp.log(x) - jnp.log(mean))
    return moved, lower, excess(down, jnp.log1p(-x) - jnp.log(rest))


def _logs(x, mask):
    """Σ_d log x + log(1 − x), (n,)."""
    return cells.masked(mask, jnp.log(x) + jnp.log1p(-x)).sum(-1)


def smallest_spread(dtype) -> float:
    """−mean log u − mean log v, weighted by μ and 1 − μ, up to which a component counts as
    collapsed onto one value."""
    return float(jnp.finfo(dtype).eps)


def information(mean, rest, a, b):
    """The information of a unit on logit μ, on both, and on log s."""
    total = a + b
    of_a, of_b, of_total = -inverse_minus_trigamma(jnp.stack([a, b, total]))
    variance = total * mean * rest
    of_logit = variance + jnp.square(variance) * (of_a + of_b)
    across = variance * (a * of_a - b * of_b)
    squares = jnp.square(a) * of_a + jnp.square(b) * of_b - jnp.square(total) * of_total
    return of_logit, across, squares


def solve(mean, rest, lower, upper):
    """(a, b) for mean log x = log mean − lower and mean log(1 − x) = log rest − upper, of numbers
    with this mean, rest = 1 − mean; differentiable by these equations."""
    shift, log_total = _root(mean, rest, lower, upper)
    return _parts(mean, rest, shift, log_total)


def _parts(mean, rest, shift, log_total):
    """a and b with logit μ = logit mean + shift and s = e^log_total."""
    log = jnp.log1p(mean * jnp.expm1(shift))
    total = jnp.exp(log_total)
    return total * mean * jnp.exp(shift - log), total * rest * jnp.exp(-log)


@jax.custom_jvp
def _root(mean, rest, lower, upper):
    spread = mean * lower + rest * upper

    def step(_, at):
        shift, log_total = at
        a, b = _parts(mean, rest, shift, log_total)
        log = jnp.log1p(mean * jnp.expm1(shift))
        of_a, of_b, of_total = log_minus_digamma(jnp.stack([a, b, a + b]))
        of_a = -lower - (shift - log) + of_a - of_total
        of_b = -upper + log + of_b - of_total
        new_mean, new_rest = mean * jnp.exp(shift - log), rest * jnp.exp(-log)
        change = _solved(new_mean, new_rest, a, b, of_a - of_b, new_mean * of_a + new_rest * of_b)
        return tuple(
            p + jnp.clip(c, -LONGEST_STEP, LONGEST_STEP) for p, c in zip(at, change, strict=True)
        )

    start = jnp.zeros_like(spread), -jnp.log(1.5 * spread)
    return jax.lax.fori_loop(0, SCORING_STEPS, step, start)


def _solved(mean, rest, a, b, difference, average):
    """The step of logit μ and log s for the slopes s μ(1 − μ)·difference and s·average."""
    of_logit, across, of_total = information(mean, rest, a, b)
    total = a + b
    first, second = total * mean * rest * difference, total * average
    determinant = of_logit * of_total - jnp.square(across)
    of_first = (of_total * first - across * second) / determinant
    return of_first, (of_logit * second - across * first) / determinant


@_root.defjvp
def _root_rule(primals, tangents):
    mean, rest, _, _ = primals
    of_mean, of_rest, of_lower, of_upper = tangents
    shift, log_total = _root(*primals)
    a, b = _parts(mean, rest, shift, log_total)
    log = jnp.log1p(mean * jnp.expm1(shift))
    up, down = of_mean / mean, of_rest / rest
    new_mean, new_rest = mean * jnp.exp(shift - log), rest * jnp.exp(-log)
    difference = up - of_lower - down + of_upper
    # The parts of the means cancel where the mean of a unit is that of the data.
    average = jnp.exp(-log) * (jnp.exp(shift) * of_mean + of_rest)
    average = average - new_mean * of_lower - new_rest * of_upper
    of_logit, of_log_total = _solved(new_mean, new_rest, a, b, difference, average)
    return (shift, log_total), (of_logit - up + down, of_log_total)
