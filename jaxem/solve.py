"""From data and starts to finished fits: begin, advance, end, under any transform.

Every call has one canonical form: data of B data sets, and starts (B, R), R restarts of each. A
single fit is B = R = 1 and runs in the plain loop, without these axes; all others go through the
lanes. `jax.vmap` of a fit arrives here through a batching rule that folds the new axis into B, or
into R where the data are shared.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxem import lanes, loop
from jaxem.check import check_step
from jaxem.lanes import Lanes
from jaxem.pytree import Structure, float_dtype, merge, pytree, split
from jaxem.status import Status
from jaxem.sweep import prepared, total_of

FOLDED = 4096


class Spec(NamedTuple):
    """What a program is compiled for. `structure` is that of (model, method, start rule)."""

    structure: Structure
    criterion: str
    clean: bool  # every unit is known to be valid, and weights are None
    given: bool  # starts are params, not keys
    lanes: Lanes = Lanes()


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


class Problem:
    """One data set in safe units, with the model that is climbed there. `absent`: whether units of
    weight 0 stay what they are, because their weight has a gradient."""

    def __init__(self, spec: Spec, numeric, x, weights, absent: bool = False):
        dtype = float_dtype(x)
        numeric = [in_dtype(leaf, dtype) for leaf in numeric]
        self.model, self.method, self.rule = merge(numeric, spec.structure)
        self.spec = spec
        if spec.clean:
            self.status = jnp.asarray(Status.RUNNING, jnp.int32)
            self.weights = _ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            x, self.weights, self.status = sanitize(self.model, x, weights, absent)
        self.view = self.model.view(x, self.weights)
        self.data = self.view.data
        self.total = self.weights.sum()

    @property
    def volume(self):
        """Σ w·log_volume."""
        return total_of(self.weights, self.total, self.view.log_volume)

    def ready(self):
        """The same, with what passes over the data have in common computed."""
        self.data = prepared(self.climbed, self.data, self.method)
        return self

    @property
    def climbed(self):
        """The model that is climbed."""
        return self.view.model

    def stand(self, start):
        """The state at a start: a key, or given params."""
        params = self.begin(start)
        memory = self.method.start(self.view.model, params, self.view.data, self.weights)
        return loop.start(params, self.weights.dtype, self.status, memory)

    def begin(self, start):
        """Params to start from, in safe units, from a key or from given params."""
        model, data, weights = self.view.model, self.view.data, self.weights
        if self.spec.given:
            params = self.view.inward(start)
        elif self.rule is None:
            params = model.init(start, data, weights)
        else:
            params = self.rule.params(model, start, data, weights)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), params)

    def evaluate(self, params, memory):
        return self.method.evaluate(self.view.model, params, self.data, self.weights, memory)

    def map(self, params):
        """One plain step, whatever the method makes of it."""
        return self.method.map(self.view.model, params, self.view.data, self.weights)


@pytree(static=("structure",), eq=False)
class Work:
    """What a climb works on: model and method, split; data and weights, all in safe units."""

    numeric: Any
    data: Any
    weights: Any
    structure: Structure

    @property
    def climbed(self):
        """The model that is climbed."""
        return merge(self.numeric, self.structure)[0]

    def ready(self):
        """As of a `Problem`."""
        model, method = merge(self.numeric, self.structure)
        return replace(self, data=prepared(model, self.data, method))

    def evaluate(self, params, memory):
        model, method = merge(self.numeric, self.structure)
        return method.evaluate(model, params, self.data, self.weights, memory)


def single(spec: Spec, numeric, x, weights, start, tol, max_iter) -> Fit:
    """One climb, without the axes of the canonical form: these cost time to compile."""
    problem = Problem(spec, numeric, x, weights)
    state = problem.stand(start)
    return finish(problem, climb(spec, problem, state, tol * problem.total, max_iter))


def climb(spec: Spec, work, state, tol, max_iter, budget=None):
    """One state after the plain loop; `work` evaluates params and knows the model climbed."""
    options = {"tol": tol, "max_iter": max_iter, "criterion": spec.criterion, "budget": budget}
    work = work.ready()
    try:
        return loop.run(state, work.evaluate, **options)
    except TypeError:
        check_step(work.climbed, state.params, state.method, work.evaluate)
        raise


def many(spec: Spec, data, starts, limits) -> Fit:
    """All climbs of the canonical form: data (B, …), starts (B, R, …), limits two arrays (B, R)."""
    work, queue, ends = begin(spec, data, starts, limits)
    return end(spec, data, advance(spec, work, queue, ends))


def begin(spec: Spec, data, starts, limits):
    """A `Work` (B, …), states (B, R, …) that stand at the starts, and what ends each of them."""
    sets, restarts = limits[0].shape
    width, _ = lane_plan(spec, merge(data[0], spec.structure)[0], data[1], sets * restarts)

    def prepare(data, starts):
        problem = Problem(spec, *data)
        numeric, structure = split((problem.view.model, problem.method))
        numeric = [in_dtype(leaf, problem.weights.dtype) for leaf in numeric]
        work = Work(numeric, problem.view.data, problem.weights, structure)
        return work, over(problem.stand, starts, max(1, width // sets)), problem.total

    work, queue, total = over(lambda args: prepare(*args), (data, starts), width)
    tol, max_iter = limits
    return work, queue, (tol * total[:, None], max_iter)


def advance(spec: Spec, work: Work, queue, ends, budget=None):
    """The states after every climb has ended, or after `budget` rounds of steps.

    A state that is not RUNNING stays as it is. A round is one step of one climb, or some steps
    (`Lanes.interval`) of all lanes.
    """
    sets, restarts = queue.status.shape
    if sets == restarts == 1:
        one, state, limits = _first((work, _first(queue), _first(ends)))
        state = climb(spec, one, state, *limits, budget)
        return jax.tree.map(lambda a: _lift(_lift(a)), state)
    width, steps = lane_plan(spec, work.climbed, work.data, sets * restarts)
    flat, ends = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (queue, ends))
    options = {"width": width, "steps": steps, "budget": budget}
    flat = lanes.run(flat, work, ends, criterion=spec.criterion, **options)
    return jax.tree.map(lambda a: a.reshape(sets, restarts, *a.shape[1:]), flat)


def end(spec: Spec, data, queue) -> Fit:
    """The fits (B, R) of finished states."""
    sets, restarts = queue.status.shape
    width, _ = lane_plan(spec, merge(data[0], spec.structure)[0], data[1], sets * restarts)

    def close(data, states):
        problem = Problem(spec, *data)
        return over(lambda state: finish(problem, state), states, max(1, width // sets))

    return over(lambda args: close(*args), (data, queue), width)


def lane_plan(spec: Spec, model, x, count: int) -> tuple[int, int]:
    """Lanes for `count` fits, and steps between looks; the first axis of x is that of data sets."""
    floats = getattr(model, "k", 1) * jax.tree.leaves(x)[0][0].size
    return spec.lanes.width_for(count, floats), spec.lanes.interval(floats)


def over(function, tree, block: int):
    """`function` of every entry along the leading axis of a tree, a block at a time."""
    size = jax.tree.leaves(tree)[0].shape[0]
    if size == 1:
        return jax.tree.map(_lift, function(_first(tree)))
    if size <= block:
        return jax.vmap(function)(tree)
    return jax.lax.map(function, tree, batch_size=block)


def _lift(leaf):
    return jnp.expand_dims(leaf, 0)


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def transformable(spec: Spec):
    """`many` with a batching rule: a vmapped fit goes through the lanes as a batch does."""

    @custom_vmap
    def climb(data, starts, limits):
        return many(spec, data, starts, limits)

    @climb.def_vmap
    def rule(size, batched, data, starts, limits):
        def spread(leaf, is_batched):
            return leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))

        sets, restarts = limits[0].shape[1:] if batched[2][0] else limits[0].shape
        starts, limits = jax.tree.map(spread, (starts, limits), (batched[1], batched[2]))
        if any(jax.tree.leaves(batched[0])):
            data = jax.tree.map(spread, data, batched[0])
            args = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (data, starts, limits))
            out = climb(*args)
            out = jax.tree.map(lambda a: a.reshape(size, sets, *a.shape[1:]), out)
        else:
            starts, limits = jax.tree.map(
                lambda a: jnp.moveaxis(a, 0, 1).reshape(sets, -1, *a.shape[3:]), (starts, limits)
            )
            out = climb(data, starts, limits)
            out = jax.tree.map(
                lambda a: jnp.moveaxis(a.reshape(sets, size, restarts, *a.shape[2:]), 1, 0), out
            )
        return out, jax.tree.map(lambda _: True, out)

    return climb


def in_dtype(leaf, dtype):
    """A hyperparameter in the precision of the data."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def sanitize(model, x, weights, absent: bool = False):
    """Data and weights in which every unit is present and valid or has weight 0, and a status.

    A unit that is absent or outside the model's support becomes a copy of the first that is not, so
    that nothing it holds, NaN included, can reach a sum. `absent`: valid ones of weight 0 stay.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    valid = jnp.ones(n, bool)
    for mask in jax.tree.leaves(model.valid(x)):
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
    model, view = problem.model, problem.view
    inner, objective, n_iter = loop.settled(state)
    measured = problem.method.measures(n_iter)
    if measured is not True:
        objective = jax.lax.cond(measured, lambda: objective, lambda: problem.map(inner).objective)
    params = view.outward(inner)
    # A step refused because it collapsed is a collapse, although the params kept are sound; and so
    # is a variance that vanishes in the units of the data.
    last = view.inward(view.outward(state.params))
    degenerate = jnp.any(jnp.asarray(view.model.degenerate(last)))
    degenerate &= jnp.isfinite(loop.blemish(last))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.blemish(params)), status, Status.NONFINITE)
    status = jnp.where(state.status < Status.DEGENERATE, status, state.status)
    log_likelihood = objective - view.model.log_prior(inner) - problem.volume
    log_likelihood = climbed = log_likelihood.astype(objective.dtype)
    other = problem.method.log_likelihood(view.model, inner, view.data, problem.weights)
    if other is not None:
        log_likelihood = (other - problem.volume).astype(objective.dtype)
    return Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(climbed + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
    )


def _ones(n, dtype):
    """Weights of 1. XLA folds constants: welcome for small n, seconds of compile time for large."""
    ones = jnp.ones(n, dtype)
    return ones if n <= FOLDED else jax.lax.optimization_barrier(ones)


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
