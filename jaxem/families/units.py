"""Location and scale of data, with which they are standardised, without a copy of large data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.numerics import rows, tuning
from jaxem.numerics.linalg import copies
from jaxem.passes.linear import roomy


class Affine(NamedTuple):
    """data = (x − location) / scale, both (d,)."""

    location: Any
    scale: Any


class Frame(NamedTuple):
    """Location and scale (d,) of standardised data; varies: which features have two different
    values."""

    location: Any
    scale: Any
    varies: Any

    def standardize(self, x):
        """Rows (n, d) in these units."""
        return (x - copies(self.location, x.shape[0])) / copies(self.scale, x.shape[0])


def frame(x, weights, common: bool, observed=None) -> Frame:
    """The `Frame` of the data; one scale for all features if `common`. observed: which cells
    (n, d) count, None for all; a feature of which none does has the location NaN.

    The location of a feature is its median, its scale the interquartile range over that of a
    standard normal, so that outliers set neither; both are estimated from at most `FRAME_UNITS`
    units. The scale of a feature with equal quartiles is its largest distance from the median, that
    of a constant feature its magnitude. Other scales are rounded to a power of two, so that a
    change of units rounds nothing but sums: a mean that equals a value of the data still does.
    Nothing here is differentiated: a fit does not depend on its units.
    """
    x, weights = stop_gradient((jnp.asarray(x), weights))
    if observed is None:
        location, spread = middle(x, weights)
    else:
        location, spread = middle_of_cells(x, weights, observed)

    def farthest(x, weights):
        present = (weights > 0)[:, None]
        return jnp.max(jnp.where(present, jnp.abs(x - location), 0), axis=0)

    if observed is None:
        reach = over_rows(farthest, jnp.maximum, x, weights)
    else:
        reach = farthest(jnp.where(observed, x, location), weights)
    scale = jnp.maximum(jnp.where(spread > 0, spread, reach), SMALLEST_PART * reach)
    varies = scale > 4 * jnp.finfo(x.dtype).eps * jnp.abs(location)
    magnitude = jnp.where(location != 0, jnp.abs(location), 1)
    scale = jnp.where(varies, power_of_two(scale), magnitude)
    if common:
        top = jnp.max(jnp.where(varies, scale, 0))
        top = jnp.where(top > 0, top, jnp.max(scale))
        mean_square = jnp.mean(jnp.where(varies, jnp.square(scale / top), 0))
        common_scale = top * jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1))
        common_scale = jnp.where(jnp.any(varies), power_of_two(common_scale), common_scale)
        scale = jnp.full_like(scale, common_scale)
    return Frame(location, scale, varies)


def power_of_two(scale):
    """The power of two next above numbers that are above 0, within the normal range; for a power of
    two that one or the next."""
    kind = jnp.finfo(scale.dtype)
    scale = jax.lax.clamp(kind.tiny, scale, kind.max / 4)
    return jax.lax.reduce_precision(1.5 * scale, kind.nexp, mantissa_bits=0)


SMALLEST_PART = 1e-14
"""The smallest scale, as a part of the largest distance: squares of distances stay below the end of
the range of float32."""

NORMAL_QUARTILES = 1.349
"""The interquartile range of the standard normal distribution."""


def middle(x, weights):
    """Median and robust standard deviation (d,) of the present rows of a sample; the second is 0
    where the quartiles are equal."""
    stride = -(-x.shape[0] // tuning.FRAME_UNITS)
    present = rows.spaced(weights, stride) > 0
    count = present.sum()
    ordered = jnp.sort(jnp.where(present[:, None], rows.spaced(x, stride), jnp.inf), axis=0)
    low, median, high = ordered[((count - 1) * jnp.arange(1, 4)) // 4]
    spread = (high - low) / NORMAL_QUARTILES
    if stride > 1:  # the sample may have no present row
        first = rows.unit(x, rows.first(weights > 0))
        median, spread = jnp.where(count > 0, median, first), jnp.where(count > 0, spread, 0)
    return median, spread


def middle_of_cells(x, weights, observed):
    """The same for the observed cells (n, d) of every column."""
    stride = -(-x.shape[0] // tuning.FRAME_UNITS)
    is_present = observed & (weights > 0)[:, None]
    sampled = rows.spaced(is_present, stride)
    count = sampled.sum(0)
    ordered = jnp.sort(jnp.where(sampled, rows.spaced(x, stride), jnp.inf), axis=0)
    places = ((count - 1) * jnp.arange(1, 4)[:, None]) // 4
    low, median, high = jnp.take_along_axis(ordered, jnp.maximum(places, 0), axis=0)
    least = jnp.min(jnp.where(is_present, x, jnp.inf), axis=0)
    least = jnp.where(jnp.isfinite(least), least, jnp.nan)
    is_sampled = count > 0
    spread = jnp.where(is_sampled, (high - low) / NORMAL_QUARTILES, 0)
    return jnp.where(is_sampled, median, least), spread


def over_rows(function, combine, x, weights):
    """`function(x, weights)` of all rows, in chunks for large data: XLA stores the input of a
    sum."""
    n = x.shape[0]
    size = tuning.SURVEY_ROWS
    if roomy(x) or n <= size or rows.are_sharded():
        return function(x, weights)

    def chunk(i):
        begin = jnp.minimum(i * size, n - size)
        block, block_weights = (jax.lax.dynamic_slice_in_dim(a, begin, size) for a in (x, weights))
        return function(block, jnp.where(begin + jnp.arange(size) >= i * size, block_weights, 0))

    def add(total, i):
        return combine(total, chunk(i)), None

    return jax.lax.scan(add, chunk(0), jnp.arange(1, -(-n // size)))[0]


def column_scale(x, weights, mask=None):
    """The weighted mean of every column (d,), 1 where it is 0; without overflow or underflow. mask
    (n, d): which cells count; None: all."""
    present = (weights > 0)[:, None]
    present = present if mask is None else present & mask
    top = jnp.max(jnp.where(present, x, 0), axis=0)
    top = jnp.where(top > 0, top, 1)
    if mask is None:
        share = (weights / weights.sum())[:, None]
    else:
        total = jnp.where(mask, weights[:, None], 0).sum(0)
        share = jnp.where(mask, weights[:, None] / jnp.where(total > 0, total, 1), 0)
    return (share * (x / top)).sum(0) * top + jnp.where(jnp.any(present & (x > 0), axis=0), 0, 1)
