"""Covariance structures with diagonal matrices and common parts: EII, EEI, VEI and EVI."""

import math

import jax.numpy as jnp

from jaxem.families.normal.common import CommonParts, pooled, variances_of_volumes
from jaxem.families.normal.diagonal import Diagonal
from jaxem.families.normal.spherical import Spherical
from jaxem.protocol.joined_spaces import RelatedVariances


class EII(CommonParts, Spherical):
    """λ I: one variance, in closed form. Shape (k,), all equal."""

    related, rank = RelatedVariances, 0

    def parts(self, count, covariance, previous, floor):
        variance = jnp.maximum(pooled(count, covariance), floor.max())
        return jnp.broadcast_to(variance, covariance.shape)

    def volume(self, covariance, xp=jnp):
        return covariance

    def whitened(self, covariance, mean_step, covariance_step):
        scale = math.sqrt(mean_step.shape[1] / 2)
        return mean_step / jnp.sqrt(covariance)[:, None], scale * covariance_step

    def n_parameters(self, k, d):
        return 1


class Axes(CommonParts, Diagonal):
    """Variances (k, d) of uncorrelated features."""

    related, rank = RelatedVariances, 1

    def volume(self, covariance, xp=jnp):
        return xp.exp(xp.log(covariance).mean(-1))

    def whitened(self, covariance, mean_step, covariance_step):
        return mean_step / jnp.sqrt(covariance), math.sqrt(0.5) * covariance_step


class EEI(Axes):
    """λ A: the same variances in all components, in closed form."""

    def parts(self, count, covariance, previous, floor):
        floor = floor.max(0) if floor.ndim == 2 else floor
        return jnp.broadcast_to(jnp.maximum(pooled(count, covariance), floor), covariance.shape)

    def n_parameters(self, k, d):
        return d


class VEI(Axes):
    """λ_k A: variances in common ratios, by repetition (`diagonal_step`)."""

    def parts(self, count, covariance, previous, floor):
        log_volume = jnp.log(previous).mean(-1)
        return variances_of_volumes(count, jnp.maximum(covariance, floor), log_volume)

    def n_parameters(self, k, d):
        return k + d - 1


class EVI(Axes):
    """λ A_k: variances with a common product, in closed form: A_k = S_k / |S_k|^(1/d),
    λ = Σ_k n_k |S_k|^(1/d) / n."""

    def parts(self, count, covariance, previous, floor):
        covariance = jnp.maximum(covariance, floor)
        volume = self.volume(covariance)
        return covariance * (pooled(count, volume) / volume)[:, None]

    def n_parameters(self, k, d):
        return 1 + k * (d - 1)
