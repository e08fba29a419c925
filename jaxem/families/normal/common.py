"""What covariance structures with common parts share, in the terms of Σ_k = λ_k D_k A_k D_kᵀ.

λ_k is the volume (|A_k| = 1), A_k the diagonal shape, D_k the orientation. The three letters of a
structure's name say of each whether it is Equal, Variable, or the Identity. Sources: Celeux &
Govaert 1995; Fraley & Raftery 2002. In the M-step S_k is the scatter of component k over its count
n_k, and 2Q = −Σ_k n_k (log |Σ_k| + tr(S_k Σ_k⁻¹)) up to a constant.
"""

from typing import Any

import jax.numpy as jnp

from jaxem.numerics.fixed_points import fixed_point
from jaxem.protocol.counts import is_empty
from jaxem.protocol.joined_spaces import Relation

COLLAPSED = 1e4
"""The factor of the floor up to which a volume counts as collapsed, and the ratio of the variances
of one component. Parts that are common with other components keep variances above the floor."""


class CommonParts:
    """The part of a `Structure` whose M-step joins its components: it comes first in the bases.

    It has `parts(count, covariance, previous, floor)`, the M-step from the counts n_k (k,) and the
    S_k, in the shape of the covariances; `previous` are the covariances of the step before. S_k of
    an empty component is its previous covariance, and n_k is 0: so it keeps what it has of its own.
    """

    joint = True
    related: Any
    """Its kind of `Space`, which takes the relation."""

    rank: int
    """The number of axes of one covariance."""

    def estimate(self, count, covariance, previous, floor):
        """The covariances of the M-step, exact to rounding errors except at the floor."""
        empty = is_empty(count)
        shape = empty.shape + (1,) * (covariance.ndim - 1)
        covariance = jnp.where(empty.reshape(shape), previous, covariance)
        estimated = self.parts(jnp.where(empty, 0, count), covariance, previous, floor)
        return jnp.where(jnp.all(empty), previous, estimated)

    def begin(self, count, covariance, previous, floor):
        """Covariances to start from: the M-step, where that is in closed form."""
        return self.estimate(count, covariance, previous, floor)

    @property
    def space(self):
        name = f"of structure {type(self).__name__}"
        parts = (self._nearest, self._deviation, self._count)
        return self.related(relation=Relation(*parts, name))

    def is_floored(self, covariance, floor):
        """Whether a variance is on its floor, or a component has collapsed but for common parts:
        its volume, or the ratio of its variances, is below `COLLAPSED` times the floor."""
        floor = jnp.asarray(floor, covariance.dtype)
        variance = self.variances(covariance)
        least = COLLAPSED * highest(floor)
        volume, ratio = self.volume(covariance), variance.min(-1) / variance.max(-1)
        return super().is_floored(covariance, floor) | (volume <= least) | (ratio <= least)

    def _nearest(self, covariance):
        """The M-step for one unit a component with these covariances."""
        covariance = jnp.asarray(covariance)
        count = jnp.ones(covariance.shape[0], covariance.dtype)
        return self.parts(count, covariance, covariance, jnp.zeros((), covariance.dtype))

    def _deviation(self, covariance, xp):
        """The largest relative difference between components of what they have in common: volumes,
        matrices of volume 1, traces of their powers, or products in either order."""
        of_volume, of_shape, of_axes = type(self).__name__
        volume = self.volume(covariance, xp)
        scaled = covariance / volume.reshape(*volume.shape, *(1,) * self.rank)
        found = [_spread(volume, 0, xp)] if of_volume == "E" else []
        if of_shape == "E" and of_axes == "V":
            power = scaled
            for _ in range(covariance.shape[-1] - 1):
                found.append(_spread(xp.trace(power, axis1=-2, axis2=-1), 0, xp))
                power = power @ scaled
        elif of_shape == "E":
            found.append(_spread(scaled, self.rank, xp))
        elif of_axes == "E":
            both = scaled @ xp.roll(scaled, 1, -3)
            found.append(xp.max(xp.abs(both - both.swapaxes(-1, -2))) / xp.max(xp.abs(both)))
        return xp.max(xp.stack([xp.asarray(0.0), *found]))

    def _count(self, shape):
        return self.n_parameters(shape[0], shape[-1])


def _spread(values, rank: int, xp):
    """The largest difference from the first component, as a part of the largest value; the axis of
    components is before the last `rank` ones."""
    axis = values.ndim - 1 - rank
    first = xp.take(values, xp.asarray([0]), axis)
    return xp.max(xp.abs(values - first) / xp.max(xp.abs(first)))


def highest(floor):
    """The highest of the floors (k, d) of each component; one for all stays."""
    return floor.max(-1) if floor.ndim == 2 else floor


def pooled(count, values):
    """Σ_k n_k values_k / Σ_k n_k, the mean of all components over units."""
    total = count.sum()
    share = count / jnp.where(total > 0, total, 1)
    return (share.reshape(-1, *(1,) * (values.ndim - 1)) * values).sum(0)


def centred(count, log_volume):
    """log λ_k (k,) about their mean over units."""
    return log_volume - pooled(count, log_volume)


def diagonal_step(log_volume, given):
    """log λ_k after one repetition of: a = Σ_k n_k S_k / λ_k / n, λ_k = tr(S_k / a) / d; for S_k
    (k, d). Each half maximises Q, which is concave in the logarithms. Only ratios of the λ_k
    matter: they are centred."""
    count, variances = given
    rest = pooled(count, variances * jnp.exp(-log_volume)[:, None])
    return centred(count, jnp.log((variances / rest).mean(-1)))


def variances_of_volumes(count, variances, log_volume):
    """The variances λ_k a_j (k, d) that maximise Q. log_volume: log λ_k of the step before."""
    start = centred(count, log_volume)
    log_volume = fixed_point(diagonal_step, start, (count, variances))
    scaled = variances * jnp.exp(-log_volume)[:, None]
    return jnp.exp(log_volume)[:, None] * pooled(count, scaled)
