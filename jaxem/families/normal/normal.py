"""The multivariate normal bank, in 14 covariance structures."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal import incomplete
from jaxem.families.normal.cells import Cells, with_rows
from jaxem.families.normal.completing import Completing
from jaxem.families.normal.domain import NormalDomain
from jaxem.families.normal.gaussian import (
    NormalParams,
    NormalStatistics,
    centred_moments,
    linear_form,
    with_prior_mean,
)
from jaxem.families.normal.moments import LOG_2PI, Limits, centre
from jaxem.families.normal.structures import STRUCTURES
from jaxem.families.units import Affine, frame
from jaxem.numerics.linalg import inverse_trace
from jaxem.numerics.tree import pytree
from jaxem.passes.linear import roomy
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.held import averaged
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.priors import (
    NormalPrior,
    NormalWishartPrior,
    require_kind,
    require_proper,
)
from jaxem.protocol.spaces import REAL
from jaxem.protocol.units import Standardized


@pytree(static=("covariance", "missing"))
class Normal(Completing):
    """Multivariate normal components.

    log p(x | k) = −½ (d log 2π + log |Σ_k| + (x − μ_k)ᵀ Σ_k⁻¹ (x − μ_k))

    Args:
      covariance: "full", "tied" (one for all), "diagonal" or "spherical"; or one of mclust's 14
        names for Σ_k = λ_k D_k A_k D_kᵀ, whose letters say whether the volume λ_k, the shape A_k
        and the orientation D_k are (E)qual in all components, (V)ariable or the (I)dentity: "EII",
        "VII" (spherical), "EEI", "VEI", "EVI", "VVI" (diagonal), "EEE" (tied), "VEE", "EVE", "VVE",
        "EEV", "VEV", "EVV", "VVV" (full). Sources: Celeux & Govaert 1995; Fraley & Raftery 2002.
      prior: a `NormalPrior` for a maximum a posteriori fit, or None for maximum likelihood. Only
        "full", "tied", "diagonal" and "spherical" take one. In a `BayesianMixture` also a
        `NormalWishartPrior`.
      floor: the smallest variance allowed, in squared units of the data. None: the square of the
        rounding error of values near the component's mean (`Limits`), which only a collapsed
        component reaches. The fit then has the status DEGENERATE.
      missing: whether cells may be NaN: they are missing at random, and the density of a row is
        that of its observed cells. A row without any is absent from a fit: its log density is 0.

    Of `Data(x, noise=...)`, with noise (n, d), the known variances of the noise of every cell, or
    (n, d, d), its covariance in every row, the params are those of the values without noise: x =
    v + e with e ~ N(0, noise). Rows that are scored without noise are values of v.

    A feature that is the same in all units says nothing about components: its variance is the
    square of that value (1 where it is 0), or `floor`, and `fit` warns.

    Fits with EVE, VVE, EEV, VEV, EII and VII depend on the units of the features, as principal
    components do.

    Raises ValueError for another covariance, for a prior of a structure that takes none, or for
    data that are not of shape (n, d), TypeError for another prior, floor or missing.
    """

    covariance: str = "full"
    prior: NormalPrior | None = None
    floor: Any = None
    missing: bool = False
    frame: Any = dataclasses.field(default=None, repr=False)  # set by `standardize` alone
    limits: Limits | None = dataclasses.field(default=None, repr=False)  # likewise

    _separate = True

    @property
    def domain(self):
        reals = NormalDomain(
            are_points=not self.missing,
            variances=not self.structure.one_variance,
            takes=("noise",),
            missing=self.missing,
            whole=self.structure.whole,
        )
        return reals if self.prior is None else reals.also(self._check_prior)

    def _check_prior(self, x):
        if isinstance(self.prior, NormalWishartPrior):
            raise TypeError(
                "NormalWishartPrior is for jaxem.BayesianMixture: use jaxem.NormalPrior"
            )
        structure = self.structure
        require_proper(self.prior, x.shape[1], structure.scale_axes, structure.whole)

    def __post_init__(self):
        if self.covariance not in tuple(STRUCTURES):
            names = ", ".join(repr(name) for name in STRUCTURES)
            raise ValueError(f"covariance must be one of {names}, got {self.covariance!r}")
        require_kind(self, NormalPrior, NormalWishartPrior)
        if self.structure.joint and self.prior is not None:
            raise ValueError(
                f"covariance {self.covariance!r} takes no prior, got {type(self.prior).__name__}: "
                'leave it out, or use "VVV", "EEE", "VVI" or "VII"'
            )
        if self.floor is not None:
            finite_number(self.floor, "floor")
        if not isinstance(self.missing, bool):
            raise TypeError(f"missing must be True or False, got {self.missing!r:.40}")

    @property
    def separate(self):
        return super().separate and not (self.structure.shared or self.structure.joint)

    @property
    def structure(self):
        """The covariance structure."""
        return STRUCTURES[self.covariance]

    def init(self, key, x, weights):
        """The M-step for the given weights (n, k), about the weighted means of the components; of a
        structure with an M-step by repetition, one covariance for all components."""
        start = NormalParams(*self.middle(x, weights))
        stats = self._first_statistics(key, start, x, weights)
        if self.structure.joint:
            return self._maximize_jointly(start, stats, self.structure.begin)
        return self.maximize(start, stats)

    def middle(self, x, weights):
        """The weighted mean of the data for every component, and unit covariances."""
        if self.domain.completes(x):
            mean = Cells.of(x).means(weights)
        else:
            share = weights / safe(weights.sum(0))
            mean = jnp.matmul(share.T, self._framed(x), precision=Precision.HIGHEST)
        return mean, self.structure.unit(*mean.shape, mean.dtype)

    def posterior(self, params, x):
        if self.domain.completes(x):
            cells = Cells.of(x)
            covariance = self._covariances(params, cells)
            return incomplete.posterior(params.mean, covariance, cells)
        distance, log_det = self.structure.quadratic(
            params.covariance, centre(self._framed(x), params.mean)
        )
        return None, -0.5 * (x.shape[1] * LOG_2PI + log_det[:, None] + distance).T

    def statistics(self, params, x, q, weights):
        if self.domain.completes(x):
            cells = Cells.of(x)
            covariance = self._covariances(params, cells)
            return self._completed(params.mean, covariance, cells, weights, q)
        return NormalStatistics(*self.structure.moments(weights.T, self._framed(x), params.mean))

    def fused(self, x):
        if not (self.missing and self.structure.whole) or dataclasses.is_dataclass(x):
            return None
        from jaxem.families.normal.patterns import blocked_form  # complete rows do not need it

        return blocked_form(self, x)

    def linear(self, x):
        if self.domain.completes(x):
            return None
        return linear_form(self, x, self.structure.form, lambda params: params.covariance)

    def _size_of_terms(self, params, stats):
        """Σ_k N_k (√κ + ε κ²) in units in which a row's rounding error is ε, with κ about the
        condition number of the correlation matrix.

        A triangular solve is exact for a factor with entries off by ε, others in every row: by √κ,
        the condition number of the factor, that changes the distance of a row. The errors of the
        factor itself, and of the M-step, are those of a covariance with entries off by ε, so that
        the log density is that of other params: at a maximum of the M-step the log-likelihood falls
        by their square, N (ε κ)². Source: Higham 2002, sections 8.1 and 10.1."""
        if not self.structure.whole:
            return 0.0
        kappa = inverse_trace(params.covariance)
        eps = float(jnp.finfo(kappa.dtype).eps)
        each = jnp.broadcast_to(jnp.sqrt(kappa) + eps * jnp.square(kappa), stats.count.shape)
        return jnp.vdot(stats.count, each, precision=Precision.HIGHEST)

    def maximize(self, params, stats):
        return self.maximize_weighted(params, stats, stats.count)

    def maximize_weighted(self, params, stats, scatter_count):
        """The M-step: moments divided by stats.count, the scatter by `scatter_count` (k,)."""
        structure, d, prior = self.structure, params.mean.shape[1], self.prior
        if structure.joint:
            return self._maximize_jointly(params, stats, structure.estimate)
        mean, scatter = centred_moments(structure, params.mean, stats)
        if prior is None:
            divisor = safe(structure.divisor(scatter_count, d))
        else:
            mean, scatter = with_prior_mean(structure, prior, stats.count, mean, scatter)
            scatter = scatter + structure.as_scale(prior.scale, d)
            divisor = structure.divisor(scatter_count, d, prior.df)
        covariance = self.floored(mean, scatter / divisor)
        updated = NormalParams(mean, covariance)
        return updated if prior is not None else self._keep_empty(stats.count, updated, params)

    def _maximize_jointly(self, params, stats, rule):
        """The M-step of a structure that joins its components. rule: its `estimate` or `begin`."""
        structure, count = self.structure, stats.count
        mean, scatter = centred_moments(structure, params.mean, stats)
        covariance = scatter / safe(structure.divisor(count, mean.shape[1]))
        if self.limits is not None:
            covariance = covariance + self.limits.added
        floor = jnp.asarray(self._floor(mean), mean.dtype)
        covariance = rule(count, covariance, params.covariance, floor)
        return NormalParams(jnp.where(is_empty(count)[:, None], params.mean, mean), covariance)

    def restricted(self, held):
        """Closed forms for fixed means, about which the moments are then computed; for tied means,
        where the covariances are tied too; for fixed covariances; and for tied covariances, which
        are the mean of the untied ones by counts."""
        mean, covariance = held.mean, held.covariance
        shared = self.structure.shared
        from jaxem.protocol.restriction import by_rows

        by_whole_rows = None if shared or self.structure.joint else by_rows(self, held)
        if by_whole_rows is not None or (mean.free and covariance.free):
            return by_whole_rows or self.maximize
        if self.prior is not None:
            return self.maximize if mean.free and not covariance.tied else None
        if self.structure.joint and (mean.tied or covariance.tied):
            return None
        if mean.tied and not shared:
            are_tied_alike = covariance.leaders[mean.leaders] == covariance.leaders
            if covariance.fixed.any() or covariance.rows is None or not are_tied_alike.all():
                return None
        if mean.rows is None and (mean.tied or self.structure.whole):
            return None

        def maximize(params, stats):
            count, first = (averaged(mean.leaders, a) for a in (stats.count, stats.first))
            second = stats.second if shared else averaged(mean.leaders, stats.second)
            first = jnp.where(mean.fixed, 0, first)
            updated = self.maximize(params, NormalStatistics(count, first, second))
            if not covariance.tied or shared:
                return updated
            c, group = updated.covariance, covariance.group.ravel()
            weight = jnp.broadcast_to(safe(count).reshape(-1, *(1,) * (c.ndim - 1)), c.shape)
            total, weight = (averaged(group, a.ravel()) for a in (weight * c, weight))
            return NormalParams(updated.mean, (total / weight).reshape(c.shape))

        return maximize

    def variational(self):
        if self.structure.joint:
            raise ValueError(
                f"BayesianMixture takes no covariance {self.covariance!r}, whose parts have no "
                'conjugate prior: use "VVV", "EEE", "VVI" or "VII"'
            )
        if self.missing:
            raise ValueError("BayesianMixture takes no missing=True: use Mixture, or complete rows")
        from jaxem.families.normal.wishart import NormalWishart  # a plain fit needs none

        return NormalWishart(self)

    @property
    def informed(self):
        return self._informed if self.prior is None and not self.structure.joint else None

    def _informed(self, x, weights, k):
        """With the prior of Fraley & Raftery 2007, for uncorrelated features: kappa 0.01, df d + 2,
        scale the variances / k^(2/d). The scale of a constant feature is its magnitude."""
        d, spherical = x.shape[1], self.structure.one_variance
        units = frame(x, weights, spherical)
        share, inner = weights / weights.sum(), units.standardize(x)
        mean = jnp.matmul(share, inner, precision=Precision.HIGHEST)
        variance = jnp.matmul(share, jnp.square(inner - mean), precision=Precision.HIGHEST)
        variance = jnp.where(units.varies, variance, 0 if spherical else 1)
        variance = jnp.mean(variance) if spherical else variance
        variance = jnp.where(variance > 0, variance, 1)
        scale = variance * jnp.square(units.scale[0] if spherical else units.scale) / k ** (2 / d)
        location = units.location + mean * units.scale
        return dataclasses.replace(self, prior=NormalPrior(location, 0.01, d + 2.0, scale))

    def spaces(self, params):
        return NormalParams(REAL, self.structure.space)

    def whitened(self, params, step):
        steps = self.structure.whitened(params.covariance, step.mean, step.covariance)
        return NormalParams(*steps)

    def log_prior(self, params):
        if self.prior is None:
            return 0.0
        d, prior, structure = params.mean.shape[1], self.prior, self.structure
        away = (params.mean - prior.mean)[:, :, None]
        distance, log_det = structure.quadratic(params.covariance, away)
        normal = d * (LOG_2PI - jnp.log(prior.kappa)) + log_det + prior.kappa * distance[:, 0]
        scale = structure.as_scale(prior.scale, d)
        return structure.log_prior(prior.df, scale, params.covariance) - 0.5 * normal.sum()

    def degenerate(self, params):
        return self.structure.is_floored(params.covariance, self._floor(params.mean, 0.0))

    def sample(self, key, params, z):
        noise = jax.random.normal(key, (z.shape[0], params.mean.shape[1]), params.mean.dtype)
        return params.mean[z] + self.structure.colour(params.covariance, z, noise)

    def embed(self, x):
        if self.domain.completes(x):
            return Cells.of(x).filled()
        return self._framed(super().embed(x))

    def standardize(self, x, weights, copy=False):
        structure = self.structure
        cells = Cells.of(x) if self.domain.completes(x) else None
        rows, observed = (x, None) if cells is None else (cells.x, cells.observed)
        data_frame = frame(rows, weights, structure.common_scale, observed)
        location, scale = data_frame.location, data_frame.scale
        lazy = not (roomy(x) or copy) and cells is None
        # Where no feature varies, all count, and every component has collapsed.
        varies = data_frame.varies | ~jnp.any(data_frame.varies)
        if cells is not None and cells.noise is not None:
            varies = jnp.ones_like(varies)
        floor, size = self.floor, jnp.ones_like(scale)
        if floor is not None:
            floor = size = floor / jnp.square(scale[0] if structure.common_scale else scale)
        limits = Limits(varies, structure.on_diagonal(jnp.where(varies, 0, size)))
        prior = self.prior
        if prior is not None:
            spread = structure.as_scale(prior.scale, rows.shape[1])
            prior = dataclasses.replace(
                prior,
                mean=(prior.mean - location) / scale,
                scale=structure.rescale(spread, 1 / scale),
            )
        model = dataclasses.replace(
            self, prior=prior, floor=floor, limits=limits, frame=data_frame if lazy else None
        )
        if cells is not None:
            data = with_rows(x, *cells.standardize(data_frame))
            log_volume = cells.log_volume(weights, scale)
            return Standardized(model, data, Affine(location, scale), log_volume)
        data = x if lazy else data_frame.standardize(x)
        return Standardized(model, data, Affine(location, scale), jnp.log(scale).sum())

    def inward(self, units, params):
        mean = (params.mean - units.location) / units.scale
        covariance = self.structure.rescale(params.covariance, 1 / units.scale)
        return dataclasses.replace(params, mean=mean, covariance=covariance)

    def outward(self, units, params):
        mean = params.mean * units.scale + units.location
        covariance = self.structure.rescale(params.covariance, units.scale)
        return dataclasses.replace(params, mean=mean, covariance=covariance)

    def _framed(self, x):
        return x if self.frame is None else self.frame.standardize(x)

    def _floor(self, mean, of_constants=None):
        """The smallest variances, by component and feature as far as the structure has them.

        of_constants: that of constant features in its place, where features have their own.
        """
        structure = self.structure
        if self.floor is None and self.limits is None:
            return 0.0
        floor = jnp.asarray(self.floor, mean.dtype) if self.floor is not None else None
        if floor is None:
            floor = structure.per_component(self.limits.floor(mean))
        if of_constants is None or self.limits is None or structure.one_variance:
            return floor
        return jnp.where(self.limits.varies, floor, of_constants)

    def floored(self, mean, covariance):
        """The covariances of components with these means (mean, covariance), with variances of at
        least the floor; that of a constant feature is 1, in the units of the arithmetic, or the
        given floor."""
        if self.limits is not None:
            covariance = covariance + self.limits.added
        return self.raised(mean, covariance)

    def raised(self, mean, covariance):
        """The covariance of components with a mean, with variances of at least the floor."""
        return self.structure.floor(covariance, self._floor(mean))

    def _keep_empty(self, count, updated, previous):
        empty = is_empty(count)
        is_kept = jnp.all(empty) if self.structure.shared else empty
        shape = is_kept.shape + (1,) * (updated.covariance.ndim - is_kept.ndim)
        return NormalParams(
            jnp.where(empty[:, None], previous.mean, updated.mean),
            jnp.where(is_kept.reshape(shape), previous.covariance, updated.covariance),
        )
