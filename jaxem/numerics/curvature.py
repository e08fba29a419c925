"""The curvature of a function near a point, inverted, from its own derivatives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import tuning
from jaxem.numerics.descent import LEAST_CURVATURE
from jaxem.numerics.linalg import times

"""Numbers up to which the curvature is formed and inverted; above it its rows are measured."""

"""Random products from which they are."""


class Curvature(NamedTuple):
    """An inverse of the curvature of a gain, a matrix or only its diagonal, and the coordinates
    that the gain depends on at all: what no one reads, such as a triangle of a matrix, stays."""

    inverse: Any
    alive: Any

    def times(self, slope):
        return times(self.inverse, slope) if self.inverse.ndim == 2 else self.inverse * slope

    @classmethod
    def of(cls, gain, origin):
        size, eps = origin.size, float(jnp.finfo(origin.dtype).eps)
        if size == 0:
            return cls(jnp.zeros(0), jnp.zeros(0, bool))
        if size <= tuning.FORMED_CURVATURE:
            curvature = -jax.hessian(gain)(origin)
            alive = jnp.any(curvature != 0, axis=0)
            unit = jnp.sqrt(jnp.abs(jnp.diagonal(curvature)))
            unit = 1 / jnp.where(unit > 0, unit, 1)
            curvature = unit[:, None] * (curvature + curvature.T) / 2 * unit
            values, axes = jnp.linalg.eigh(jnp.where(jnp.isfinite(curvature), curvature, 0))
            values = jnp.abs(values)
            flat = values <= max(LEAST_CURVATURE, 8 * size * eps) * values.max()
            axes = unit[:, None] * axes
            return cls(times(axes / jnp.where(flat, jnp.inf, values), axes.T), alive)

        def squared(key):
            probe = jax.random.rademacher(key, (size,), origin.dtype)
            return jnp.square(jax.jvp(jax.grad(gain), (origin,), (probe,))[1])

        keys = jax.random.split(jax.random.key(0), tuning.CURVATURE_PROBES)
        rows = jax.lax.map(squared, keys).mean(0)
        return cls(jnp.where(rows > 0, 1 / jnp.sqrt(jnp.where(rows > 0, rows, 1)), 0), rows > 0)
