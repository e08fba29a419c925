"""Covariance structures of whole matrices that are alike in all but volume, or have one volume: VEE
and EVV. They stay what they are when features are rescaled."""

import jax.numpy as jnp
import numpy as np

from jaxem.families.normal.common import CommonParts, centred, pooled
from jaxem.families.normal.full import Full
from jaxem.families.normal.products import inverse
from jaxem.numerics.fixed_points import fixed_point
from jaxem.numerics.linalg import Factor, diagonal, floored
from jaxem.protocol.joined_spaces import RelatedMatrices


class Matrices(CommonParts, Full):
    """Covariance matrices (k, d, d)."""

    related, rank = RelatedMatrices, 2

    def volume(self, covariance, xp=jnp):
        """|Σ_k|^(1/d), (k,)."""
        log_det = Factor(covariance).log_det if xp is jnp else np.linalg.slogdet(covariance)[1]
        return xp.exp(log_det / covariance.shape[-1])


class ByRepetition:
    """A structure whose M-step needs repetition, which takes long to compile: fits start without.
    It comes first in the bases."""

    def begin(self, count, covariance, previous, floor):
        """One covariance for all components: every structure of matrices has that as well."""
        total = jnp.where(jnp.any(count > 0), pooled(count, covariance), previous[0])
        floor = floor.max(0) if floor.ndim == 2 else floor
        return jnp.broadcast_to(floored(total, floor), covariance.shape)


class VEE(ByRepetition, Matrices):
    """λ_k C: matrices in proportion, by repetition of C = Σ_k n_k S_k / λ_k / n and
    λ_k = tr(S_k C⁻¹) / d, of which each maximises Q."""

    def parts(self, count, covariance, previous, floor):
        # A component that has collapsed has a volume at the floor, not 0.
        missing = jnp.maximum(floor - diagonal(covariance), 0)
        eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
        covariance = covariance + missing[..., None] * eye
        start = centred(count, jnp.log(self.volume(previous)))
        log_volume = fixed_point(_matrix_step, start, (count, covariance))
        scale = jnp.exp(log_volume)[:, None, None]
        return scale * _common_matrix(count, covariance, log_volume)

    def n_parameters(self, k, d):
        return k + d * (d + 1) // 2 - 1


def _common_matrix(count, covariance, log_volume):
    scaled = pooled(count, covariance * jnp.exp(-log_volume)[:, None, None])
    return floored(scaled, 0.0)


def _matrix_step(log_volume, given):
    count, covariance = given
    precision, _ = inverse(_common_matrix(count, covariance, log_volume))
    trace = (covariance * precision).sum((-2, -1))
    return centred(count, jnp.log(trace / covariance.shape[-1]))


class EVV(Matrices):
    """λ C_k: matrices with one determinant, in closed form: C_k = S_k / |S_k|^(1/d),
    λ = Σ_k n_k |S_k|^(1/d) / n."""

    def parts(self, count, covariance, previous, floor):
        covariance = floored(covariance, floor)
        volume = self.volume(covariance)
        return covariance * (pooled(count, volume) / volume)[:, None, None]

    def n_parameters(self, k, d):
        return 1 + k * (d * (d + 1) // 2 - 1)
