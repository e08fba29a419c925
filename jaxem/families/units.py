"""Location and scale of data, with which they are standardised, without a copy of large data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient

from jaxem.numerics import tuning
from jaxem.numerics.linalg import copies
from jaxem.passes.linear import roomy


class Affine(NamedTuple):
    """data = (x − location) / scale, both (d,)."""

    location: Any
    scale: Any


class Frame(NamedTuple):
    """Location and scale (d,) of standardised data, and the intermediate results of `frame`.

    first: the first present row. reach: the largest distance of a row from it, per feature, so that
    (x − first) / reach is of order 1. centre: the mean of that.
    """

    location: Any
    scale: Any
    first: Any
    reach: Any
    centre: Any

    def standardize(self, x):
        """Rows (n, d) in these units."""
        centre, ratio = (copies(v, x.shape[0]) for v in (self.centre, self.reach / self.scale))
        return ((x - self.first) / self.reach - centre) * ratio


def frame(x, weights, common: bool) -> Frame:
    """The `Frame` of the data; one scale for all features if `common`.

    Two passes about the first present row, so that no digits are lost by an offset or by a scale
    near the ends of the float range. The scale of a constant feature is its magnitude. `first` and
    `reach` are not differentiated, since location and scale do not depend on them.
    """
    first = stop_gradient(jnp.asarray(x)[jnp.argmax(weights > 0)])
    total = weights.sum()

    def farthest(x, weights):
        present = (weights > 0)[:, None]
        return jnp.max(jnp.where(present, jnp.abs(x - first), 0), axis=0)

    def average(of):
        def part(x, weights):
            values = of((x - first) / reach)
            return jnp.matmul(weights / total, values, precision=Precision.HIGHEST)

        return over_rows(part, jnp.add, x, weights)

    reach = over_rows(farthest, jnp.maximum, stop_gradient(x), weights)
    reach = jnp.where(reach > 0, reach, 1)
    centre_of = average(lambda unit: unit)
    variance = average(lambda unit: jnp.square(unit - copies(centre_of, unit.shape[0])))
    rounding = 4 * jnp.finfo(x.dtype).eps
    scale = jnp.sqrt(jnp.where(variance > 0, variance, 1)) * reach  # √0 has no gradient
    scale = jnp.where(variance > 0, scale, 0)
    varies = scale > rounding * jnp.abs(first)
    magnitude = jnp.where(first != 0, jnp.abs(first), 1)
    scale = jnp.where(varies, scale, magnitude)
    if common:
        top = jnp.max(jnp.where(varies, scale, 0))
        top = jnp.where(top > 0, top, jnp.max(scale))
        mean_square = jnp.mean(jnp.where(varies, jnp.square(scale / top), 0))
        common_scale = top * jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1))
        scale = jnp.full_like(scale, common_scale)
    return Frame(first + centre_of * reach, scale, first, reach, centre_of)


def over_rows(function, combine, x, weights):
    """`function(x, weights)` of all rows, in chunks for large data: XLA stores the input of a
    sum."""
    n = x.shape[0]
    rows = tuning.SURVEY_ROWS
    if roomy(x) or n <= rows:
        return function(x, weights)

    def chunk(i):
        begin = jnp.minimum(i * rows, n - rows)
        block, block_weights = (jax.lax.dynamic_slice_in_dim(a, begin, rows) for a in (x, weights))
        return function(block, jnp.where(begin + jnp.arange(rows) >= i * rows, block_weights, 0))

    def add(total, i):
        return combine(total, chunk(i)), None

    return jax.lax.scan(add, chunk(0), jnp.arange(1, -(-n // rows)))[0]


def column_scale(x, weights):
    """The weighted mean of every column (d,), 1 where it is 0; without overflow or underflow."""
    top = jnp.max(jnp.where((weights > 0)[:, None], x, 0), axis=0)
    top = jnp.where(top > 0, top, 1)
    return ((weights / weights.sum())[:, None] * (x / top)).sum(0) * top + jnp.where(
        jnp.any((weights > 0)[:, None] & (x > 0), axis=0), 0, 1
    )
