"""The regression bank: responses whose mean depends on regressors."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.families.regression import starts
from jaxem.families.regression.arguments import check_prior, columns_of
from jaxem.families.regression.counts import BinomialResponse, PoissonResponse
from jaxem.families.regression.design import rows_of, second_moments
from jaxem.families.regression.domain import RegressionDomain
from jaxem.families.regression.gamma import GammaResponse
from jaxem.families.regression.linear import is_faster, linear_form
from jaxem.families.regression.negative_binomial import NegativeBinomialResponse, safe_length
from jaxem.families.regression.normal import NormalResponse
from jaxem.families.regression.prior import inner_prior, log_density, precision_and_mean
from jaxem.families.regression.separation import separated
from jaxem.families.regression.statistics import RegressionParams, RegressionStatistics
from jaxem.families.regression.units import (
    RegressionUnits,
    inward_coefficients,
    outward_coefficients,
    regressor_units,
    response_units,
)
from jaxem.numerics.newton_step import (
    least_gain,
    newton_step,
    quadratic,
    shared_newton_step,
    step_length,
)
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import is_empty, keep_empty
from jaxem.protocol.joined_spaces import SharedColumns
from jaxem.protocol.model import Bank
from jaxem.protocol.spaces import REAL, Positive
from jaxem.protocol.units import Standardized

RESPONSES = {
    "normal": NormalResponse(),
    "poisson": PoissonResponse(),
    "binomial": BinomialResponse(),
    "gamma": GammaResponse(),
    "negative_binomial": NegativeBinomialResponse(),
}

FLOOR = 1e-4
"""The smallest standard deviation of a component: of normal responses as a part of that of all
responses (of their middle half), of gamma responses as a part of the mean. A component whose rows
lie on one line has no other limit. A fit that ends there is DEGENERATE."""

START_STEPS = 4
"""M-steps of a start at its responsibilities."""


@pytree(static=("family", "intercept", "link", "shared"))
class Regression(Bank):
    """Components in which the mean of a response y depends on regressors x: link(μ) = x'b + offset.

    It takes `Data(x (n, p), y (n,))`, with offset (n,) and, of binomial responses, trials (n,),
    where they are given. The likelihood includes y! and the binomial coefficients.

    The M-step is weighted least squares for normal responses. For others it is a Newton step
    (IRLS), shortened so that it cannot lower the expected log-likelihood, and a step of the
    dispersion. This holds for regressors between −1 and 1, to which `fit` rescales them.

    Args:
      family: "normal" (identity link), "poisson" (log), "binomial" (logit; y successes of `trials`,
        1 where absent), "gamma" (log) or "negative_binomial" (log).
      intercept: whether the first coefficient is that of the constant 1.
      link: None, or the name of the link of the family.
      shared: columns of x, counted from 0, whose coefficients are the same in all components.
      prior: a number, the precision of a normal prior with mean 0 of every slope, in the units of
        the data (ridge); a `CoefficientPrior`; or None for maximum likelihood.

    Raises ValueError or TypeError for other arguments, for columns that do not exist, and for
    collinear regressors without a prior. Sources: DeSarbo & Cron 1988; Wedel & DeSarbo 1995.
    """

    family: str = "normal"
    intercept: bool = True
    link: str | None = None
    shared: tuple[int, ...] = ()
    prior: Any = None
    floor: Any = dataclasses.field(default=None, repr=False)  # set by `standardize` alone

    def __post_init__(self):
        if self.family not in tuple(RESPONSES):
            names = ", ".join(repr(name) for name in RESPONSES)
            raise ValueError(f"family must be one of {names}, got {self.family!r}")
        if self.link not in (None, self.response.link):
            raise ValueError(
                f"link must be {self.response.link!r} or None for family={self.family!r}, got "
                f"{self.link!r}: leave it out"
            )
        if not isinstance(self.intercept, (bool, np.bool_)):
            raise TypeError(f"intercept must be True or False, got {self.intercept!r}")
        object.__setattr__(self, "shared", columns_of(self.shared))
        check_prior(self.prior)

    @property
    def response(self):
        """The distribution of the response."""
        return RESPONSES[self.family]

    @property
    def domain(self):
        takes = ("y", "offset", "trials") if self.response.takes_trials else ("y", "offset")
        return RegressionDomain(self.response.words, bank=self, takes=takes)

    @property
    def is_joint(self) -> bool:
        """Whether the M-step moves coefficients and dispersion by one Newton step."""
        return self.family == "negative_binomial"

    @property
    def separate(self):
        """Whether, at a fixed point, the M-step of a component depends on its weights alone."""
        depends = self.shared or (self.prior is not None and self.response.scales)
        return not depends and not self.is_joint

    def _defines(self, name):
        if name == "separated":
            return not self.response.scales
        return super()._defines(name)

    @property
    def _shared(self) -> list[int]:
        return [c + int(self.intercept) for c in self.shared]

    def init(self, key, x, weights):
        """The M-steps for the given weights (n, k), from least squares on the scale of the link."""
        rows, k = rows_of(x, self.intercept), weights.shape[1]
        weights = weights.astype(rows.regressors.dtype)
        coefficients = starts.working_fit(self.response, rows, weights)
        if self.shared:
            pooled = starts.working_fit(self.response, rows, weights.sum(1, keepdims=True))
            at = jnp.array(self._shared)
            coefficients = coefficients.at[:, at].set(pooled[:, at])
        dispersion = jnp.ones(k, rows.regressors.dtype) if self.response.has_dispersion else None

        def step(_, params):
            return self.maximize(params, self._statistics(params, rows, weights.T))

        start = RegressionParams(coefficients, dispersion)
        return jax.lax.fori_loop(0, START_STEPS, step, start)

    def posterior(self, params, x):
        rows = rows_of(x, self.intercept)
        eta = rows.predictor(params.coefficients)
        density = self.response.log_density(eta, _column(params), rows.response, rows.trials)
        return None, self.domain.outside(x, density.T)

    def statistics(self, params, x, q, weights):
        return self._statistics(params, rows_of(x, self.intercept), weights.T)

    def _statistics(self, params, rows, weights):
        """The statistics for weights (k, n)."""
        args = (rows.predictor(params.coefficients), _column(params), rows.response, rows.trials)
        slopes, u = self.response.slopes(*args), rows.regressors

        def products_with(values):
            return jnp.matmul(weights * values, u.T, precision=Precision.HIGHEST)

        def total(values):
            return jnp.einsum("kn,kn->k", weights, values, precision=Precision.HIGHEST)

        crossed = self.response.crossed(*args)
        return RegressionStatistics(
            weights.sum(1),
            products_with(slopes.first),
            second_moments(weights * slopes.curvature, u),
            tuple(total(values) for values in self.response.further(*args)),
            None if crossed is None else products_with(crossed),
        )

    def _size_of_terms(self, params, stats):
        return self.response.size_of_terms(stats)

    def linear(self, x):
        is_normal = self.family == "normal"
        return linear_form(x, self.intercept) if is_normal and is_faster(x) else None

    def maximize(self, params, stats):
        response = self.response
        if self.shared:  # entries that are equal come from their mean, so that they stay so
            params = dataclasses.replace(params, coefficients=self._tied(params.coefficients))
        old = params.coefficients
        step, length, reach = self._coefficient_step(params, stats)
        if self.family == "normal":  # f is quadratic
            gain = (stats.gradient * step).sum(-1) - quadratic(stats.curvature, step) / 2
        elif not self.is_joint:
            gain = least_gain(stats.gradient, stats.curvature, step, length, reach)
        moved = length[:, None] * step
        empty = is_empty(stats.count)
        coefficients = old + moved[:, : old.shape[1]]
        if not self.shared:
            coefficients = keep_empty(stats.count, coefficients, old)
        if not response.has_dispersion:
            return RegressionParams(coefficients)
        if self.is_joint:
            dispersion = response.moved(params.dispersion, moved[:, -1])
        else:
            dispersion = response.dispersion(params.dispersion, stats, gain)
        dispersion = self._limited(dispersion)
        return RegressionParams(coefficients, jnp.where(empty, params.dispersion, dispersion))

    def _coefficient_step(self, params, stats):
        """(step (k, m), its length (k,), the largest change of a predictor by the whole step). Of
        negative binomial responses the last entry of a step (k, m + 1) is that of log θ."""
        old, gradient, curvature = params.coefficients, stats.gradient, stats.curvature
        k, m = old.shape
        of_prior = self._normal_prior(m, old.dtype)
        scale = params.dispersion if self.response.scales else jnp.ones(k, old.dtype)
        if self.shared:
            gradient, curvature = gradient / scale[:, None], curvature / scale[:, None, None]
            scale = jnp.ones_like(scale)
        unshared = [j for j in range(m) if j not in self._shared]
        if of_prior is not None:
            precision, mean = of_prior
            pull = precision * (mean - old)
            is_unshared = jnp.isin(jnp.arange(m), jnp.array(unshared)) if self.shared else True
            added = jnp.where(is_unshared, precision, 0) * scale[:, None]
            gradient = gradient + jnp.where(is_unshared, pull, 0) * scale[:, None]
            curvature = curvature + added[:, :, None] * jnp.eye(m, dtype=old.dtype)
        plain = gradient, curvature
        if self.is_joint:
            gradient, curvature = self.response.joint(gradient, curvature, stats)
            unshared = [*unshared, m]
        added_slope = added_curvature = 0.0
        if self.shared:
            at = jnp.array(self._shared)
            q = len(self._shared)
            extra = (jnp.zeros(q, old.dtype), jnp.zeros((q, q), old.dtype))
            if of_prior is not None:
                extra = (pull[0, at], precision[at] * jnp.eye(q, dtype=old.dtype))
            step = shared_newton_step(gradient, curvature, unshared, self._shared, *extra)
            of_shared = step[0, at]
            added_slope = extra[0] @ of_shared
            added_curvature = of_shared @ extra[1] @ of_shared
        else:
            step = newton_step(gradient, curvature)
        if self.is_joint:
            slope, form, most, rate = self.response.bound(*plain, stats, step)
            if self.shared:
                slope, form = slope.sum() + added_slope, form.sum() + added_curvature
                most, rate = most.sum(), rate.max()
            return step, jnp.broadcast_to(safe_length(slope, form, most, rate), (k,)), None
        if self.family == "normal":
            return step, jnp.ones(k, old.dtype), jnp.zeros(k, old.dtype)
        reach = jnp.abs(step).sum(-1)
        reach = jnp.broadcast_to(reach.max(), (k,)) if self.shared else reach
        return step, step_length(reach), reach

    def _tied(self, coefficients):
        """Coefficients (k, m) with the shared ones replaced by their mean over components."""
        at = jnp.array(self._shared)
        mean = coefficients[:, at].mean(0)
        return coefficients.at[:, at].set(jnp.broadcast_to(mean, coefficients[:, at].shape))

    def _normal_prior(self, m, dtype):
        """(precision, mean), (m,) each, of the prior, or None."""
        return precision_and_mean(self.prior, m, self.intercept, dtype)

    def log_prior(self, params):
        b = params.coefficients
        both = self._normal_prior(b.shape[1], b.dtype)
        return 0.0 if both is None else log_density(*both, b, self._shared)

    def _limited(self, dispersion):
        if self.response.limits is not None:
            return jnp.clip(dispersion, *self.response.limits)
        return jnp.maximum(dispersion, self._floor(dispersion.dtype))

    def _floor(self, dtype):
        if self.family == "gamma":
            return FLOOR**2
        return float(jnp.finfo(dtype).tiny) if self.floor is None else self.floor

    def degenerate(self, params):
        """Whether a variance lies on its floor (`FLOOR`), (k,)."""
        if not self.response.scales:
            return jnp.zeros(params.coefficients.shape[:1], bool)
        return params.dispersion <= 1.0001 * self._floor(params.dispersion.dtype)

    def separated(self, params, x, weights):
        """Whether the likelihood of each component has no maximum at finite coefficients, (k,): it
        is so where a combination of regressors has next to no information. weights (n, k)."""
        k = params.coefficients.shape[0]
        if self.response.scales:
            return np.zeros(k, bool)
        rows = rows_of(x, self.intercept)
        eta = rows.predictor(params.coefficients)
        information = self.response.information(eta, _column(params), rows.trials)
        return separated(rows.regressors, information, weights)

    def mean(self, params, x):
        """E[y | x] at params of every row under every component, (n, k); x needs no y."""
        rows = rows_of(x, self.intercept)
        return self.response.mean(rows.predictor(params.coefficients), rows.trials).T

    def sample_response(self, key, params, x, z):
        """A response y (n,) at params for every row of x, of component z (n,); x needs no y."""
        rows = rows_of(x, self.intercept)
        eta = jnp.take_along_axis(rows.predictor(params.coefficients), z[None], 0)[0]
        dispersion = None if params.dispersion is None else params.dispersion[z]
        return self.response.draw(key, eta, dispersion, rows.trials)

    def sample(self, key, params, z):
        """Raises NotImplementedError: there is no distribution of rows; see `sample_response`."""
        raise NotImplementedError(
            "Regression has no distribution of its regressors, and draws no rows: draw responses "
            "of given rows, result.model.components.sample_response(key, params, x, z)"
        )

    def embed(self, x):
        return None

    def elemental(self, key, x, weights, k, group=None):
        """As `starts.elemental`, (n, k); group (n,): rows of few groups are drawn together."""
        rows = rows_of(x, self.intercept)
        dtype, (m, n) = rows.regressors.dtype, rows.regressors.shape
        weights = jnp.asarray(weights, dtype).reshape(n, -1)
        unshared, known = list(range(m)), None
        if self.shared:
            all_separate = dataclasses.replace(self, shared=())
            known = all_separate.init(key, x, weights.max(1, keepdims=True)).coefficients[0]
            unshared = [j for j in unshared if j not in self._shared]
        if unshared:
            coefficients = starts.elemental(
                self.response, rows, key, weights, k, unshared, known, group
            )
        else:
            coefficients = jnp.broadcast_to(known, (k, m))
        eta = rows.predictor(coefficients)
        return self.response.stabilised(eta, rows.response, rows.trials).T

    def spaces(self, params):
        coefficients = SharedColumns(tuple(self._shared)) if self.shared else REAL
        if params.dispersion is None:
            return RegressionParams(coefficients)
        limits = self.response.limits or (0.0, np.inf)
        return RegressionParams(coefficients, Positive(*limits, zero=False))

    def whitened(self, params, step):
        """Coefficients in standard errors of a row with regressors of 1."""
        if params.dispersion is None:
            return step
        of_dispersion = step.dispersion / (math.sqrt(2) * params.dispersion)
        if not self.response.scales:
            return RegressionParams(step.coefficients, of_dispersion)
        scaled = step.coefficients / jnp.sqrt(params.dispersion)[:, None]
        return RegressionParams(scaled, of_dispersion)

    def standardize(self, x, weights):
        rows, start = rows_of(x, self.intercept), int(self.intercept)
        plain = rows.regressors[start:].T
        both = self._normal_prior(plain.shape[1] + start, plain.dtype)
        centred = jnp.asarray(self.intercept)
        if both is not None and self.intercept:
            centred = both[0][0] == 0
        location, scale = regressor_units(plain, weights, centred)
        zero = jnp.zeros((), plain.dtype)
        y, offset, floor, volume = rows.response, rows.offset, None, zero
        units = RegressionUnits(location, scale, zero, zero + 1)
        if self.family == "normal":
            y = y if offset is None else y - offset
            level, spread, sd = response_units(y, weights, self.intercept)
            units = RegressionUnits(location, scale, level, spread)
            y, offset, floor = (y - level) / spread, None, jnp.square(FLOOR * sd)
            volume = jnp.log(spread)
        prior = None if both is None else inner_prior(units, *both, self.intercept)
        model = dataclasses.replace(self, prior=prior, floor=floor)
        inner = (plain - location) / scale
        data = dataclasses.replace(x, x=inner, y=y, offset=offset, trials=rows.trials)
        return Standardized(model, data, units, volume)

    def inward(self, units, params):
        coefficients = inward_coefficients(units, params.coefficients, self.intercept)
        return self._converted(params, coefficients, 1 / units.spread)

    def outward(self, units, params):
        coefficients = outward_coefficients(units, params.coefficients, self.intercept)
        return self._converted(params, coefficients, units.spread)

    def _converted(self, params, coefficients, spread):
        if self.family != "normal":
            return RegressionParams(coefficients, params.dispersion)
        return RegressionParams(coefficients, params.dispersion * spread * spread)


def _column(params):
    """The dispersion (k, 1), or None."""
    return None if params.dispersion is None else params.dispersion[:, None]
