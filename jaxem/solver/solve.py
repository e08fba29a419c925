"""From data and starts to fits, in three stages: begin, advance, end.

The canonical form of a call is data of B data sets and starts (B, R), R restarts of each. A single
fit, B = R = 1, runs in the plain loop, without these axes; all others run in lanes. `jax.vmap` of a
fit has a batching rule, which merges the batch axis into B, or into R where the data are shared.
"""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec as P

from jaxem.numerics.tree import merge, select
from jaxem.passes.collect import unprepared
from jaxem.protocol.status import HANDED_OVER, Status
from jaxem.solver import lanes, loop, recording
from jaxem.solver.problem import Fit, Plan, Problem, finish


def single(plan: Plan, numeric, x, weights, start, tol, max_iter) -> Fit:
    """One fit without the axes of the canonical form, which would take longer to compile.

    A climb to be accelerated ends as HANDED_OVER, at the params to evaluate next.
    """
    problem = Problem.of(plan, numeric, x, weights)
    state = problem.initial_state(start)
    state = climb(problem, state, tol * problem.total, max_iter)
    if plan.stopping.hands_over:
        is_slow = state.status == HANDED_OVER
        params = select(is_slow, state.proposal, state.params)
        state = replace(state, params=params, n_iter=state.n_iter + is_slow)
    return finish(problem, state)


def climb(problem: Problem, state, tol, max_iter, budget=None):
    """The state after the climb of one state in the plain loop."""
    stopping = problem.plan.stopping
    options = {"tol": tol, "max_iter": max_iter, "stopping": stopping, "budget": budget}
    return loop.iterate(state, problem.prepared().evaluate, **options)


def many(plan: Plan, data, starts, limits) -> Fit:
    """The fits of the canonical form: data (B, …), starts (B, R, …), limits two arrays (B, R)."""
    if plan.spread is not None:
        here, sets, fits = plan._replace(spread=None), plan.spread.of_sets, plan.spread.of_fits
        function = plan.spread.mapped(partial(many, here), (sets, fits, fits), fits)
        return function(data, starts, limits)
    problems, queue, ends = begin(plan, data, starts, limits)
    problems = problems.on(data[1])
    queue = advance(problems, queue, ends)
    return end(problems, queue)


def begin(plan: Plan, data, starts, limits):
    """`Problem`s (B, …), states (B, R, …) at the starts, and (tol, max_iter) of each.

    A single problem has no data in it where these are the given ones.
    """
    if plan.spread is not None:
        here, sets, fits = plan._replace(spread=None), plan.spread.of_sets, plan.spread.of_fits
        out_specs = (sets, fits, fits)
        function = plan.spread.mapped(partial(begin, here), (sets, fits, fits), out_specs)
        return function(data, starts, limits)
    sets, restarts = limits[0].shape
    width, _ = lane_plan(plan, merge(data[0], plan.structure)[0], data[1], sets * restarts)

    def begin_set(data, starts):
        problem = Problem.of(plan, *data)
        states = over(problem.initial_state, starts, max(1, width // sets))
        if sets == 1:  # once here, not in every slice
            problem = problem.prepared(keep=True).without(data[1])
        return problem, states

    problems, queue = over(lambda args: begin_set(*args), (data, starts), width)
    tol, max_iter = limits
    return problems, queue, (tol * problems.total[:, None], max_iter)


def advance(problems: Problem, queue, ends, budget=None, spread=None):
    """The states after every climb has ended, or after `budget` rounds of steps.

    A state that is not RUNNING does not change. A round is one step of a single climb, or
    `Lanes.interval` steps of all lanes, of each device by itself.
    """
    if spread is not None:
        in_specs = (spread.of_sets, spread.of_fits, spread.of_fits, P())
        return spread.mapped(advance, in_specs, spread.of_fits)(problems, queue, ends, budget)
    sets, restarts = queue.status.shape
    if sets == restarts == 1:
        one, state, limits = _first((problems, _first(queue), _first(ends)))
        state = climb(one, state, *limits, budget)
        return jax.tree.map(lambda a: _lift(_lift(a)), state)
    plan = problems.plan
    width, steps = lane_plan(plan, problems.climbed, problems.data, sets * restarts)
    flat, ends = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (queue, ends))
    few = plan.lanes.narrow(width)
    run = partial(lanes.run_lanes, stopping=plan.stopping, steps=steps)
    flat = run(flat, problems, ends, width=width, budget=budget, few=few)
    if few:
        if budget is not None:
            are_few = jnp.sum(flat.status == Status.RUNNING) <= few
            budget = jnp.where(are_few, budget, 0)
        flat = run(flat, problems, ends, width=few, budget=budget)
    return jax.tree.map(lambda a: a.reshape(sets, restarts, *a.shape[1:]), flat)


def end(problems: Problem, queue, spread=None) -> Fit:
    """The fits (B, R) of finished states."""
    if spread is not None:
        return spread.mapped(end, (spread.of_sets, spread.of_fits), spread.of_fits)(problems, queue)
    sets, restarts = queue.status.shape
    width, _ = lane_plan(problems.plan, problems.climbed, problems.data, sets * restarts)

    def close(problem, states):
        return over(lambda state: finish(problem, state), states, max(1, width // sets))

    return over(lambda args: close(*args), (problems, queue), width)


def watch(problems: Problem, before, queue):
    """The `recording.Step` (B, R) of the last round of unfinished states. before: the states before
    it."""
    sets, restarts = queue.status.shape
    width, _ = lane_plan(problems.plan, problems.climbed, problems.data, sets * restarts)

    def of_set(problem, before, states):
        def of_one(pair):
            before, state = pair
            return recording.measured(problem, before.params, state, finish(problem, state))

        return over(of_one, (before, states), max(1, width // sets))

    return over(lambda args: of_set(*args), (problems, before, queue), width)


def lane_plan(plan: Plan, model, x, count: int) -> tuple[int, int]:
    """Lanes for `count` fits, and EM steps between two checks. The first axis of x is of data
    sets."""
    x = unprepared(x)
    numbers = math.prod(jax.tree.leaves(x)[0].shape[1:]) * model.domain.rows(x)
    floats = model.domain.components * int(numbers)
    return plan.lanes.width_for(count, floats), plan.lanes.interval(floats)


def over(function, tree, block: int):
    """`function` of every entry along the leading axis of a tree, vmapped over blocks of at most
    `block` entries; equal ones where their number allows it, since a smaller last block is compiled
    again, and results are copied."""
    size = jax.tree.leaves(tree)[0].shape[0]
    if size == 1:
        return jax.tree.map(_lift, function(_first(tree)))
    if size <= block:
        return jax.vmap(function)(tree)
    equal = (b for b in range(block, block // 2, -1) if size % b == 0)
    tree, original = lanes.compact(tree, 1)
    ways_back = []

    def compacted(entry):
        result, way_back = lanes.compact(function(original(entry)), 0)
        ways_back.append(way_back)
        return result

    found = jax.lax.map(compacted, tree, batch_size=next(equal, block))
    return ways_back[-1](found)


def _lift(leaf):
    return jnp.expand_dims(leaf, 0)


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def transformable(plan: Plan):
    """`many` with a batching rule: a vmapped fit runs in lanes as a batch does."""

    @custom_vmap
    def climb(data, starts, limits):
        return many(plan, data, starts, limits)

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
