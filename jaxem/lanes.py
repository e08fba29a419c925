"""Many climbs at once: a fixed number of lanes is kept full until the queue is empty.

A vmapped `while_loop` runs every lane until the slowest stops. Here finished lanes leave their
state in the queue, in place of the start it came from, and take the next one. The data of lanes
that share them stay shared; other data are copied into the lanes as they enter.
"""

import jax
import jax.numpy as jnp

from jaxem import loop
from jaxem.pytree import select
from jaxem.status import Status

STEPS = 4
"""EM steps between looks at who has finished."""

CACHE = 2**19
"""Bytes of work that the lanes of a CPU share: about half of a core's level-2 cache."""


def width_for(count: int, floats: int, itemsize: int, platform: str) -> int:
    """How many lanes: as many as fit the cache of a CPU, or thousands on an accelerator.

    Args:
      count: fits in the queue.  floats: numbers of one fit's widest intermediate array.
    """
    room = 4096 if platform != "cpu" else min(64, max(4, CACHE // (floats * itemsize)))
    return min(count, room)


def run(queue, work, restarts: int, evaluate, *, criterion: str, width: int):
    """Runs every state of the queue to its end.

    Args:
      queue: a `loop.State` with a leading axis of fits; fit j works on data set j // restarts.
      work: a tree with a leading axis of data sets, handed to `evaluate`; its entries `tol` and
        `max_iter` have the leading axis of fits instead.
      evaluate: (work of one data set, params) -> `Evaluation`.
      width: the number of lanes.

    Returns the queue, every state finished.
    """
    data, limits = work
    count = queue.status.shape[0]
    shared = jax.tree.leaves(data)[0].shape[0] == 1 and count == restarts

    def sets(index):
        j = jnp.minimum(index, count - 1) // restarts
        return None if shared else jax.tree.map(lambda a: a[j], data)

    def entries(tree, index):
        return jax.tree.map(lambda a: a[jnp.minimum(index, count - 1)], tree)

    one = jax.tree.map(lambda a: a[0], data) if shared else None

    def advance(state, lane, limit):
        seen = evaluate(one if shared else lane, state.proposal)
        new = loop.step(state, seen, *limit, criterion)
        return select(state.status == Status.RUNNING, new, state)

    def body(carry):
        index, following, states, mine, limit, queue = carry
        some = (mine, limit)
        states = jax.lax.fori_loop(0, STEPS, lambda _, s: jax.vmap(advance)(s, *some), states)
        done = (states.status != Status.RUNNING) & (index < count)
        where = jnp.where(done, index, count)
        queue = jax.tree.map(lambda q, s: q.at[where].set(s, mode="drop"), queue, states)
        turn = following + jnp.cumsum(done) - 1
        entering = done & (turn < count)
        index = jnp.where(done, jnp.minimum(turn, count), index)
        states = select(entering, entries(queue, index), states)
        mine = None if shared else select(entering, sets(index), mine)
        limit = select(entering, entries(limits, index), limit)
        return index, following + done.sum(), states, mine, limit, queue

    index = jnp.arange(width)
    first = (entries(queue, index), sets(index), entries(limits, index), queue)
    carry = (index, jnp.asarray(width, index.dtype), *first)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[0] < count), body, carry)[-1]
