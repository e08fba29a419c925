"""Log-normal components: positive numbers in d independent columns, whose logarithms are normal."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families import cells
from jaxem.families.normal.moments import FLOOR_IN_ROUNDINGS, LOG_2PI
from jaxem.numerics.tree import pytree
from jaxem.passes.linear import Linear, roomy
from jaxem.protocol import domains
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.model import Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO, REAL
from jaxem.protocol.units import Standardized

ON_FLOOR = 1.001
"""The factor of the floor up to which a variance counts as on it."""


@pytree(eq=False)
class LogNormalParams:
    """location (k, d) and variance (k, d): mean and variance of log x, x in the units of the
    data."""

    location: Any
    variance: Any


class LogNormalStatistics(NamedTuple):
    """Σw (k,) or by column (k, d), Σw·c and Σw·c² (k, d), c = log x − location."""

    count: Any
    first: Any
    second: Any


@pytree(static=("missing", "logs"))
class LogNormal(Bank):
    """log p(x | k) = Σ_d −log x − ½ log 2πv − (log x − m)² / 2v, m = location_kd, v = variance_kd

    Args:
      floor: the smallest variance of log x allowed. None: the square of the rounding error of a
        logarithm, which only a component of equal values reaches; the fit is then DEGENERATE.
      missing: whether NaN marks a cell that was not observed, which then drops out.

    x: (n, d), positive. A fit is that of `Normal("diagonal")` to log x, up to the Jacobian
    −Σ log x. Raises TypeError or ValueError for another missing or floor. Source: Johnson, Kotz &
    Balakrishnan 1994, chapter 14.
    """

    floor: Any = None
    missing: bool = False
    logs: bool = dataclasses.field(default=False, repr=False)  # data are log x: by `standardize`
    varies: Any = dataclasses.field(default=None, repr=False)  # likewise

    _separate = True

    def __post_init__(self):
        cells.require_flag(self.missing)
        if self.floor is not None:
            finite_number(self.floor, "floor")

    @property
    def domain(self):
        domain = domains.SPREAD_POINTS if self.logs else domains.SPREAD_POSITIVE
        return cells.domain_of(domain, self.missing)

    def init(self, key, x, weights):
        y, mask = self._logarithms(x)
        location, _ = cells.moments(weights, mask, y)
        start = LogNormalParams(location, jnp.ones_like(location))
        return self.maximize(start, self._sums(start, y, mask, weights))

    def posterior(self, params, x):
        y, mask = self._logarithms(x)
        centred = y[:, None] - params.location
        each = jnp.square(centred) / params.variance + (LOG_2PI + jnp.log(params.variance))
        density = -0.5 * cells.masked(mask, each).sum(-1)
        if self.logs:
            return None, density
        return None, self.domain.outside(x, density - y.sum(-1)[:, None])

    def statistics(self, params, x, q, weights):
        return self._sums(params, *self._logarithms(x), weights)

    def _sums(self, params, y, mask, weights):
        centred = y[:, None] - params.location
        first = cells.sums(weights, mask, centred)
        second = cells.sums(weights, mask, jnp.square(centred))
        return LogNormalStatistics(cells.counts(weights, mask), first, second)

    def linear(self, x):
        """The form with the features log² x, log x, masks where cells may be missing, and 1."""
        d, missing = x.shape[1], self.missing
        constant = (3 if missing else 2) * d

        def columns(x):
            y, mask = self._logarithms(x)
            return y.T if mask is None else jnp.concatenate([y.T, mask.T.astype(y.dtype)])

        def features(columns):
            rest = [columns, jnp.ones((1, columns.shape[1]), columns.dtype)]
            return jnp.concatenate([jnp.square(columns[:d]), *rest])

        def coefficients(params, level):
            precision = 1 / params.variance
            slope = precision * params.location
            constant = LOG_2PI + jnp.log(params.variance) + slope * params.location
            parts = [-0.5 * precision, slope]
            if missing:
                parts.append(-0.5 * constant)
            else:
                level = level - 0.5 * constant.sum(-1)
            return jnp.concatenate([*parts, level[:, None]], axis=1)

        def statistics(params, sums):
            squares, total = sums[:d].T, sums[d : 2 * d].T
            count = sums[2 * d : constant].T if missing else sums[constant]
            column, location = cells.by_column(count), params.location
            first = total - column * location
            second = squares - location * (2 * first + column * location)
            return LogNormalStatistics(count, first, second)

        def terms(params):
            return (jnp.square(params.location) / params.variance + 1).sum(-1).max()

        def base(x):
            return None if self.logs else -self._logarithms(x)[0].sum(-1)

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
        count = safe(cells.by_column(stats.count))
        shift = stats.first / count
        location = params.location + shift
        variance = stats.second / count - jnp.square(shift)
        variance = jnp.maximum(variance, self._floor(location))
        return keep_empty(stats.count, LogNormalParams(location, variance), params)

    def restricted(self, held):
        """A closed form for fixed locations, about which the variances are then computed, and for
        fixed variances."""
        location, variance = held.location, held.variance
        if location.tied or variance.tied:
            return by_rows(self, held)

        def maximize(params, stats):
            first = jnp.where(location.fixed, 0, stats.first)
            return self.maximize(params, stats._replace(first=first))

        return maximize

    def spaces(self, params):
        return LogNormalParams(REAL, ABOVE_ZERO)

    def whitened(self, params, step):
        of_location = step.location / jnp.sqrt(params.variance)
        return LogNormalParams(of_location, step.variance / (2**0.5 * params.variance))

    def degenerate(self, params):
        is_collapsed = params.variance <= ON_FLOOR * self._floor(params.location)
        if self.varies is not None:  # a constant feature says nothing about components
            is_collapsed &= self.varies | ~jnp.any(self.varies)
        return jnp.any(is_collapsed, axis=-1)

    def sample(self, key, params, z):
        location = params.location[z]
        noise = jax.random.normal(key, location.shape, location.dtype)
        draw = location + jnp.sqrt(params.variance[z]) * noise
        return draw if self.logs else jnp.exp(draw)

    def embed(self, x):
        y = x if self.logs else jnp.log(x)
        return cells.filled_by_mean(y) if self.missing else y

    def standardize(self, x, weights):
        """Centred logarithms, whose rounding errors do not depend on the units of the data."""
        y, mask = self._logarithms(x)
        location = cells.column_means(y, weights, mask)
        varies = cells.varying(stop_gradient(y), weights, mask, self._rounding(location))
        model = dataclasses.replace(self, logs=True, varies=varies)
        data = y - location
        data = data if mask is None else jnp.where(mask, data, jnp.nan)
        return Standardized(model, data, location, y.sum(-1))

    def inward(self, units, params):
        return LogNormalParams(params.location - units, params.variance)

    def outward(self, units, params):
        return LogNormalParams(params.location + units, params.variance)

    def _logarithms(self, x):
        """log x with 0 in missing cells and outside the support, and the mask."""
        mask = cells.observed(x, self.missing)
        if self.logs:
            return cells.masked(mask, x), mask
        is_inside = (x > 0) & (x < jnp.inf)
        return jnp.where(is_inside, jnp.log(jnp.where(is_inside, x, 1)), 0), mask

    def _floor(self, location):
        if self.floor is not None:
            return jnp.asarray(self.floor, location.dtype)
        return jnp.square(self._rounding(stop_gradient(location)))

    @staticmethod
    def _rounding(location):
        """The rounding error of logarithms near `location`."""
        return FLOOR_IN_ROUNDINGS * float(jnp.finfo(location.dtype).eps) * (1 + jnp.abs(location))
