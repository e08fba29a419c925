"""Factor analysis and probabilistic principal components, one for every component of a mixture."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families import factor_steps as steps
from jaxem.families.normal.full import Full, FullForm
from jaxem.families.normal.gaussian import NormalStatistics, linear_form
from jaxem.families.normal.moments import LOG_2PI, Limits, centre
from jaxem.families.units import Affine, frame
from jaxem.numerics.linalg import diagonal
from jaxem.numerics.tree import pytree
from jaxem.numerics.triangular import times
from jaxem.passes.linear import roomy
from jaxem.protocol import domains
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.joined_spaces import LOADINGS
from jaxem.protocol.model import Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO, REAL
from jaxem.protocol.units import Standardized

NOISES = ("diagonal", "spherical")

LEAST_UNIQUENESS = 0.5
"""The power of ε that is the smallest variance of the noise, as a part of that of its feature."""

ON_FLOOR = 1.5
"""The factor of the floor up to which a variance counts as on it: the part of a feature's variance
that the factors explain is not exactly the rest where the noise is on its floor."""

MOMENTS = Full()


@pytree(eq=False)
class FactorParams:
    """mean (k, d); loadings (k, d, rank), or (d, rank) where they are shared; noise: variances
    (k, d), or (k,) where the noise is spherical, without the axis k where it is shared. Mean and
    loadings are in the units of the data, noise in their squares."""

    mean: Any
    loadings: Any
    noise: Any


class FactorForm(FullForm):
    """Products of features with the precision of a factor model."""

    def _inverse(self, mean, covariance):
        loadings, noise = covariance
        given, _, log_det = steps.projection(loadings, noise)
        weighted = loadings / noise[..., None]
        precision = -times(weighted, given)
        precision = (precision + precision.swapaxes(-1, -2)) / 2
        eye = jnp.eye(noise.shape[-1], dtype=noise.dtype)
        return precision + eye / noise[..., None], log_det

    def terms(self, mean, covariance):
        loadings, noise = covariance
        precision, _ = self._inverse(mean, covariance)
        reach = jnp.sqrt(jnp.square(mean) + noise + jnp.square(loadings).sum(-1))
        return (reach[:, :, None] * jnp.abs(precision) * reach[:, None, :]).sum((1, 2))


@pytree(static=("rank", "noise", "shared_noise", "shared_loadings"))
class Factors(Bank):
    """Normal components with few factors: x = mean_j + Λ_j z + e, z ~ N(0, 1), e ~ N(0, Ψ_j).

    log p(x | j) = −½ (d log 2π + log |Σ_j| + (x − μ_j)ᵀ Σ_j⁻¹ (x − μ_j)), Σ_j = Λ_j Λ_jᵀ + Ψ_j

    Args:
      rank: the number of factors, an int from 1 to below d.
      noise: "diagonal", a variance for every feature, which is factor analysis (Rubin & Thayer
        1982; mixtures: Ghahramani & Hinton 1996), or "spherical", one for all features, which is
        probabilistic principal component analysis (Tipping & Bishop 1999).
      shared_noise, shared_loadings: whether all components have one Ψ, or one Λ (McNicholas &
        Murphy 2008).

    The M-step is over loadings and noise with the factors integrated out: a closed form for
    spherical noise, a safeguarded Newton step for diagonal noise, and EM steps for shared loadings
    with noise by component. Loadings are identified up to a rotation, whose angles do not count as
    parameters. They are returned with Λᵀ Ψ⁻¹ Λ diagonal, the largest entry first, and the largest
    entry of a column, in units of the noise, positive; Ψ⁻¹ is the mean over the components where
    loadings alone are shared. So their gradients exist too, unless two entries of that diagonal are
    equal.

    The variance of the noise is at least √ε of that of the feature in the component, for float64
    1.5e-8. Where the maximum is at a uniqueness of 0 (a Heywood case), or a component has collapsed
    onto few points, the fit has the status DEGENERATE: use fewer factors or share the noise.

    Raises ValueError for another noise, a rank that is no int of 1 or more, or data of shape
    (n, d) with d <= rank, TypeError where shared_noise or shared_loadings is no bool.
    """

    rank: int
    noise: str = "diagonal"
    shared_noise: bool = False
    shared_loadings: bool = False
    frame: Any = dataclasses.field(default=None, repr=False)  # set by `standardize` alone
    limits: Limits | None = dataclasses.field(default=None, repr=False)  # likewise

    _separate = True

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(
                f"rank must be an int of 1 or more, got {self.rank!r}: without factors use "
                "Normal('diagonal') or Normal('spherical')"
            )
        if self.noise not in NOISES:
            raise ValueError(f"noise must be 'diagonal' or 'spherical', got {self.noise!r}")
        for name in ("shared_noise", "shared_loadings"):
            value = vars(self)[name]
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")

    @property
    def domain(self):
        points = domains.POINTS if self._spherical else domains.SPREAD_POINTS
        return points.also(self._check_width)

    def _check_width(self, x):
        if x.shape[1] <= self.rank:
            raise ValueError(
                f"Factors(rank={self.rank}) needs data with more than {self.rank} columns, got "
                f"{x.shape[1]}: use a smaller rank, or Normal() for any covariance"
            )

    @property
    def separate(self):
        return super().separate and not (self.shared_noise or self.shared_loadings)

    @property
    def _spherical(self):
        return self.noise == "spherical"

    def init(self, key, x, weights):
        """The weighted means and, at noise of half the variances, the best loadings."""
        framed = self._framed(x)
        share = weights / safe(weights.sum(0))
        mean = jnp.matmul(share.T, framed, precision=Precision.HIGHEST)
        stats = NormalStatistics(*MOMENTS.moments(weights.T, framed, mean))
        covariance = self._covariances(mean, stats)[1]
        share = stats.count / safe(stats.count.sum())
        noise = jnp.maximum(diagonal(covariance) / 2, self._floor(mean, covariance))
        if self._spherical:
            noise = jnp.broadcast_to(noise.mean(-1, keepdims=True), noise.shape)
        pooled_noise = jnp.tensordot(share, noise, 1)[None]
        noise = pooled_noise if self.shared_noise else noise
        if self.shared_loadings:
            covariance = jnp.tensordot(share, covariance, 1)[None]
        at = pooled_noise if self.shared_loadings else noise
        at = jnp.broadcast_to(at, covariance.shape[:2])
        loadings = steps.signed(steps.loadings_at(at, covariance, self.rank)[0], at)
        return self._assembled(mean, loadings, noise)

    def posterior(self, params, x):
        loadings, noise = self._of_components(params)
        given, _, log_det = steps.projection(loadings, noise)
        centred = centre(self._framed(x), params.mean)
        factors = times(given, centred)
        left = centred - times(loadings, factors)
        distance = (jnp.square(left) * (1 / noise)[..., None]).sum(1) + jnp.square(factors).sum(1)
        return None, -0.5 * (x.shape[1] * LOG_2PI + log_det[:, None] + distance).T

    def scores(self, params, x):
        """E[z | x, component] of every unit, (n, k, rank): the regression scores of Thomson."""
        given, *_ = steps.projection(*self._of_components(params))
        return times(given, centre(self._framed(x), params.mean)).transpose(2, 0, 1)

    def covariance(self, params):
        """Σ_j = Λ_j Λ_jᵀ + Ψ_j, (k, d, d)."""
        loadings, noise = self._of_components(params)
        eye = jnp.eye(noise.shape[-1], dtype=noise.dtype)
        return times(loadings, loadings.swapaxes(-1, -2)) + noise[..., None] * eye

    def statistics(self, params, x, q, weights):
        return NormalStatistics(*MOMENTS.moments(weights.T, self._framed(x), params.mean))

    def linear(self, x):
        return linear_form(self, x, FactorForm(), self._of_components)

    def maximize(self, params, stats):
        mean, covariance = self._covariances(params.mean, stats)
        floor, total = self._floor(mean, covariance), safe(stats.count.sum())
        share = stats.count / total
        old_loadings, old_noise = self._of_components(params)
        if self.shared_loadings and not self.shared_noise and len(mean) > 1:
            loadings, noise = steps.shared_loadings_step(
                covariance, share, old_loadings[:1], old_noise, floor, self._spherical
            )
        else:
            pooled = self.shared_noise or self.shared_loadings
            if pooled:
                floor = jnp.tensordot(share, floor, 1)[None]
            if self.shared_loadings:
                covariance = jnp.tensordot(share, covariance, 1)[None]
                share = jnp.ones_like(share[:1])
            if self._spherical:
                loadings, noise = steps.spherical_step(
                    covariance, share, floor[:, 0], self.rank, pooled
                )
            else:
                start = old_noise[:1] if pooled else old_noise
                loadings, noise = steps.diagonal_step(
                    covariance, share, start, floor, self.rank, pooled
                )
        return self._keep_empty(stats.count, self._assembled(mean, loadings, noise), params)

    def restricted(self, held):
        """Closed forms for means that are fixed as a whole, about which the moments are then
        computed, and for components held as a whole."""
        is_shared = self.shared_noise or self.shared_loadings
        of_whole_rows = None if is_shared else by_rows(self, held)
        has_others = not (held.loadings.free and held.noise.free)
        if of_whole_rows is not None or has_others or held.mean.rows is None or held.mean.tied:
            return of_whole_rows
        is_free = jnp.where(held.mean.rows[0], 0, 1)[:, None]
        return lambda params, stats: self.maximize(
            params, stats._replace(first=is_free * stats.first)
        )

    def spaces(self, params):
        return FactorParams(REAL, LOADINGS, ABOVE_ZERO)

    def whitened(self, params, step):
        loadings, noise = self._of_components(params)
        variance = noise + jnp.square(loadings).sum(-1)
        size = jnp.sqrt(noise)[..., None]
        size = size[0] if self.shared_loadings else size
        information = params.mean.shape[1] / 2 if self._spherical else 0.5
        return FactorParams(
            step.mean / jnp.sqrt(variance),
            step.loadings / size,
            math.sqrt(information) * step.noise / params.noise,
        )

    def degenerate(self, params):
        """Whether the noise of a component is on its floor, (k,)."""
        loadings, noise = self._of_components(params)
        variance = noise + jnp.square(loadings).sum(-1)
        if self._spherical:
            noise, variance = noise[:, :1], variance.mean(-1, keepdims=True)
        least = self._least(noise) * variance
        if self.limits is not None:
            smallest = self.limits.floor(params.mean)
            smallest = smallest.max(-1, keepdims=True) if self._spherical else smallest
            least = jnp.maximum(least, smallest)
        return jnp.any(noise <= ON_FLOOR * least, axis=-1)

    def sample(self, key, params, z):
        loadings, noise = self._of_components(params)
        of_factors, of_noise = jax.random.split(key)
        n, d, dtype = z.shape[0], params.mean.shape[1], params.mean.dtype
        factors = jax.random.normal(of_factors, (n, self.rank), dtype)
        x = params.mean[z] + jnp.sqrt(noise)[z] * jax.random.normal(of_noise, (n, d), dtype)
        return x + jnp.einsum("ndq,nq->nd", loadings[z], factors, precision=Precision.HIGHEST)

    def embed(self, x):
        return self._framed(super().embed(x))

    def standardize(self, x, weights):
        units = frame(x, weights, common=self._spherical)
        location, scale = units.location, units.scale
        is_lazy = not roomy(x)
        varies = units.varies | ~jnp.any(units.varies)
        added = jnp.zeros_like(scale) if self._spherical else jnp.where(varies, 0, 1.0)
        limits = Limits(varies, added.astype(scale.dtype))
        model = dataclasses.replace(self, limits=limits, frame=units if is_lazy else None)
        data = x if is_lazy else units.standardize(x)
        return Standardized(model, data, Affine(location, scale), jnp.log(scale).sum())

    def inward(self, units, params):
        return self._rescaled((params.mean - units.location) / units.scale, params, 1 / units.scale)

    def outward(self, units, params):
        return self._rescaled(params.mean * units.scale + units.location, params, units.scale)

    def _rescaled(self, mean, params, scale):
        variances = jnp.square(scale[0] if self._spherical else scale)
        return FactorParams(mean, params.loadings * scale[:, None], params.noise * variances)

    def _framed(self, x):
        return x if self.frame is None else self.frame.standardize(x)

    def _of_components(self, params):
        """Loadings (k, d, rank) and noise (k, d) of every component."""
        k, d = params.mean.shape
        noise = params.noise[..., None] if self._spherical else params.noise
        return jnp.broadcast_to(params.loadings, (k, d, self.rank)), jnp.broadcast_to(noise, (k, d))

    def _assembled(self, mean, loadings, noise):
        """Params from loadings (g, d, rank) and noise (m, d), or (m, 1), in the model's shapes."""
        noise = noise[..., 0] if self._spherical else noise
        return FactorParams(
            mean,
            loadings[0] if self.shared_loadings else loadings,
            noise[0] if self.shared_noise else noise,
        )

    def _covariances(self, mean, stats):
        """The means (k, d) of the data and the covariances (k, d, d) about them, from the moments
        about `mean`; the variance of a constant feature is 1, in the units of the arithmetic."""
        count = safe(stats.count)
        shift = stats.first / count[:, None]
        covariance = stats.second / count[:, None, None] - shift[:, :, None] * shift[:, None, :]
        if self.limits is not None:
            covariance = covariance + jnp.diag(self.limits.added)
        return mean + shift, covariance

    @staticmethod
    def _least(noise):
        return float(jnp.finfo(noise.dtype).eps) ** LEAST_UNIQUENESS

    def _floor(self, mean, covariance):
        """The smallest variances of the noise, (k, d)."""
        variance = diagonal(covariance)
        if self._spherical:
            variance = jnp.broadcast_to(variance.mean(-1, keepdims=True), variance.shape)
        smallest = jnp.finfo(mean.dtype).tiny
        if self.limits is not None:
            smallest = self.limits.floor(mean)
            smallest = smallest.max(-1, keepdims=True) if self._spherical else smallest
        return jnp.maximum(self._least(mean) * variance, smallest)

    def _keep_empty(self, count, updated, previous):
        empty = is_empty(count)

        def kept(new, old, is_shared):
            is_kept = jnp.all(empty) if is_shared else empty
            return jnp.where(
                is_kept.reshape(is_kept.shape + (1,) * (new.ndim - is_kept.ndim)), old, new
            )

        return FactorParams(
            kept(updated.mean, previous.mean, False),
            kept(updated.loadings, previous.loadings, self.shared_loadings),
            kept(updated.noise, previous.noise, self.shared_noise),
        )
