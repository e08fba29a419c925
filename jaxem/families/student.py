"""The multivariate t bank, by EM over the latent precision of every unit."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.families.normal.gaussian import NormalParams, NormalStatistics
from jaxem.families.normal.moments import LOG_2PI, Limits, centre
from jaxem.families.normal.normal import Normal
from jaxem.numerics.special import half_gamma_ratio, half_gamma_ratio_slope
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import keep_empty
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.model import Bank
from jaxem.protocol.priors import NormalPrior, require_kind
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import KNOWN, POSITIVE_DEFINITE, REAL, Reciprocal

DF_RANGE = (0.1, 1e5)
"""The range of estimated degrees of freedom. The upper end is the normal limit: on n normal units
it is √n · 1e-5 nats short of it, to which data of light tails lead."""

DF_START = 10.0

LARGEST_FACTOR = 2.0
"""The largest factor by which a step changes the degrees of freedom. With 4, 1 of 560 climbs from
random starts lowered the objective, with 2 none."""

SMALL = 0.05
"""Arguments up to which `_tail_slope` is a series."""


@pytree(eq=False)
class StudentTParams:
    """mean (k, d), scale (k, d, d), df (k,); the covariance is scale · df/(df − 2)."""

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


@pytree
class StudentT(Bank):
    """Multivariate t components; q is u (n, k), the expected precision of a unit.

    log p(x | k) = log Γ((ν+d)/2) − log Γ(ν/2) − ½ log |S| − (d/2) log νπ − ((ν+d)/2) log(1 + δ/ν),
    δ = (x−μ)ᵀ S⁻¹ (x−μ), and u = (ν+d)/(ν+δ).

    Args:
      df: the degrees of freedom of every component, or None to estimate each by maximum
        likelihood within `DF_RANGE`.
      prior: a `NormalPrior` of (mean, scale), or None.
      floor: the smallest variance of a scale, as in `Normal`.

    Without a prior the scatter is divided by Σwu rather than Σw: parameter-expanded EM, the same
    optimum in a tenth of the steps (Kent, Tyler & Vardi 1994; Liu, Rubin & Wu 1998). The degrees of
    freedom take a Newton step on the observed log-likelihood, not on its expectation given u (ECME;
    Liu & Rubin 1995), in τ = 1/df, by the larger of the observed and the expected information.
    Without a prior S · (1 + 2τ), which is nearly uncorrelated with τ, is held fixed in that step.
    """

    df: Any = None
    prior: NormalPrior | None = None
    floor: Any = None
    limits: Limits | None = dataclasses.field(default=None, repr=False)  # set by `standardize`

    @property
    def domain(self):
        return self._normal.domain

    def __post_init__(self):
        require_kind(self, NormalPrior)
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
        structure = self._normal.structure
        distance, log_det = structure.quadratic(params.scale, centre(x, params.mean))
        constant = log_constant(1 / df, d) - d / 2 * LOG_2PI - 0.5 * log_det
        tail = (df + d) / 2 * jnp.log1p(distance.T / df)
        return (df + d) / (df + distance.T), constant - tail

    def statistics(self, params, x, q, weights):
        moments = self._normal.statistics(self._as_normal(params), x, None, weights * q)
        count = weights.sum(0)
        if self.df is not None:
            return StudentTStatistics(count, moments, jnp.zeros_like(count), jnp.zeros_like(count))
        d, df = x.shape[1], params.df
        tau, expanded = 1 / df, self._expanded
        distance = (df + d) / q - df
        value, bend = tail_slope(distance, tau, d, expanded)
        of_constant = jax.jvp(lambda tau: log_constant_slope(tau, d), (tau,), (jnp.ones_like(tau),))
        value, bend = value + of_constant[0], bend + of_constant[1]
        level = (weights * (value - bend * tau)).sum(0)
        return StudentTStatistics(count, moments, level, (weights * bend).sum(0))

    def maximize(self, params, stats):
        return self._maximize(params, stats, False)

    def _maximize(self, params, stats, fixed):
        """The M-step; fixed: whose degrees of freedom are, (k,) or one for all."""
        expanded = self._expanded
        scatter_count = jnp.where(expanded, stats.moments.count, stats.count)
        normal_params = self._normal.maximize_weighted(
            self._as_normal(params), stats.moments, scatter_count
        )
        df = self._df(params)
        if self.df is None:
            tau = 1 / df
            expected = stats.count * information(tau, params.mean.shape[1], expanded)
            curvature = jnp.maximum(expected, -stats.bend)
            slope = stats.level + stats.bend * tau
            proposal = tau + slope / jnp.where(curvature <= 0, 1, curvature)
            proposal = jnp.clip(proposal, tau / LARGEST_FACTOR, tau * LARGEST_FACTOR)
            proposal = jnp.clip(proposal, 1 / DF_RANGE[1], 1 / DF_RANGE[0])
            proposal = jnp.where(fixed | (curvature <= 0), tau, proposal)
            df = jnp.where(fixed, df, 1 / proposal)
            ratio = jnp.where(expanded, (1 + 2 * tau) / (1 + 2 * proposal), 1)
            scale = normal_params.covariance * ratio[:, None, None]
            scale = self._normal.raised(normal_params.mean, scale)
            normal_params = NormalParams(normal_params.mean, scale)
        return keep_empty(stats.count, self._params(normal_params, df), params)

    @property
    def _expanded(self):
        """Whether the whole scale is free, as parameter expansion needs: there is no prior, and no
        feature is constant, whose scale is fixed."""
        if self.prior is not None or self.limits is None:
            return self.prior is None
        return jnp.all(self.limits.varies)

    def restricted(self, held):
        """Whole means fixed, about which the moments are then computed, and any fixed degrees of
        freedom."""
        rows, has_no_closed_form = (
            held.mean.rows,
            held.mean.tied or held.df.tied or not held.scale.free,
        )
        if rows is None or has_no_closed_form or (self.prior is not None and rows[0].any()):
            return by_rows(self, held)
        is_free = jnp.where(rows[0], 0, 1)[:, None]

        def maximize(params, stats):
            moments = stats.moments._replace(first=is_free * stats.moments.first)
            return self._maximize(params, stats._replace(moments=moments), held.df.fixed)

        return maximize

    def spaces(self, params):
        df = Reciprocal(*DF_RANGE) if self.df is None else KNOWN
        return StudentTParams(REAL, POSITIVE_DEFINITE, df)

    def whitened(self, params, step):
        normal = self._normal.whitened(self._as_normal(params), self._as_normal(step))
        if self.df is not None:
            return self._params(normal, step.df / params.df)
        information_of_tau = information(1 / params.df, params.mean.shape[1], self._expanded)
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
        return Normal("full", self.prior, self.floor, None, self.limits)

    @staticmethod
    def _as_normal(params):
        return NormalParams(params.mean, params.scale)

    @staticmethod
    def _params(normal, df):
        return StudentTParams(normal.mean, normal.covariance, df)


def log_constant(tau, d):
    """log Γ((ν+d)/2) − log Γ(ν/2) − (d/2) log(ν/2) for τ = 1/ν, (k,).

    It is a sum of terms of one sign and, for odd d, one of half a step, so that it is exact to
    rounding where it is nearly 0 too.
    """
    steps = 2 * tau[:, None] * _steps(d, tau.dtype)
    half = half_gamma_ratio(2 * tau) if d % 2 else 0.0
    return jnp.log1p(steps).sum(1) + half


def log_constant_slope(tau, d):
    """The derivative of `log_constant` by τ."""
    steps = 2 * _steps(d, tau.dtype)
    half = 2 * half_gamma_ratio_slope(2 * tau) if d % 2 else 0.0
    return (steps / (1 + tau[:, None] * steps)).sum(1) + half


def _steps(d, dtype):
    return jnp.arange(d // 2, dtype=dtype) + (d % 2) / 2


def tail_slope(distance, tau, d, expanded):
    """Slope and bend, the first two derivatives by τ, of −((1/τ + d)/2) log(1 + δτ), for distances
    δ (n, k).

    Where `expanded`, S · (1 + 2τ) is held fixed, so that δ is proportional to 1 + 2τ, and a term
    −d/2 log |S| is included. All parts are bounded, since a square of δ may overflow, and series
    take the place of differences that cancel.
    """
    y = distance * tau
    apart, inside = 1 / (1 + y), y / (1 + y)
    reach = inside / tau  # δ/(1 + δτ)
    rate = jnp.where(expanded, 2 / (1 + 2 * tau), 0)  # d log δ/dτ
    small = jnp.minimum(y, SMALL)
    is_small = y <= SMALL
    bounded = small / tau
    part = 1 / 2 - small * (2 / 3 - small * (3 / 4 - small * (4 / 5 - small * (5 / 6))))
    bent = -small * (1 / 3 - small * (3 / 4 - small * (6 / 5 - small * (5 / 3))))
    excess = jnp.log1p(y) - inside
    slope = jnp.where(is_small, bounded**2 * part, excess / tau**2) / 2 - d / 2 * reach
    direct = (0.5 * (1 + rate * tau) * inside**2 - excess) / tau**3
    series = bounded**2 / tau * (bent + 0.5 * rate * tau / jnp.square(1 + small))
    bend = jnp.where(is_small, series, direct) + d / 2 * reach * (reach - apart * rate)
    of_scale = (1 / tau + d) * inside - d
    turn = reach * (apart * rate - reach) + d * reach * apart * (1 + rate * tau)
    half = rate / 2
    return slope - half * of_scale, bend - half * (turn - rate * of_scale)


def information(tau, d, expanded):
    """The expected information of a unit on τ = 1/ν, with S · (1 + 2τ) held fixed where `expanded`,
    else with S: (k,).

    The first is exact for d = 2 and in both limits, and within 10% for d = 1 (by quadrature).
    """
    size = d * (d + 2) / 2
    of_tau = size / jnp.square(1 + math.sqrt(size) * tau)
    of_scale = jnp.square(2 / (1 + 2 * tau)) * d / (2 * (1 + (d + 2) * tau))
    return of_tau + jnp.where(expanded, 0, of_scale)
