"""Covariance structures with common principal axes or common variances along them: EVE, VVE, EEV
and VEV. Rescaled features would have other axes: all have one scale."""

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxem.families.normal.common import highest, pooled, variances_of_volumes
from jaxem.families.normal.matrices import ByRepetition, Matrices
from jaxem.numerics.linalg import RAISE_IN_ROUNDINGS, Factor, diagonal, floored, pivot_rounding
from jaxem.numerics.rotations import assembled, common_axes, eigen, value_of_axes
from jaxem.numerics.triangular import times


class VVE(ByRepetition, Matrices):
    """λ_k D A_k Dᵀ: common axes D, by rotations (`common_axes`); the variances along them are
    diag(Dᵀ S_k D). Rotations start from the axes of the previous covariances, and from those of an
    S_k or of their mean, whichever are best before rotations."""

    common_scale = True
    is_volume_shared = False

    def parts(self, count, covariance, previous, floor):
        covariance = floored(covariance, floor)
        starts = self._starts(*map(stop_gradient, (count, covariance, previous)))
        axes = common_axes(covariance, count, starts, self.is_volume_shared)
        return self._along(axes, count, covariance)

    def _nearest(self, covariance):
        """Along the axes of a sum of the covariances, which are their own where they obey the
        relation: without rotations, which take longer to compile than all else."""
        covariance = jnp.asarray(covariance)
        count = jnp.ones(covariance.shape[0], covariance.dtype)
        return self._along(eigen(_mixed(covariance))[1], count, covariance)

    def _starts(self, count, covariance, previous):
        """Axes (2, d, d) to start from."""
        means = jnp.stack([_mixed(previous), pooled(count, covariance)])
        axes = eigen(jnp.concatenate([means, covariance]))[1]
        value = value_of_axes(axes[1:], covariance, count, self.is_volume_shared)
        return jnp.stack([axes[0], axes[1:][jnp.argmin(value)]])

    def _along(self, axes, count, covariance):
        variance = diagonal(times(times(axes.T, covariance), axes))
        if self.is_volume_shared:
            volume = jnp.exp(jnp.log(variance).mean(-1))
            variance = variance * (pooled(count, volume) / volume)[:, None]
        return assembled(axes, variance)

    def n_parameters(self, k, d):
        return k * d + d * (d - 1) // 2


class EVE(VVE):
    """λ D A_k Dᵀ: the same with one volume λ = Σ_k n_k |diag(Dᵀ S_k D)|^(1/d) / n."""

    is_volume_shared = True

    def n_parameters(self, k, d):
        return 1 + k * (d - 1) + d * (d - 1) // 2


def _mixed(covariance):
    """Σ_k c_k Σ_k / tr Σ_k with unlike factors c_k between 1 and 2: the eigenvectors of matrices
    with the same axes are among its own, and its only ones except by accident."""
    k = covariance.shape[0]
    factor = jnp.asarray(1 + np.arange(k) * GOLDEN % 1, covariance.dtype)
    size = jnp.trace(covariance, axis1=-2, axis2=-1)
    return ((factor / size)[:, None, None] * covariance).sum(0)


GOLDEN = (np.sqrt(5) - 1) / 2
"""Its multiples modulo 1 are all different."""


class EEV(ByRepetition, Matrices):
    """λ D_k A D_kᵀ: common variances along the axes of each component, in closed form: the axes of
    S_k, and the means over units of its sorted eigenvalues."""

    common_scale = True

    def parts(self, count, covariance, previous, floor):
        values, axes = eigen(covariance)
        return assembled(axes, _raised(pooled(count, values), floor.max()))

    def is_floored(self, covariance, floor):
        """As in the others, and whether a variance along an axis is on its floor: below a few
        rounding errors of the sum of all."""
        d = covariance.shape[-1]
        least = (1 + RAISE_IN_ROUNDINGS) * pivot_rounding(d, covariance.dtype)
        size = least * jnp.trace(covariance, axis1=-2, axis2=-1)
        lowered = covariance - size[:, None, None] * jnp.eye(d, dtype=covariance.dtype)
        is_low = ~jnp.all(Factor(lowered).pivots > 0, axis=-1)
        return super().is_floored(covariance, floor) | is_low

    def n_parameters(self, k, d):
        return d + k * d * (d - 1) // 2


class VEV(EEV):
    """λ_k D_k A D_kᵀ: the same with a volume for every component, by repetition
    (`diagonal_step`)."""

    def parts(self, count, covariance, previous, floor):
        values, axes = eigen(covariance)
        floor = highest(floor)[..., None]
        log_volume = jnp.log(self.volume(previous))
        return assembled(axes, variances_of_volumes(count, _raised(values, floor), log_volume))

    def n_parameters(self, k, d):
        return k + d - 1 + k * d * (d - 1) // 2


def _raised(values, floor):
    """Sorted eigenvalues (..., d) of at least the floor, and the rounding error of the largest."""
    rounding = RAISE_IN_ROUNDINGS * pivot_rounding(values.shape[-1], values.dtype)
    return jnp.maximum(values, jnp.maximum(floor, rounding * values[..., :1]))
