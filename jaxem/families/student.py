"""The multivariate t bank, by EM over the latent precision of every unit."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.degrees_of_freedom import (
    information,
    log_constant,
    log_constant_slope,
    tail_slope,
)
from jaxem.families.normal.cells import Cells
from jaxem.families.normal.gaussian import NormalParams, NormalStatistics
from jaxem.families.normal.moments import LOG_2PI, Limits, centre
from jaxem.families.normal.normal import Normal
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.model import Bank
from jaxem.protocol.priors import NormalPrior, require_kind
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import KNOWN, REAL, Reciprocal

DF_RANGE = (0.1, 1e5)
"""The range of estimated degrees of freedom. The upper end is the normal limit: on n normal units
it is √n · 1e-5 nats short of it, to which data of light tails lead."""

DF_START = 10.0

LARGEST_FACTOR = 2.0
"""The largest factor by which a step changes the degrees of freedom. With 4, 1 of 560 climbs from
random starts lowered the objective, with 2 none."""

COMMON = ("full", "tied", "diagonal", "spherical", "VVV", "EEE", "VVI", "VII")
"""The structures of a scale."""


@pytree(eq=False)
class StudentTParams:
    """mean (k, d); scale (k, d, d), but (d, d) tied, (k, d) diagonal, (k,) spherical; df (k,). The
    covariance is scale · df/(df − 2) for df above 2. In the units of the data, scales in their
    squares."""

    mean: Any
    scale: Any
    df: Any


class StudentTStatistics(NamedTuple):
    """Σw (k,), the moments weighted by w·u, and the slope of the log-likelihood by τ = 1/df as a
    line in τ, level + bend·τ, with Σw·level (k,) and Σw·bend (k,)."""

    count: Any
    moments: NormalStatistics
    level: Any
    bend: Any


@pytree(static=("covariance", "missing"))
class StudentT(Bank):
    """Multivariate t components; q is u (n, k), the expected precision of a unit.

    log p(x | k) = log Γ((ν+d)/2) − log Γ(ν/2) − ½ log |S| − (d/2) log νπ − ((ν+d)/2) log(1 + δ/ν),
    δ = (x−μ)ᵀ S⁻¹ (x−μ), and u = (ν+d)/(ν+δ).

    Args:
      df: the degrees of freedom of every component, or None to estimate each by maximum
        likelihood, between 0.1 and 1e5.
      covariance: the structure of the scales, as in `Normal`: "full", "tied" (one for all),
        "diagonal" or "spherical", or mclust's "VVV", "EEE", "VVI" or "VII". The features of a unit
        share one u in all of them, so that a diagonal scale is not a product of univariate t.
      prior: a `NormalPrior` of (mean, scale), or None.
      floor: the smallest variance of a scale, as in `Normal`.
      missing: whether cells may be NaN, as in `Normal`; then d, δ and S above are those of the
        observed cells of a row.

    Without a prior the scatter is divided by Σwu rather than Σw: parameter-expanded EM, the same
    optimum in a tenth of the steps (Kent, Tyler & Vardi 1994; Liu, Rubin & Wu 1998). The degrees of
    freedom take a Newton step on the observed log-likelihood, not on its expectation given u (ECME;
    Liu & Rubin 1995), in τ = 1/df, by the larger of the observed and the expected information.
    Without a prior S · (1 + 2τ), nearly uncorrelated with τ, is held fixed in that step; of
    a tied S the product with the geometric mean of the (1 + 2τ), weighted by counts.

    Data: (n, d). Raises ValueError or TypeError for another covariance, prior or missing, a df
    that is not above 0, or a floor below 0. Source of the mixture: Peel & McLachlan 2000.
    """

    df: Any = None
    covariance: str = "full"
    prior: NormalPrior | None = None
    floor: Any = None
    missing: bool = False
    limits: Limits | None = dataclasses.field(default=None, repr=False)  # set by `standardize`

    @property
    def domain(self):
        return dataclasses.replace(self._normal.domain, takes=())

    def __post_init__(self):
        require_kind(self, NormalPrior)
        if self.covariance not in COMMON:
            names = ", ".join(map(repr, COMMON))
            raise ValueError(f"covariance must be one of {names}, got {self.covariance!r}")
        if not isinstance(self.missing, bool):
            raise TypeError(f"missing must be True or False, got {self.missing!r:.40}")
        if self.floor is not None:
            finite_number(self.floor, "floor")
        if self.df is not None:
            finite_number(self.df, "df", above=True)

    def init(self, key, x, weights):
        start = self._normal.init(key, x, weights)
        df = DF_START if self.df is None else self.df
        k = weights.shape[1]
        return self._params(start, jnp.broadcast_to(jnp.asarray(df, x.dtype), (k,)))

    def posterior(self, params, x):
        d, df = x.shape[1], self._df(params)
        if self.missing:
            return self._posterior_of_cells(params, Cells.of(x), df)
        structure = self._normal.structure
        distance, log_det = structure.quadratic(params.scale, centre(x, params.mean))
        constant = log_constant(1 / df, d) - d / 2 * LOG_2PI - 0.5 * log_det
        tail = (df + d) / 2 * jnp.log1p(distance.T / df)
        return (df + d) / (df + distance.T), constant - tail

    def statistics(self, params, x, q, weights):
        if self.missing:
            cells = Cells.of(x)
            weights = jnp.where(cells.any[:, None], weights, 0)
            moments = self._normal.scaled_statistics(self._as_normal(params), cells, weights, q)
        else:
            moments = self._normal.statistics(self._as_normal(params), x, None, weights * q)
        count = weights.sum(0)
        if self.df is not None:
            return StudentTStatistics(count, moments, jnp.zeros_like(count), jnp.zeros_like(count))
        d, df = x.shape[1], params.df
        tau, expanded = 1 / df, self._scale_follows

        def of_constant(d):
            slope = partial(log_constant_slope, d=d)
            return jax.jvp(slope, (tau,), (jnp.ones_like(tau),))

        of_constants = of_constant(d)
        if self.missing:
            of_constants = _by_count(cells, of_constant)
            d = cells.observed.sum(1).astype(x.dtype)[:, None]
        distance = (df + d) / q - df
        value, bend = tail_slope(distance, tau, d, expanded)
        value, bend = value + of_constants[0], bend + of_constants[1]
        level = (weights * (value - bend * tau)).sum(0)
        return StudentTStatistics(count, moments, level, (weights * bend).sum(0))

    def maximize(self, params, stats):
        return self._maximize(params, stats, False)

    def _maximize(self, params, stats, fixed):
        """The M-step; fixed: whose degrees of freedom are, (k,) or one for all."""
        normal, df, count, shared = self._normal, self._df(params), stats.count, self._is_shared
        divisor = stats.moments.count
        if shared:  # the expansion of all components is one number
            total, weighted = (jnp.where(count > 0, df * a, 0).sum() for a in (count, divisor))
            divisor = count * weighted / safe(total)
        divisor = jnp.where(self._expanded, divisor, count)
        before = self._as_normal(params)
        after = normal.maximize_weighted(before, stats.moments, divisor)
        if self.df is None:
            df, stretch = self._df_step(params, stats, fixed)
            scale = after.covariance
            if shared:
                share = count / safe(count.sum())
                scale = scale * jnp.exp((share * jnp.log(stretch)).sum())
            else:
                scale = scale * stretch.reshape(-1, *(1,) * (scale.ndim - 1))
            after = NormalParams(after.mean, normal.raised(after.mean, scale))
        updated = self._params(after, df)
        if not shared:
            return keep_empty(count, updated, params)
        kept = keep_empty(count, (updated.mean, df), (params.mean, params.df))
        return StudentTParams(kept[0], updated.scale, kept[1])

    def _df_step(self, params, stats, fixed):
        """The degrees of freedom after a Newton step in τ, and the factor (k,) of the scale that
        keeps S · (1 + 2τ)."""
        df, count, expanded = params.df, stats.count, self._expanded
        tau = 1 / df
        expected = count * information(tau, params.mean.shape[1], self._scale_follows)
        curvature = jnp.maximum(expected, -stats.bend)
        slope = stats.level + stats.bend * tau
        if self._is_shared:
            # By log |S|^(1/d) the log-likelihood of component k has the slope ν (Σw − Σwu) / 2.
            share = count / safe(count.sum())
            of_scale = (df * (count - stats.moments.count)).sum() / 2
            slope = slope - jnp.where(expanded, share * 2 / (1 + 2 * tau) * of_scale, 0)
        proposal = tau + slope / jnp.where(curvature <= 0, 1, curvature)
        proposal = jnp.clip(proposal, tau / LARGEST_FACTOR, tau * LARGEST_FACTOR)
        proposal = jnp.clip(proposal, 1 / DF_RANGE[1], 1 / DF_RANGE[0])
        proposal = jnp.where(fixed | (curvature <= 0), tau, proposal)
        stretch = jnp.where(expanded, (1 + 2 * tau) / (1 + 2 * proposal), 1)
        return jnp.where(fixed, df, 1 / proposal), stretch

    def _posterior_of_cells(self, params, cells, df):
        """The posterior of the observed cells of every row."""
        found = self._normal.given(self._as_normal(params), cells)
        count = cells.observed.sum(1).astype(df.dtype)[:, None]
        (constant,) = _by_count(cells, lambda d: (log_constant(1 / df, d),))
        distance = found.distance.T
        level = constant - 0.5 * (count * LOG_2PI + found.log_det.T)
        tail = (df + count) / 2 * jnp.log1p(distance / df)
        return (df + count) / (df + distance), level - tail

    @property
    def _expanded(self):
        """Whether the whole scale is free, as parameter expansion needs: there is no prior, and no
        feature is constant, whose scale is fixed."""
        if self.prior is not None or self.limits is None:
            return self.prior is None
        return jnp.all(self.limits.varies)

    @property
    def _is_shared(self):
        """Whether all components have one scale."""
        return self._normal.structure.shared

    @property
    def _scale_follows(self):
        """Whether the slopes by τ are those with S · (1 + 2τ) held fixed, not S."""
        return jnp.logical_and(self._expanded, not self._is_shared)

    def restricted(self, held):
        """Closed forms for means that are fixed as a whole, about which the moments are then
        computed, and for any fixed degrees of freedom."""
        rows, has_no_closed_form = (
            held.mean.rows,
            held.mean.tied or held.df.tied or not held.scale.free,
        )
        if self._is_shared:
            is_free = held.mean.free and held.scale.free and not held.df.tied
            return partial(self._maximize, fixed=held.df.fixed) if is_free else None
        if rows is None or has_no_closed_form or (self.prior is not None and rows[0].any()):
            return by_rows(self, held)
        is_free = jnp.where(rows[0], 0, 1)[:, None]

        def maximize(params, stats):
            moments = stats.moments._replace(first=is_free * stats.moments.first)
            return self._maximize(params, stats._replace(moments=moments), held.df.fixed)

        return maximize

    def spaces(self, params):
        df = Reciprocal(*DF_RANGE) if self.df is None else KNOWN
        return StudentTParams(REAL, self._normal.structure.space, df)

    def whitened(self, params, step):
        normal = self._normal.whitened(self._as_normal(params), self._as_normal(step))
        if self.df is not None:
            return self._params(normal, step.df / params.df)
        information_of_tau = information(1 / params.df, params.mean.shape[1], self._scale_follows)
        return self._params(normal, jnp.sqrt(information_of_tau) * step.df)

    def log_prior(self, params):
        return self._normal.log_prior(self._as_normal(params))

    def degenerate(self, params):
        return self._normal.degenerate(self._as_normal(params))

    def sample(self, key, params, z):
        noise, mix = jax.random.split(key)
        df = params.df[z]
        normal = self._normal.sample(noise, self._as_normal(params), z)
        precision = jax.random.gamma(mix, df / 2, dtype=df.dtype) / (df / 2)
        return params.mean[z] + (normal - params.mean[z]) / jnp.sqrt(precision)[:, None]

    def embed(self, x):
        return self._normal.embed(x)

    def completed(self, params, x):
        return self._normal.completed(self._as_normal(params), x)

    def drawn(self, key, params, x, z):
        """A precision is drawn given the observed cells, and a normal row given both."""
        of_normal, of_precision = jax.random.split(key)
        cells, df = Cells.of(x), self._df(params)
        found = self._normal.given(self._as_normal(params), cells)
        distance = jnp.take_along_axis(found.distance.T, z[:, None], axis=1)[:, 0]
        shape = (df[z] + cells.observed.sum(1)) / 2
        gamma = jax.random.gamma(of_precision, shape, dtype=df.dtype)
        spread = jnp.sqrt((df[z] + distance) / 2 / gamma)
        normal = self._normal.drawn(of_normal, self._as_normal(params), x, z)
        means = self.completed(params, x)
        mean = jnp.take_along_axis(means, z[:, None, None], axis=1)[:, 0]
        moved = mean + (normal - mean) * spread[:, None]
        return jnp.where(cells.observed, cells.x, moved)

    def n_parameters(self, params):
        estimated = params.df.size if self.df is None else 0
        return self._normal.n_parameters(self._as_normal(params)) + estimated

    def standardize(self, x, weights):
        inner = self._normal.standardize(x, weights, copy=True)
        normal = inner.model
        model = dataclasses.replace(
            self, prior=normal.prior, floor=normal.floor, limits=normal.limits
        )
        return inner._replace(model=model)

    def inward(self, units, params):
        return self._params(self._normal.inward(units, self._as_normal(params)), params.df)

    def outward(self, units, params):
        return self._params(self._normal.outward(units, self._as_normal(params)), params.df)

    def _df(self, params):
        """The degrees of freedom of the model where it has them, so that the objective depends on
        them directly; else those of params."""
        df = params.df
        return df if self.df is None else jnp.broadcast_to(jnp.asarray(self.df, df.dtype), df.shape)

    @property
    def _normal(self):
        options = {"missing": self.missing, "limits": self.limits}
        return Normal(self.covariance, self.prior, self.floor, **options)

    @staticmethod
    def _as_normal(params):
        return NormalParams(params.mean, params.scale)

    @staticmethod
    def _params(normal, df):
        return StudentTParams(normal.mean, normal.covariance, df)


def _by_count(cells, function):
    """`function(d) -> a tuple of (k,)` for the number d of observed cells of every row: (n, k)
    each."""
    d = cells.observed.shape[1]
    is_count = cells.observed.sum(1)[:, None] == jnp.arange(d + 1)
    stacked = zip(*(function(i) for i in range(1, d + 1)), strict=True)
    tables = [jnp.stack([jnp.zeros_like(values[0]), *values]) for values in stacked]
    is_count = is_count.astype(tables[0].dtype)
    return [jnp.matmul(is_count, table, precision=Precision.HIGHEST) for table in tables]
