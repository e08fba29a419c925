"""The mixing weights of a mixture: constant, or those of a gate, which depend on covariates.

Both forms define the same functions; `x` is the data of the mixture, and `params` are its params.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision, stop_gradient

from jaxem.data.data import gate_of
from jaxem.models.gate import GateParams, GateStatistics, SoftmaxGate
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, pytree
from jaxem.passes.chunks import in_chunks
from jaxem.protocol.joined_spaces import CONTRASTS
from jaxem.protocol.priors import DirichletPrior
from jaxem.protocol.spaces import SIMPLEX

START_STEPS = 12
"""The steps of a gate at given responsibilities: a start need not be a maximum."""


@pytree(eq=False)
class MixtureParams:
    """weights (k,), summing to 1; components: the params of the bank."""

    weights: Any
    components: Any


@pytree(eq=False)
class GatedMixtureParams:
    """gate: `GateParams`, its coefficients (k, 1 + g); components: the params of the bank."""

    gate: GateParams
    components: Any


class GatedUnits(NamedTuple):
    """The units of a mixture with a gate: those of its bank, and location (g,) and scale (g,) of
    the covariates."""

    inner: Any
    location: Any
    scale: Any


@dataclasses.dataclass(frozen=True)
class ConstantWeights:
    """k weights, with a `DirichletPrior` or None."""

    k: int
    prior: DirichletPrior | None

    def params(self, count, components):
        """Params from the total weight of every component (k,) and the params of the bank."""
        if self.prior is not None:
            count = jnp.maximum(count + self.prior.concentration - 1, 0)
        return MixtureParams(count / count.sum(), components)

    def started(self, x, responsibilities, weights, components):
        """Params at given responsibilities (n, k)."""
        return self.params((responsibilities * weights[:, None]).sum(0), components)

    def joint(self, params, x, density):
        """log p(x, z) of every unit (n, k) from its log densities (n, k)."""
        return density + self.levels(params, x)

    @property
    def background(self):
        """The log density of every row under the noise, which is a further component; None: there
        is no noise."""
        return None

    def completed(self, responsibilities):
        """Responsibilities to start from, with a column for the noise where there is one."""
        return responsibilities

    def levels(self, params, x):
        """log weights, (k,) or (n, k)."""
        return jnp.log(params.weights)

    def columns(self, x):
        """What a pass with units minor needs of the data, with a last axis n; None for nothing."""
        return None

    def gate_coefficients(self, params):
        """The coefficients (k, m) of weights that depend on units, else None. In a pass with units
        minor `levels_of_columns(coefficients, columns)` are their log weights (k, n), and
        `count(coefficients, columns, r)` their statistics; r (k, n): weights of units times
        responsibilities."""
        return None

    def statistics(self, params, x, responsibilities, weights):
        """The statistics of the weights, additive over units."""
        return jnp.matmul(responsibilities.T, weights, precision=Precision.HIGHEST)

    def maximized(self, params, count, components):
        """Params after the M-step, from the statistics of the weights."""
        return self.params(count, components)

    def restricted(self, held):
        """As `maximized` with weights fixed or tied: `Restricted.restrict` changes the free
        ones."""
        return self.maximized

    def spaces(self, components):
        return MixtureParams(SIMPLEX, components)

    def shares(self, params):
        """The approximate weight of every component (k,), for the metric."""
        return params.weights

    def whitened(self, params, step, components):
        weight_step = step.weights * jnp.sqrt(SIMPLEX.metric(params.weights))
        return MixtureParams(weight_step, components)

    def log_prior(self, params):
        return None if self.prior is None else self.prior.log_density(params.weights)

    def vanished(self, params):
        """Whether a component has no weight."""
        return jnp.any(params.weights < jnp.finfo(params.weights.dtype).eps)

    def drawn(self, key, params, n: int, gate):
        """Components (n,) drawn with their weights."""
        if gate is not None:
            raise ValueError("gate is given, and the weights of this mixture take none: leave it")
        return jax.random.categorical(key, jnp.log(params.weights), shape=(n,))

    def standardized(self, x, weights, inner):
        """`Standardized` of the mixture from that of its data without covariates: (the weights in
        the units of the arithmetic, the data, the units)."""
        return self, x, inner

    def inward(self, units, params, convert):
        """Params in the units of the arithmetic; convert(units, components): those of the bank."""
        return dataclasses.replace(params, components=convert(units, params.components))

    outward = inward


@dataclasses.dataclass(frozen=True)
class GateWeights:
    """Weights of k components by a `SoftmaxGate` of the covariates `x.gate` (n, g)."""

    k: int
    gate: SoftmaxGate

    joint, background = ConstantWeights.joint, ConstantWeights.background
    completed = ConstantWeights.completed

    def columns(self, x):
        gate = jnp.asarray(gate_of(x), float_dtype(x))
        return self.gate.covariates(gate).T

    def gate_coefficients(self, params):
        return params.gate.coefficients

    def levels_of_columns(self, coefficients, columns):
        _require_width(coefficients.shape[-1], columns.shape[0], self.gate.intercept)
        return self.gate.log_probabilities(coefficients, columns)

    def levels(self, params, x):
        return self.levels_of_columns(self.gate_coefficients(params), self.columns(x)).T

    def count(self, coefficients, columns, r):
        return self.gate.totals(coefficients, r, columns)

    def statistics(self, params, x, responsibilities, weights):
        r = (responsibilities * weights[:, None]).T
        return self.count(self.gate_coefficients(params), self.columns(x), r)

    def started(self, x, responsibilities, weights, components):
        """Params at given responsibilities, by few steps from weights that are constant. An
        intercept-free gate starts from equal weights."""
        count = (responsibilities * weights[:, None]).sum(0)
        tiny = jnp.finfo(count.dtype).eps
        shares = jnp.maximum(count / count.sum(), tiny)
        start = self.gate.constant(shares, gate_of(x).shape[1])
        return self.at(x, responsibilities, weights, start, components)

    def at(self, x, responsibilities, weights, coefficients, components, steps=START_STEPS):
        """Params after steps of the gate from `coefficients` at given responsibilities."""
        columns = self.columns(x)
        numbers = self.k * columns.shape[0]
        rows = max(tuning.LEAST_PRODUCT_ROWS, tuning.chunk_numbers() // numbers)

        def sums(coefficients, units, weights):
            columns, r = units
            found = self.count(coefficients, columns.T, (r * weights[:, None]).T)
            return found, jnp.zeros_like(weights)

        def step(_, coefficients):
            found = in_chunks(sums, rows, coefficients, (columns.T, responsibilities), weights)
            return self.gate.maximize(coefficients[None], found.statistics)[0]

        coefficients = jax.lax.fori_loop(0, steps, step, coefficients)
        return GatedMixtureParams(GateParams(coefficients), components)

    def maximized(self, params, count: GateStatistics, components, directions=None):
        coefficients = self.gate.maximize(params.gate.coefficients[None], count, directions)[0]
        return GatedMixtureParams(GateParams(coefficients), components)

    def restricted(self, held):
        held = held.gate.coefficients
        if held.free:
            return self.maximized
        if self.gate.intercept:
            _require_whole_rows(held)
        directions = _directions(held)

        def maximized(params, count, components):
            along = jnp.asarray(directions, params.gate.coefficients.dtype)
            return self.maximized(params, count, components, along)

        return maximized

    def spaces(self, components):
        return GatedMixtureParams(GateParams(CONTRASTS), components)

    def shares(self, params):
        """The mean of equal weights and of those at the centre of the covariates."""
        even = jnp.full(self.k, 1 / self.k, params.gate.coefficients.dtype)
        if not self.gate.intercept:
            return even
        return (jax.nn.softmax(params.gate.coefficients[:, 0]) + even) / 2

    def whitened(self, params, step, components):
        share = self.shares(params)
        of_gate = step.gate.coefficients * jnp.sqrt(share * (1 - share))[:, None]
        return GatedMixtureParams(GateParams(of_gate), components)

    def log_prior(self, params):
        if self.gate.prior is None:
            return None
        return self.gate.log_prior(params.gate.coefficients[None])

    def vanished(self, params):
        """Whether another class is more probable than a class by 1 / eps for all covariates between
        −1 and 1, as they are in the units of the arithmetic."""
        coefficients = params.gate.coefficients
        apart = coefficients[:, None] - coefficients
        at_centre = apart[..., 0] if self.gate.intercept else jnp.zeros_like(apart[..., 0])
        reach = jnp.abs(apart[..., int(self.gate.intercept) :]).sum(-1)
        eps = float(jnp.finfo(coefficients.dtype).eps)
        return jnp.any(at_centre - reach > -np.log(eps))

    def drawn(self, key, params, n: int, gate):
        coefficients = params.gate.coefficients
        shape = (n, coefficients.shape[1] - self.gate.intercept)
        if np.shape(gate) != shape:
            raise ValueError(
                f"the weights depend on covariates: give gate=... of shape {shape}, one row for "
                f"every draw, got {'none' if gate is None else np.shape(gate)}"
            )
        z = self.gate.covariates(jnp.asarray(gate, coefficients.dtype)).T
        return jax.random.categorical(key, self.gate.log_probabilities(coefficients, z), axis=0)

    def standardized(self, x, weights, inner):
        gate = stop_gradient(gate_of(x))
        location = jnp.zeros(gate.shape[1], gate.dtype)
        if self.gate.intercept:
            location = jnp.matmul(weights, gate, precision=Precision.HIGHEST) / weights.sum()
            location = stop_gradient(location)
        scale = jnp.abs(gate - location).max(0)
        scale = jnp.where(scale > 0, scale, 1)
        data = dataclasses.replace(x, gate=(gate_of(x) - location) / scale)
        weights = GateWeights(self.k, self.gate.standardized(scale))
        return weights, data, GatedUnits(inner, location, scale)

    def inward(self, units, params, convert):
        coefficients = params.gate.coefficients
        if not self.gate.intercept:
            return self._converted(units, params, convert, coefficients * units.scale)
        level, slopes = coefficients[:, :1], coefficients[:, 1:]
        level = level + (slopes * units.location).sum(1, keepdims=True)
        coefficients = jnp.concatenate([level, slopes * units.scale], 1)
        return self._converted(units, params, convert, coefficients)

    def outward(self, units, params, convert):
        coefficients = params.gate.coefficients
        if not self.gate.intercept:
            return self._converted(units, params, convert, coefficients / units.scale)
        slopes = coefficients[:, 1:] / units.scale
        level = coefficients[:, :1] - (slopes * units.location).sum(1, keepdims=True)
        coefficients = jnp.concatenate([level, slopes], 1)
        return self._converted(units, params, convert, coefficients)

    def _converted(self, units, params, convert, coefficients):
        components = convert(units.inner, params.components)
        return GatedMixtureParams(GateParams(coefficients), components)


def _require_width(expected: int, got: int, intercept: bool):
    if expected != got:
        raise ValueError(
            f"data.gate has {got - intercept} columns, and the coefficients of the gate are of "
            f"{expected - intercept}: give the covariates of the fit"
        )


def _require_whole_rows(held):
    """ValueError where an intercept is fixed or tied and the slopes of its class are not: a change
    of the origin of covariates would break the restriction."""
    group = held.group.reshape(held.fixed.shape)
    tied = group[:, None] == group  # (k, k, m): whether two classes share an entry
    is_held = held.fixed[:, 0] | (tied[..., 0].sum(1) > 1)
    as_intercept = (tied == tied[..., :1]).all(1) & (held.fixed == held.fixed[:, :1])
    broken = np.flatnonzero((is_held & ~as_intercept.all(1))[1:])
    if len(broken):
        raise ValueError(
            f"gate.coefficients[{broken[0] + 1}] has an intercept that is fixed or tied and slopes "
            "that are not: restrict the whole row, or slopes alone, or give "
            "SoftmaxGate(intercept=False) a covariate of ones"
        )


def _directions(held):
    """(f, (k − 1)·m): the steps of the coefficients that keep fixed and tied entries."""
    k, m = held.fixed.shape
    group, fixed = held.group.reshape(k, m)[1:].ravel(), held.fixed[1:].ravel()
    leaders = np.unique(group[~fixed])
    return (group == leaders[:, None]).astype(float) * ~fixed
