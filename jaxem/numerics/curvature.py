"""The inverse curvature of a function at a point, from its second derivatives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import tuning
from jaxem.numerics.linalg import times

LEAST_CURVATURE = 1e-8
"""Smaller curvatures, as parts of the largest one, count as 0."""


class Curvature(NamedTuple):
    """The inverse of the curvature of a gain, a matrix or a diagonal, and the coordinates on which
    the gain depends. Others, such as a triangle of a matrix that is not read, do not move."""

    inverse: Any
    alive: Any

    def times(self, slope):
        """The inverse times a gradient."""
        return times(self.inverse, slope) if self.inverse.ndim == 2 else self.inverse * slope

    @classmethod
    def of(cls, gain, origin):
        """The `Curvature` of a function of a vector at `origin`.

        The eigenvalues of its negative Hessian are replaced by their absolute values, those near 0
        by infinity. For many coordinates: a diagonal, 1 over the norms of the rows.
        """
        size, eps = origin.size, float(jnp.finfo(origin.dtype).eps)
        if size == 0:
            return cls(jnp.zeros(0), jnp.zeros(0, bool))
        if size <= tuning.FORMED_CURVATURE:
            curvature = -jax.hessian(gain)(origin)
            alive = jnp.any(curvature != 0, axis=0)
            scale = jnp.sqrt(jnp.abs(jnp.diagonal(curvature)))
            scale = 1 / jnp.where(scale > 0, scale, 1)
            curvature = scale[:, None] * (curvature + curvature.T) / 2 * scale
            values, axes = jnp.linalg.eigh(jnp.where(jnp.isfinite(curvature), curvature, 0))
            values = jnp.abs(values)
            is_flat = values <= max(LEAST_CURVATURE, 8 * size * eps) * values.max()
            axes = scale[:, None] * axes
            return cls(times(axes / jnp.where(is_flat, jnp.inf, values), axes.T), alive)

        def squared(key):
            probe = jax.random.rademacher(key, (size,), origin.dtype)
            return jnp.square(jax.jvp(jax.grad(gain), (origin,), (probe,))[1])

        keys = jax.random.split(jax.random.key(0), tuning.CURVATURE_PROBES)
        rows = jax.lax.map(squared, keys).mean(0)
        return cls(jnp.where(rows > 0, 1 / jnp.sqrt(jnp.where(rows > 0, rows, 1)), 0), rows > 0)
