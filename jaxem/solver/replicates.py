"""Fits of one data set with many sets of weights: the data are shared, not copied for each fit."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics import tuning
from jaxem.numerics.tree import merge
from jaxem.solver import lanes, parts, threads
from jaxem.solver.problem import Problem, finish
from jaxem.solver.programs import Program, fleet_effort
from jaxem.solver.solve import lane_plan, over

MOST_WEIGHTS = 2**20
"""The most weights, fits × units, of one call of the program."""


def fits_by_weights(plan, numeric, x, weights, weight_sets, starts, tol, max_iter):
    """The fits (b, r) with each of b sets of weights from r starts, as NumPy arrays.

    Every fit is in the units of the arithmetic of the given weights (n,), None for 1. Memory does
    not grow with b but by the results.

    Args:
      plan: of one data set, not clean; its starts are params or keys.
      weight_sets: an iterable of arrays (b_i, n), NumPy, which may be drawn when they are asked
        for: see `slice_sizes`. Units of weight 0, and those without an observed value, stay absent.
      starts: a function of (first, after) -> starts (after − first, r, ...) of these sets, params
        or the data of keys, NumPy arrays.
    """
    n = jax.tree.leaves(x)[0].shape[0] if weights is None else len(weights)
    weights = np.ones(n) if weights is None else weights
    x = jax.tree.map(jnp.asarray, x)
    found, first, width = [], 0, None
    for sets in weight_sets:
        size = len(sets)
        width = size if width is None else width
        # The last ones are filled up, since a smaller call would be compiled again.
        sets = np.concatenate([sets, *[sets[-1:]] * (width - size)]) if size < width else sets
        count = _parts(plan, numeric, width)
        effort = _effort(plan, numeric, x, width, max_iter)
        begun = starts(first, first + width)

        def fit_part(part, effort=effort):
            sets, begun = part
            fits = FITS(effort, numeric, x, weights, sets, begun, tol, max_iter, plan=plan)
            threads.until_ready(fits)
            return jax.device_get(fits)

        jobs = list(zip(parts.cut(sets, count), parts.cut(begun, count), strict=True))
        fits = threads.in_threads(fit_part, jobs)
        found.append(jax.tree.map(lambda *a: np.concatenate(a)[:size], *fits))  # noqa: B023
        first += size
    return jax.tree.map(lambda *a: np.concatenate(a), *found)


def slice_sizes(count: int, n: int) -> list[int]:
    """The numbers of sets of weights of n units, `count` in all, of every call of the program: all
    but the last are equal."""
    each = max(1, min(count, MOST_WEIGHTS // n))
    return [min(each, count - begin) for begin in range(0, count, each)]


def _parts(plan, numeric, fits) -> int:
    """Into how many parts, one a core, the sets are cut."""
    is_ours = parts.are_ours(*merge(numeric, plan.structure))
    if tuning.platform() != "cpu" or threads.is_inside() or not is_ours:
        return 1
    return max(1, min(threads.cores(), fits // tuning.PART_FITS))


def _effort(plan, numeric, x, sets, max_iter) -> str:
    """The compiler options for so many sets of weights."""
    model, _, _ = merge(numeric, plan.structure)
    leaves = jax.tree.leaves(x)
    n = leaves[0].shape[0]
    features = sum(leaf.size for leaf in leaves) // n
    work = n * features**2 * model.domain.components * sets * plan.restarts
    return fleet_effort(min(max_iter, tuning.USUAL_STEPS) * tuning.step_seconds(work))


def _fits(numeric, x, weights, sets, starts, tol, max_iter, *, plan):
    problem = Problem.of(plan, numeric, x, weights).prepared(keep=True)

    def with_weights(weights):
        return replace(problem, weights=weights, total=weights.sum())

    sets = jnp.where(problem.weights > 0, sets.astype(problem.weights.dtype), 0)
    starts = starts if plan.given else jax.random.wrap_key_data(starts)
    size, restarts = len(sets), plan.restarts
    model, data = problem.climbed, jax.tree.map(lambda a: a[None], problem.plain_data)
    width, steps = lane_plan(plan, model, data, size * restarts)

    def begin(args):
        weights, starts = args
        return jax.vmap(with_weights(weights).initial_state)(starts)

    def end(args):
        weights, states = args
        return jax.vmap(partial(finish, with_weights(weights)))(states)

    block = max(1, width // restarts)
    queue = over(begin, (sets, starts), block)
    totals = jnp.broadcast_to(sets.sum(1)[:, None], (size, restarts))
    ends = (tol * totals).ravel(), jnp.full(size * restarts, max_iter)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), queue)
    options = {"stopping": plan.stopping, "width": width, "steps": steps}
    flat = lanes.run_lanes(flat, sets, ends, problem_of=with_weights, **options)
    queue = jax.tree.map(lambda a: a.reshape(size, restarts, *a.shape[1:]), flat)
    return over(end, (sets, queue), block)


FITS = Program(_fits, "plan")
