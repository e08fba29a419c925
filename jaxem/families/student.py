"""The multivariate t bank, by EM over the latent precision of every unit."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.gamma import solve_shape
from jaxem.families.normal.gaussian import NormalParams, NormalStatistics
from jaxem.families.normal.moments import centre
from jaxem.families.normal.normal import Normal
from jaxem.numerics.special import log_gamma_ratio, log_minus_digamma
from jaxem.numerics.tree import is_traced, pytree
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.model import Bank
from jaxem.protocol.priors import NormalPrior, require_kind
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.spaces import ABOVE_ZERO, POSITIVE_DEFINITE, REAL, Positive

DF_RANGE = (0.1, 1000.0)
"""The range of estimated degrees of freedom; at 1000 the density is normal to four digits."""

DF_START = 10.0


@pytree(eq=False)
class StudentTParams:
    """mean (k, d), scale (k, d, d), df (k,); the covariance is scale · df/(df − 2)."""

    mean: Any
    scale: Any
    df: Any


class StudentTStatistics(NamedTuple):
    """Σw (k,), the moments weighted by w·u, and Σw·(log u − u + 1) (k,)."""

    count: Any
    moments: NormalStatistics
    tail: Any


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
    optimum in a tenth of the steps (Kent, Tyler & Vardi 1994; Liu, Rubin & Wu 1998).
    """

    df: Any = None
    prior: NormalPrior | None = None
    floor: Any = None

    @property
    def domain(self):
        return self._normal.domain

    def __post_init__(self):
        require_kind(self, NormalPrior)
        if self.floor is not None:
            finite_number(self.floor, "floor")
        if self.df is not None:
            finite_number(self.df, "df")
        if not is_traced(self.df) and self.df is not None and not np.all(np.asarray(self.df) > 0):
            raise ValueError(
                f"df must be positive and finite, got {self.df!r}: the limit of many degrees of "
                "freedom is Normal()"
            )

    def init(self, key, x, weights):
        start = self._normal.init(key, x, weights)
        df = DF_START if self.df is None else self.df
        k = weights.shape[1]
        return self._params(start, jnp.broadcast_to(jnp.asarray(df, x.dtype), (k,)))

    def posterior(self, params, x):
        d, df = x.shape[1], self._df(params)
        structure = self._normal.structure
        distance, log_det = structure.quadratic(params.scale, centre(x, params.mean))
        constant = log_gamma_ratio(df / 2, d / 2) - d / 2 * jnp.log(math.pi * df) - 0.5 * log_det
        tail = (df + d) / 2 * jnp.log1p(distance.T / df)
        return (df + d) / (df + distance.T), constant - tail

    def statistics(self, params, x, q, weights):
        moments = self._normal.statistics(self._as_normal(params), x, None, weights * q)
        tail = weights * (jnp.log(q) - (q - 1))
        return StudentTStatistics(weights.sum(0), moments, tail.sum(0))

    def maximize(self, params, stats):
        precision, count = stats.moments.count, safe(stats.count)
        is_expanded = self.prior is None
        normal_params = self._normal.maximize_weighted(
            self._as_normal(params), stats.moments, precision if is_expanded else stats.count
        )
        df = self._df(params)
        if self.df is None:
            tail = stats.tail / count
            if is_expanded:
                mean_u = safe(precision / count)
                tail = tail - (jnp.log(mean_u) - (mean_u - 1))
            target = log_minus_digamma((df + params.mean.shape[1]) / 2) - tail
            low, high = (log_minus_digamma(jnp.asarray(v / 2, df.dtype)) for v in DF_RANGE)
            df = 2 * solve_shape(jnp.clip(target, high, low))
        return keep_empty(stats.count, self._params(normal_params, df), params)

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
            return self.maximize(params, stats._replace(moments=moments))

        return maximize

    def spaces(self, params):
        df = Positive(*DF_RANGE) if self.df is None else ABOVE_ZERO
        return StudentTParams(REAL, POSITIVE_DEFINITE, df)

    def whitened(self, params, step):
        normal = self._normal.whitened(self._as_normal(params), self._as_normal(step))
        return self._params(normal, step.df / params.df)

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
        model = dataclasses.replace(self, prior=inner.model.prior, floor=inner.model.floor)
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
        return Normal("full", self.prior, self.floor)

    @staticmethod
    def _as_normal(params):
        return NormalParams(params.mean, params.scale)

    @staticmethod
    def _params(normal, df):
        return StudentTParams(normal.mean, normal.covariance, df)
