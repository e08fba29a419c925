"""Weibull components: positive numbers in d independent columns.

With z = c log(x/b) the log density of log x is log c + z − e^z. Params c(1 + t) and b', with
log b' = log b − β/(c(1 + t)), have (1 + t)z + β in place of z. So the weighted mean over units is

  log c(1 + t) + (1 + t) mean z + β − e^β M(1 + t),   M(a) = mean e^{az},

which is concave in t; its maximum over β is at β = −log M(1 + t). The M-step is Newton's step of t
at 0, as far as it cannot lower that maximum. M'' = mean z² e^{az} is log-convex in a, so that it
lies below its chords: with r₊ = log M''(2)/M''(1) and r₋ = 2 log M''(1/2)/M''(1),

  M(1 + t) ≤ M + M't + M''(1) (e^{r|t|} − 1 − r|t|)/r²   for −1/2 ≤ t ≤ 1,

with all else at 1 and with r₊ for t > 0, r₋ for t < 0. With this bound in place of M(1 + t), for β
too, the gain that is computed is a lower bound on the gain.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families import cells
from jaxem.families.normal.moments import FLOOR_IN_ROUNDINGS
from jaxem.numerics.newton_step import expm1_minus
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.model import Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO
from jaxem.protocol.units import Standardized

EULER = 0.5772156649015329
"""Euler's constant: minus the mean of z."""

SPREAD = math.pi / math.sqrt(6)
"""The standard deviation of z."""

LARGEST_EXPONENT = {4: (80.0, 35.0), 8: (600.0, 300.0)}
"""By bytes of a number, the largest z of densities and of statistics, whose powers stay finite."""

HALVINGS = 8
"""How often a step is halved at most."""

SMALL_STEP = 0.05
"""Steps are whole where the cubic term of the bound is at most this part of the square one."""

ROUNDINGS = 16
"""Rounding errors of its terms that are added to the bound on M(1 + t) where it is small."""


@pytree(eq=False)
class WeibullParams:
    """shape (k, d) and scale (k, d), scales in the units of the data."""

    shape: Any
    scale: Any


class WeibullStatistics(NamedTuple):
    """Σw (k,) or by column (k, d); Σw·z, Σw·e^z, Σw·z e^z, Σw·z² e^z, Σw·z² e^{z/2} and
    Σw·z² e^{2z} (k, d), z = shape · log(x/scale)."""

    count: Any
    first: Any
    power: Any
    slope: Any
    curvature: Any
    below: Any
    above: Any


@pytree(static=("missing", "logs"))
class Weibull(Bank):
    """log p(x | k) = Σ_d log c − log x + z − e^z, z = c log(x / b), c = shape_kd, b = scale_kd

    Args:
      missing: whether NaN marks a cell that was not observed, which then drops out.

    x: (n, d), positive. The M-step is a Newton step that cannot lower the expected log-likelihood;
    its limit is the maximum. Where the values of a component are equal its likelihood grows with
    the shape without bound: the shape is limited by the rounding error of logarithms, and the
    status of the fit is DEGENERATE. Raises TypeError where missing is no bool. Source: Johnson,
    Kotz & Balakrishnan 1994, chapter 21.
    """

    missing: bool = False
    logs: bool = dataclasses.field(default=False, repr=False)  # data are log x: by `standardize`
    varies: Any = dataclasses.field(default=None, repr=False)  # likewise

    _separate = True

    def __post_init__(self):
        cells.require_flag(self.missing)

    @property
    def domain(self):
        domain = domains.SPREAD_POINTS if self.logs else domains.SPREAD_POSITIVE
        return cells.domain_of(domain, self.missing)

    def init(self, key, x, weights):
        """The params with the mean and the variance of log x, and an M-step."""
        y, mask = self._logarithms(x)
        mean, variance = cells.moments(weights, mask, y)
        deviation = jnp.maximum(jnp.sqrt(variance), SPREAD / self._most(mean))
        log_scale = mean + EULER * deviation / SPREAD
        start = WeibullParams(SPREAD / deviation, jnp.exp(log_scale))
        return self.maximize(start, self._sums(start, y, mask, weights))

    def posterior(self, params, x):
        y, mask = self._logarithms(x)
        z = self._z(params, y, 0)
        density = cells.masked(mask, jnp.log(params.shape) + z - jnp.exp(z)).sum(-1)
        if self.logs:
            return None, density
        return None, self.domain.outside(x, density - y.sum(-1)[:, None])

    def statistics(self, params, x, q, weights):
        return self._sums(params, *self._logarithms(x), weights)

    def _sums(self, params, y, mask, weights):
        z = self._z(params, y, 1)
        root = jnp.exp(z / 2)
        power, square = jnp.square(root), jnp.square(z)
        every = z, power, z * power, square * power, square * root, square * jnp.square(power)
        sums = (cells.sums(weights, mask, each) for each in every)
        return WeibullStatistics(cells.counts(weights, mask), *sums)

    def maximize(self, params, stats):
        return self._moved(params, stats, False, False)

    def restricted(self, held):
        """A closed form for fixed shapes and for fixed scales."""
        if held.shape.tied or held.scale.tied:
            return by_rows(self, held)
        return lambda params, stats: self._moved(params, stats, held.shape.fixed, held.scale.fixed)

    def _moved(self, params, stats, is_shape_fixed, is_scale_fixed):
        count = safe(cells.by_column(stats.count))
        step, log_factor = safe_step(*(a / count for a in stats[1:]), is_scale_fixed)
        limit = self._most(jnp.log(params.scale)) / params.shape - 1
        step = jnp.where(is_shape_fixed, 0, jnp.minimum(step, limit))
        shape = params.shape * (1 + step)
        scale = params.scale * jnp.exp(log_factor(step) / shape)
        updated = WeibullParams(shape, jnp.where(is_scale_fixed, params.scale, scale))
        return keep_empty(stats.count, updated, params)

    def spaces(self, params):
        return WeibullParams(ABOVE_ZERO, ABOVE_ZERO)

    def whitened(self, params, step):
        """By the information of log shape and log scale, [[π²/6 + g², −cg], [−cg, c²]] with
        g = 1 − Euler's constant."""
        of_shape, of_scale = step.shape / params.shape, step.scale / params.scale
        return WeibullParams(SPREAD * of_shape, params.shape * of_scale - (1 - EULER) * of_shape)

    def degenerate(self, params):
        is_collapsed = params.shape >= 0.999 * self._most(jnp.log(params.scale))
        if self.varies is not None:  # a constant feature says nothing about components
            is_collapsed &= self.varies | ~jnp.any(self.varies)
        return jnp.any(is_collapsed, axis=-1)

    def sample(self, key, params, z):
        shape = params.shape[z]
        draw = jax.random.exponential(key, shape.shape, shape.dtype)
        draw = jnp.log(params.scale[z]) + jnp.log(draw) / shape
        return draw if self.logs else jnp.exp(draw)

    def embed(self, x):
        y = x if self.logs else jnp.log(x)
        return cells.filled_by_mean(y) if self.missing else y

    def standardize(self, x, weights):
        """Centred logarithms, whose rounding errors do not depend on the units of the data."""
        y, mask = self._logarithms(x)
        location = cells.column_means(y, weights, mask)
        rounding = SPREAD / self._most(location)
        varies = cells.varying(stop_gradient(y), weights, mask, rounding)
        model = dataclasses.replace(self, logs=True, varies=varies)
        data = y - location
        data = data if mask is None else jnp.where(mask, data, jnp.nan)
        return Standardized(model, data, location, y.sum(-1))

    def inward(self, units, params):
        return WeibullParams(params.shape, jnp.exp(jnp.log(params.scale) - units))

    def outward(self, units, params):
        return WeibullParams(params.shape, jnp.exp(jnp.log(params.scale) + units))

    def _logarithms(self, x):
        """log x with 0 in missing cells and outside the support, and the mask."""
        mask = cells.observed(x, self.missing)
        if self.logs:
            return cells.masked(mask, x), mask
        is_inside = (x > 0) & (x < jnp.inf)
        return jnp.where(is_inside, jnp.log(jnp.where(is_inside, x, 1)), 0), mask

    @staticmethod
    def _z(params, y, which):
        z = params.shape * (y[:, None] - jnp.log(params.scale))
        return jnp.minimum(z, LARGEST_EXPONENT[z.dtype.itemsize][which])

    @staticmethod
    def _most(log_scale):
        """The largest shape: that of the rounding error of logarithms."""
        log_scale = stop_gradient(log_scale)
        rounding = FLOOR_IN_ROUNDINGS * float(jnp.finfo(log_scale.dtype).eps)
        return SPREAD / (rounding * (1 + jnp.abs(log_scale)))


def safe_step(first, power, slope, curvature, below, above, is_scale_fixed):
    """(t, a function t -> −β) from the means of the terms of `WeibullStatistics`: a step that does
    not lower the expected log-likelihood. Differentiable where steps are small."""
    is_spread = (curvature > 0) & (below > 0) & (above > 0)
    ratio = jnp.where(is_spread, curvature, 1)
    rise = jnp.log(jnp.where(is_spread, above, 1) / ratio)
    fall = 2 * jnp.log(jnp.where(is_spread, below, 1) / ratio)

    def excess(t):
        """The bound on M(1 + t) − M, over M."""
        rate = stop_gradient(jnp.where(t > 0, rise, fall))
        z = rate * jnp.abs(t)
        is_flat = jnp.abs(z) < 1e-4
        rate = jnp.where(is_flat, 1, rate)
        of_large = expm1_minus(jnp.where(is_flat, 1, z)) / jnp.square(rate)
        of_second = jnp.where(is_flat, jnp.square(t) / 2 * (1 + z / 3), of_large)
        of_first, of_second = slope * t / power, curvature * of_second / power
        rounding = ROUNDINGS * float(jnp.finfo(t.dtype).eps) * (jnp.abs(of_first) + of_second)
        total = of_first + of_second
        return jnp.where(total < -0.5, total + stop_gradient(rounding), total)

    def gain(t):
        loss = jnp.where(is_scale_fixed, power * excess(t), jnp.log1p(excess(t)))
        return jnp.log1p(t) + t * first - loss

    mean, square = slope / power, curvature / power
    gradient = 1 + first - jnp.where(is_scale_fixed, slope, mean)
    information = 1 + jnp.where(is_scale_fixed, curvature, square - jnp.square(mean))
    step = jnp.clip(gradient / jnp.maximum(information, 1), -0.5, 1)
    whole = stop_gradient(step)
    rate = jnp.abs(jnp.where(whole > 0, rise, fall))
    factor = jnp.where(is_scale_fixed, power, 1)
    cubic = 2 + factor * (rate * square + 3 * jnp.abs(mean) * square + 2 * jnp.abs(mean) ** 3)
    is_small = jnp.abs(whole) * (cubic + rate + 1) < SMALL_STEP
    halves = 0.5 ** jnp.arange(HALVINGS, dtype=step.dtype).reshape(-1, *(1,) * step.ndim)
    gains = jax.vmap(gain)(halves * whole)
    gains = stop_gradient(jnp.where(jnp.isnan(gains), -jnp.inf, gains))
    best = jnp.max(gains, axis=0)
    length = jnp.take_along_axis(
        jnp.broadcast_to(halves, gains.shape), jnp.argmax(gains, axis=0)[None], 0
    )[0]
    length = jnp.where(is_small | (gains[0] >= best / 4) & (best > 0), 1, length)
    length = jnp.where(is_small | (best > 0), length, 0)
    return step * length, lambda t: jnp.log(power) + jnp.log1p(excess(t))
