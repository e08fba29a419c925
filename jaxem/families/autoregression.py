"""Autoregressive components: a row given the rows before it, for hidden Markov models."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.units import frame
from jaxem.numerics.linalg import Factor, floored, is_floored
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import is_empty, keep_empty, safe
from jaxem.protocol.domains import POINTS
from jaxem.protocol.model import Bank
from jaxem.protocol.spaces import POSITIVE_DEFINITE, REAL
from jaxem.protocol.units import Standardized

LOG_2PI = math.log(2 * math.pi)


@pytree(eq=False)
class AutoregressionParams:
    """coefficients (k, m, d), with m = 1 + lags·d, or lags·d without a constant: of the constant,
    of the d features of the row before, of the row before that, and so on; covariance (k, d, d), or
    (d, d) where it is shared, in squared units of the data.
    """

    coefficients: Any
    covariance: Any


class AutoregressionStatistics(NamedTuple):
    """Moments of regressors u and of residuals e about the coefficients of params: Σw (k,),
    Σw·u uᵀ (k, m, m), Σw·u eᵀ (k, m, d), Σw·e eᵀ (k, d, d)."""

    count: Any
    regressors: Any
    cross: Any
    scatter: Any


@pytree(static=("lags", "intercept", "shared_variance"))
class Autoregression(Bank):
    """Normal rows whose mean is linear in the rows before: x_t = a + Σ_l B_l x_{t−l} + e.

    For `HMM` and `SemiMarkov`, which pass every row with the `lags` rows before it, the nearest
    first: (n, (1 + lags)·d). The first `lags` rows of a sequence are given: they have no density.
    The M-step is least squares.

    Args:
      lags: the number of rows before, an int of 1 or more.
      intercept: whether there is a constant a.
      shared_variance: whether all states have one covariance of e.

    Raises ValueError where lags is no int of 1 or more. Sources:
    Hamilton 1990; Krolzig 1997.
    """

    lags: int = 1
    intercept: bool = True
    shared_variance: bool = False

    @property
    def domain(self):
        return replace(POINTS, lags=self.lags)

    def __post_init__(self):
        if isinstance(self.lags, bool) or not isinstance(self.lags, int) or self.lags < 1:
            raise ValueError(f"lags must be an int of 1 or more, got {self.lags!r}")

    def init(self, key, x, weights):
        k, d, m = weights.shape[1], self._features(x), self._regressors(x)
        zero = jnp.zeros((k, m, d), x.dtype)
        covariance = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (k, d, d))
        params = AutoregressionParams(zero, covariance[0] if self.shared_variance else covariance)
        return self.maximize(params, self.statistics(params, x, None, weights))

    def posterior(self, params, x):
        residuals = self._parts(params, x)[1]  # (k, d, n)
        factor, d = Factor(params.covariance), residuals.shape[1]
        log_det = factor.log_det
        distance = factor.mahalanobis(residuals)
        level = d * LOG_2PI + (log_det if self.shared_variance else log_det[:, None])
        return None, -0.5 * (level + distance).T

    def statistics(self, params, x, q, weights):
        u, residuals = self._parts(params, x)

        def sums(terms, *factors):
            return jnp.einsum(f"nk,{terms}->kij", weights, *factors, precision=Precision.HIGHEST)

        return AutoregressionStatistics(
            weights.sum(0),
            sums("in,jn", u, u),
            sums("in,kjn", u, residuals),
            sums("kin,kjn", residuals, residuals),
        )

    def maximize(self, params, stats):
        regressors = floored(stats.regressors, 0)
        step = jnp.linalg.solve(regressors, stats.cross)
        step = jnp.where(is_empty(stats.count)[:, None, None], 0, step)
        explained = jnp.einsum("kmi,kmj->kij", step, stats.cross, precision=Precision.HIGHEST)
        scatter = stats.scatter - (explained + explained.swapaxes(1, 2)) / 2
        if self.shared_variance:
            covariance = scatter.sum(0) / safe(stats.count.sum())
        else:
            covariance = scatter / safe(stats.count)[:, None, None]
        covariance = floored(covariance, self._floor(covariance))
        if not self.shared_variance:
            covariance = keep_empty(stats.count, covariance, params.covariance)
        return AutoregressionParams(params.coefficients + step, covariance)

    def fixed_point(self, params, z):
        """For every i the row (n, d) at which component z[i] would stay without noise: μ = a + Σ_l
        B_l μ; where there is none, the shortest μ of least squares."""
        b, start = params.coefficients, int(self.intercept)
        k, d = b.shape[0], b.shape[2]
        total = b[:, start:].reshape(k, self.lags, d, d).sum(1)  # the features before come first
        level = b[:, 0] if self.intercept else jnp.zeros((k, d), b.dtype)
        inverse = jnp.linalg.pinv(jnp.eye(d, dtype=b.dtype) - total)
        return jnp.einsum("ki,kij->kj", level, inverse, precision=Precision.HIGHEST)[z]

    def sample_next(self, key, params, z, before):
        """For every i a row of component z[i], (n, d), given the rows before it: before (n, lags·d)
        begins with the last one. For draws of chains."""
        b, start = params.coefficients, int(self.intercept)
        mean = jnp.einsum("nm,nmd->nd", before, b[z, start:], precision=Precision.HIGHEST)
        mean = mean + b[z, 0] if self.intercept else mean
        root = jnp.linalg.cholesky(params.covariance)
        root = root if self.shared_variance else root[z]
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.einsum("...ij,...j->...i", root, noise, precision=Precision.HIGHEST)

    def degenerate(self, params):
        is_low = is_floored(params.covariance, self._floor(params.covariance))
        return jnp.broadcast_to(is_low, params.coefficients.shape[:1])

    def spaces(self, params):
        return AutoregressionParams(REAL, POSITIVE_DEFINITE)

    def standardize(self, x, weights):
        units = frame(x, weights, common=False)
        if not self.intercept:
            units = units._replace(location=jnp.zeros_like(units.location))
        volume = jnp.log(jnp.where(units.scale > 0, units.scale, 1)).sum()
        return Standardized(self, units.standardize(x), units[:2], volume)

    def inward(self, units, params):
        return self._converted(params, -units[0] / units[1], 1 / units[1])

    def outward(self, units, params):
        return self._converted(params, *units)

    def _converted(self, params, location, scale):
        """Params of rows that are location + scale · row."""
        lags = jnp.tile(scale, self.lags)
        start, b = int(self.intercept), params.coefficients
        slopes = b[:, start:] * scale / lags[:, None]
        parts = [slopes]
        if self.intercept:
            shift = jnp.einsum("kmd,m->kd", slopes, jnp.tile(location, self.lags))
            parts = [(location + scale * b[:, 0] - shift)[:, None], slopes]
        covariance = params.covariance * scale[:, None] * scale
        return AutoregressionParams(jnp.concatenate(parts, 1), covariance)

    def _parts(self, params, x):
        """(regressors (m, n), residuals (k, d, n))."""
        d = self._features(x)
        u = x[:, d:].T
        if self.intercept:
            u = jnp.concatenate([jnp.ones((1, x.shape[0]), x.dtype), u])
        mean = jnp.einsum("kmd,mn->kdn", params.coefficients, u, precision=Precision.HIGHEST)
        return u, x[:, :d].T - mean

    def _features(self, x) -> int:
        return x.shape[1] // (1 + self.lags)

    def _regressors(self, x) -> int:
        return self._features(x) * self.lags + self.intercept

    def _floor(self, covariance):
        """The smallest variance, in units in which the data have a variance of about 1."""
        return jnp.finfo(covariance.dtype).eps * 16
