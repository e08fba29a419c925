"""Many climbs at once: a fixed number of lanes is kept full until the queue is empty.

A vmapped `while_loop` runs every lane until the slowest stops. Lanes avoid that: the state of a
lane that has finished replaces its start in the queue, and the lane takes the next start. Data that
all fits share are not copied; other data are copied into a lane when a fit enters it.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.options import integer
from jaxem.numerics import tuning
from jaxem.numerics.tree import select
from jaxem.protocol.status import Status
from jaxem.solver import loop


@dataclass(frozen=True)
class Lanes:
    """How many fits run at once, for `fit(..., lanes=...)`. The results do not depend on it.

    Each lane of the compiled loop holds one fit, and takes the next one when that has ended.

    Args:
      width: the number of lanes. None: a fraction of the fits, and at most as many as fit the cache
        of a CPU or a part of the memory of an accelerator.
      steps: EM steps between two checks for finished lanes. None: 1 to 8, fewer where a step is
        long.

    Raises TypeError or ValueError where these are not ints of 1 or more.
    """

    width: int | None = None
    steps: int | None = None

    def __post_init__(self):
        for name in ("width", "steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, integer(getattr(self, name), name, 1))

    def width_for(self, count: int, floats: int) -> int:
        """The lanes for `count` fits whose widest intermediate array holds `floats` numbers."""
        if self.width is not None:
            return min(count, self.width)
        sizes = tuning.lane_sizes()
        fitting = max(sizes.least, sizes.bytes // (floats * 4))
        return min(count, sizes.most, fitting, max(sizes.few, count // sizes.fits))

    def narrow(self, width: int) -> int:
        """The lanes for the last fits, where `width` lanes would be empty for the most part; 0:
        as many as before. A second loop takes compile time, so that a CPU has none."""
        if self.width is not None or tuning.platform() == "cpu":
            return 0
        return (
            width // tuning.NARROWER if width >= tuning.NARROWER * tuning.lane_sizes().least else 0
        )

    def interval(self, floats: int) -> int:
        """EM steps between two checks for finished lanes, of fits whose widest array
        holds `floats` numbers."""
        if self.steps is not None:
            return self.steps
        if tuning.platform() != "cpu":
            return tuning.ACCELERATOR_INTERVAL
        return tuning.INTERVAL if floats < tuning.LONG_STEP else 1


def run_lanes(
    queue, problems, ends, *, stopping, width: int, steps: int, budget=None, few=0, problem_of=None
):
    """Steps every state of the queue until it ends, or all lanes for `budget` times `steps` steps,
    or until at most `few` states are RUNNING.

    Args:
      queue: a `loop.State` with a leading axis of fits; those that are not RUNNING do not change.
        With b data sets of r restarts, fit j is of data set j // r.
      problems: a `Problem` with a leading axis of data sets.
      ends: (tol, max_iter) of every fit.
      width: the number of lanes.  steps: EM steps between two checks for finished lanes.
      problem_of: from an entry of `problems` to its `Problem`, where these are other trees, such as
        weights of data that all fits share; None: they are problems.

    Returns the queue.
    """
    count = queue.status.shape[0]
    sets = jax.tree.leaves(problems)[0].shape[0]
    restarts, shared = count // sets, sets == 1 and problem_of is None
    running = queue.status == Status.RUNNING
    place = jnp.where(running, jnp.cumsum(running) - 1, count + 1)  # out of bounds: dropped
    order = jnp.full(count + 1, count).at[place].set(jnp.arange(count), mode="drop")

    queue, unpacked = packed((queue, ends))  # a kernel of its own for every leaf otherwise

    def entries(queue, index):
        return unpacked(jax.tree.map(lambda a: a[jnp.minimum(index, count - 1)], queue))

    problems, original = compact(problems, 1)

    def problems_of(index):
        return None if shared else problems_at(jnp.minimum(index, count - 1) // restarts)

    def problems_at(j):
        return original(jax.tree.map(lambda a: a[j], problems))

    shared_problem = problems_at(0).prepared() if shared else None

    def advance(state, lane_problems, end):
        problem = shared_problem if shared else lane_problems
        problem = problem if problem_of is None else problem_of(problem)
        evaluation = problem.evaluate(state)
        updated = loop.step(state, evaluation, *end, stopping)
        return select(state.status == Status.RUNNING, updated, state)

    def body(carry):
        rounds, index, next_position, states, lane_problems, end, queue = carry
        lane_inputs = (lane_problems, end)
        states = jax.lax.fori_loop(
            0, steps, lambda _, s: jax.vmap(advance)(s, *lane_inputs), states
        )
        done = (states.status != Status.RUNNING) & (index < count)
        queue = _store(queue, packed((states, end))[0], jnp.where(done, index, count))
        number = _cumulative(done)
        position = jnp.minimum(next_position + number - 1, count)
        index = jnp.where(done, order[position], index)
        entering = done & (index < count)
        states, end = select(entering, entries(queue, index), (states, end))
        lane_problems = None if shared else select(entering, problems_of(index), lane_problems)
        rounds = rounds if budget is None else rounds + 1
        return rounds, index, next_position + number[-1], states, lane_problems, end, queue

    def is_unfinished(carry):
        rounds, index, *_ = carry
        is_busy = jnp.sum(index < count) > few if few else jnp.any(index < count)
        return is_busy if budget is None else is_busy & (rounds < budget)

    index = order[:width]
    states, end = entries(queue, index)
    position = jnp.asarray(0, index.dtype), index, jnp.asarray(width, index.dtype)
    carry = (*position, states, problems_of(index), end, queue)
    _, index, _, states, _, end, queue = jax.lax.while_loop(is_unfinished, body, carry)
    if few or budget is not None:  # lanes that still run
        queue = _store(queue, packed((states, end))[0], index)
    return unpacked(queue)[0]


def compact(tree, leading: int):
    """(a tree whose leaves take the least memory, the way back for leaves with any leading axes).

    A TPU fills up the last axis of an array to 128 numbers. So all axes but the first `leading`
    ones become one there, in which the longest of them varies fastest.
    """
    if tuning.platform() != "tpu":
        return tree, lambda tree: tree
    leaves, structure = jax.tree.flatten(tree)
    shapes = [leaf.shape[leading:] for leaf in leaves]

    def flat(leaf, shape, axis):
        return jnp.moveaxis(leaf, axis, -1).reshape(*leaf.shape[:leading], -1)

    def original(leaf, shape, axis):
        moved = leaf.reshape(*leaf.shape[:-1], *np.delete(shape, axis), shape[axis])
        return jnp.moveaxis(moved, -1, axis)

    def applied(function, tree):
        arrays = [
            function(leaf, shape, int(np.argmax(shape)) - len(shape)) if len(shape) > 1 else leaf
            for leaf, shape in zip(jax.tree.leaves(tree), shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, arrays)

    return applied(flat, tree), lambda tree: applied(original, tree)


def _cumulative(mask):
    """The cumulative sum of a mask (w,): of few lanes, in one kernel."""
    place = jnp.arange(mask.size)
    return jnp.sum(mask & (place <= place[:, None]), axis=1)


def _store(queue, states, index):
    """The queue with `states` at `index`; states whose index is out of bounds are dropped."""
    return jax.tree.map(lambda q, s: q.at[index].set(s, mode="drop"), queue, states)


def packed(tree):
    """(the leaves (n, ...) of one dtype side by side, one array (n, p) each, the way back)."""
    leaves, structure = jax.tree.flatten(tree)
    names = [leaf.dtype.name for leaf in leaves]
    kinds = sorted({*names})
    members = {kind: [i for i, name in enumerate(names) if name == kind] for kind in kinds}
    shapes = [leaf.shape[1:] for leaf in leaves]

    def side_by_side(leaves):
        return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)

    def unpacked(arrays):
        found = {}
        for kind, array in arrays.items():
            place = 0
            for i in members[kind]:
                size = math.prod(shapes[i])
                found[i] = array[:, place : place + size].reshape(-1, *shapes[i])
                place += size
        return jax.tree.unflatten(structure, [found[i] for i in range(len(shapes))])

    arrays = {kind: side_by_side([leaves[i] for i in of_kind]) for kind, of_kind in members.items()}
    return arrays, unpacked
