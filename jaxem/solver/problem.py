"""One problem: data in safe units, where it starts, and what its finished state says."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import tuning
from jaxem.numerics.tree import Structure, float_dtype, in_dtype, merge, pytree, split
from jaxem.passes.chunks import in_chunks, total_of
from jaxem.passes.collect import Prepared, chunk_rows, prepared
from jaxem.protocol.status import Status
from jaxem.protocol.units import inward, outward, standardized
from jaxem.solver import loop
from jaxem.solver.lanes import Lanes


class Plan(NamedTuple):
    """How a call is solved: what its programs are compiled for. Hashable.

    structure: that of (model, method, start rule), as `split` gives it. stopping: the rule that
    ends a climb. clean: every unit is known to be valid, and weights are None. given: starts are
    params, not keys. restarts: how many starts, or a `Restarts`. batched: the data have an axis of
    data sets. joint: the map that stands still, for which fits are `Ended`.
    """

    structure: Structure
    stopping: Any
    clean: bool
    given: bool
    lanes: Lanes = Lanes()
    restarts: Any = 1
    batched: bool = False
    stationary_map: Any = None


@pytree(eq=False)
class Fit:
    """One climb: where it ended and how.

    params: the best iterate. log_likelihood: Σ w·log p(x | params) at exactly those params.
    objective: what was climbed: log_likelihood + log p(params), with a free energy in place of the
    log-likelihood where the rule for q says so (`Hard`, `Constrained`). n_iter: applications of the
    EM map that led to params. status: a `Status`, as an integer. With restarts every field has a
    leading axis.
    """

    params: Any
    log_likelihood: Any
    objective: Any
    n_iter: Any
    status: Any

    @property
    def converged(self):
        """Whether status is CONVERGED."""
        return self.status == int(Status.CONVERGED)


@pytree(eq=False)
class Ended(Fit):
    """A `Fit`, and what the gradient through it needs beside params: q, unless exact."""

    q: Any

    @property
    def fit(self):
        return Fit(self.params, self.log_likelihood, self.objective, self.n_iter, self.status)


@dataclass(frozen=True, eq=False)
class Problem:
    """One data set in safe units, and what climbs there. Built once a fit.

    A pytree, so that it crosses the boundary of a program; its models and its method, which may be
    of a user's own classes, are split on the way.

    model: as it was given, in the units of the data. climbed: the same in safe units. rule: the
    rule of the start, or None. data: in safe units, perhaps `Prepared`; None where it is the one
    data set as it was given, and left out. weights (n,), total: their sum. units, log_volume: as in
    `Standardized`. status: what is known before the first step.
    """

    plan: Plan
    model: Any
    climbed: Any
    method: Any
    rule: Any
    data: Any
    weights: Any
    units: Any
    log_volume: Any
    total: Any
    status: Any

    @classmethod
    def of(cls, plan: Plan, numeric, x, weights, absent: bool = False):
        """The problem of raw data. absent: units of weight 0 stay what they are, because their
        weight has a gradient."""
        dtype = float_dtype(x)
        numeric = [in_dtype(leaf, dtype) for leaf in numeric]
        model, method, rule = merge(numeric, plan.structure)
        if plan.clean:
            status = jnp.asarray(Status.RUNNING, jnp.int32)
            weights = _ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            x, weights, status = sanitize(model, x, weights, absent)
        inner = standardized(model, x, weights)
        volume = jnp.asarray(inner.log_volume)
        units, total = inner.units, weights.sum()
        ends = (weights, units, volume, total, status)
        return cls(plan, model, inner.model, method, rule, inner.data, *ends)

    def prepared(self, keep: bool = False):
        """The same, with what passes over the data have in common computed; as in `prepared`."""
        if not self.method.prepares:
            return self
        return replace(self, data=prepared(self.climbed, self.data, keep))

    def without(self, x):
        """The same without its data where they are x, so that they are not written once more."""
        return replace(self, data=None) if self.data is x else self

    def on(self, x):
        """The same on the data x (B, …) where it was left `without` them."""
        return replace(self, data=x) if self.data is None else self

    @property
    def volume(self):
        """Σ w·log_volume."""
        return total_of(self.weights, self.total, self.log_volume)

    def inward(self, params):
        """Params of the data's units in safe ones."""
        return inward(self.model, self.units, params)

    def outward(self, params):
        """Params of safe units in those of the data."""
        return outward(self.model, self.units, params)

    def initial_state(self, start):
        """The state of a climb that has evaluated nothing, at a start: a key, or given params."""
        params = self.initial_params(start)
        memory = self.method.start(self.climbed, params, self.plain_data, self.weights)
        return loop.initial_state(params, self.weights.dtype, self.status, memory)

    def initial_params(self, start):
        """Params to start from, in safe units, from a key or from given params."""
        if self.plan.given:
            params = self.inward(start)
        elif self.rule is None:
            params = self.climbed.init(start, self.plain_data, self.weights)
        else:
            params = self.rule.params(self.climbed, start, self.plain_data, self.weights)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), params)

    @property
    def plain_data(self):
        """The data without what passes over them have in common."""
        return self.data.x if isinstance(self.data, Prepared) else self.data

    def evaluate(self, params, memory):
        """An `Evaluation` by the method."""
        return self.method.evaluate(self.climbed, params, self.data, self.weights, memory)

    def map(self, params):
        """One plain step, whatever the method makes of it."""
        return self.method.map(self.climbed, params, self.plain_data, self.weights)

    def evidence(self, params):
        """Σ w·log p(x | params) in the units of the data, where every unit has a volume of its own:
        large terms then cancel unit by unit."""

        def expect(params, x, weights):
            data, volume = x
            return (), self.climbed.posterior(params, data)[1] - volume

        x = (self.plain_data, self.log_volume)
        return in_chunks(expect, chunk_rows(self.climbed, self.plain_data), params, x, self.weights)


def _flatten(problem: Problem):
    models = (problem.model, problem.climbed, problem.method, problem.rule)
    numeric, structure = split(models)
    return (numeric, *(getattr(problem, name) for name in ARRAYS)), (problem.plan, structure)


def _unflatten(static, children) -> Problem:
    plan, structure = static
    numeric, *arrays = children
    return Problem(plan, *merge(numeric, structure), *arrays)


ARRAYS = ("data", "weights", "units", "log_volume", "total", "status")
jax.tree_util.register_pytree_node(Problem, _flatten, _unflatten)


def sanitize(model, x, weights, absent: bool = False):
    """Data and weights in which every unit is present and valid or has weight 0, and a status.

    A unit that is absent or outside the model's support becomes a copy of the first that is not, so
    that nothing it holds, NaN included, can reach a sum. `absent`: valid ones of weight 0 stay.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    valid = jnp.ones(n, bool)
    for mask in jax.tree.leaves(model.domain.valid(x)):
        valid &= jnp.all(mask.reshape(n, -1), axis=1)
    if weights is None:
        weights = jnp.ones(n, float_dtype(x))
    present = weights > 0
    wrong = jnp.any((present & ~valid) | ~((weights >= 0) & jnp.isfinite(weights)))
    status = jnp.where(wrong, Status.BAD_INPUT, Status.RUNNING)
    status = jnp.where(jnp.any(present) | wrong, status, Status.EMPTY)

    use = (weights >= 0 if absent else present) & valid & jnp.isfinite(weights)
    some = jnp.any(use)
    first = jnp.argmax(use)

    def clean(leaf):
        stand_in = jnp.where(some, leaf[first], jnp.ones((), leaf.dtype))
        return jnp.where(use.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf, stand_in)

    return jax.tree.map(clean, x), jnp.where(use | ~some, jnp.where(some, weights, 1), 0), status


def finish(problem: Problem, state) -> Fit:
    """The state of a finished loop in the units of the data."""
    model, climbed = problem.model, problem.climbed
    inner, objective, n_iter = loop.last_accepted(state)
    measured = problem.method.measures(n_iter)
    if measured is not True:
        objective = jax.lax.cond(measured, lambda: objective, lambda: problem.map(inner).objective)
    params = problem.outward(inner)
    # A step refused because it collapsed is a collapse, although the params kept are sound; and so
    # is a variance that vanishes in the units of the data.
    last = problem.inward(problem.outward(state.params))
    degenerate = jnp.any(jnp.asarray(climbed.degenerate(last)))
    degenerate &= jnp.isfinite(loop.zero_or_nan(last))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.zero_or_nan(params)), status, Status.NONFINITE)
    status = jnp.where(state.status < Status.DEGENERATE, status, state.status)
    log_likelihood = objective - climbed.log_prior(inner) - problem.volume
    if problem.log_volume.ndim and problem.method.plain:
        log_likelihood = problem.evidence(inner).evidence
    log_likelihood = reached = log_likelihood.astype(objective.dtype)
    other = problem.method.log_likelihood(climbed, inner, problem.plain_data, problem.weights)
    if other is not None:
        log_likelihood = (other - problem.volume).astype(objective.dtype)
    fit = Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(reached + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
    )
    stationary_map = problem.plan.stationary_map
    return fit if stationary_map is None else Ended(**vars(fit), q=stationary_map.q_of(state))


def _ones(n, dtype):
    """Weights of 1. XLA folds constants: welcome for small n, seconds of compile time for large."""
    ones = jnp.ones(n, dtype)
    return ones if n <= tuning.FOLDED else jax.lax.optimization_barrier(ones)


def _clip(leaf):
    """The nearest finite value, for params that overflow in the units of the data."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.clip(leaf, jnp.finfo(leaf.dtype).min, jnp.finfo(leaf.dtype).max)


def rank(every: Fit):
    """The index of the best restart: sound ones first, then by objective; NaN never wins."""
    tiers = jnp.asarray([5, 0, 0, 1, 3, 2, 4, 4])
    objective = jnp.where(jnp.isnan(every.objective), -jnp.inf, every.objective)
    tier = tiers[every.status]
    best = tier == tier.min()
    top = jnp.where(best, objective, -jnp.inf).max()
    return jnp.argmax(best & (objective >= top))
