"""The one loop: state, stopping, status. It knows neither models nor methods.

`evaluate(params, memory)` returns the next params, what the method remembers, and the objective AT
params, so the pair that is returned always belongs together. The state never holds the data; it
goes in and comes out whole, so that a run can be cut into slices.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree, select
from jaxem.protocol.status import Status
from jaxem.solver.stopping import HORIZON, NOTHING


@pytree(eq=False)
class State:
    """The last two params kept, with their objectives, and a proposal not yet evaluated.

    A step shifts all three along; only the end looks back: a step that is refused ends the run, and
    `settled` returns to the pair before it.
    """

    params: Any
    objective: Any
    before: Any
    objective_before: Any
    proposal: Any
    n_iter: Any
    status: Any
    memory: Any
    method: Any


def start(params, dtype, status, method=()) -> State:
    """A state that has evaluated nothing: its first step measures the start itself."""
    low, zero = jnp.asarray(-jnp.inf, dtype), jnp.asarray(0, jnp.int32)
    return State(
        params=params,
        objective=low,
        before=params,
        objective_before=low,
        proposal=params,
        n_iter=zero - 1,
        status=jnp.asarray(status, jnp.int32),
        memory=jnp.asarray(NOTHING, dtype),
        method=method,
    )


def run(state: State, evaluate, *, tol, max_iter, stopping, budget=None) -> State:
    """Steps until the status is no longer RUNNING, or `budget` times. `tol` is for the whole
    objective."""
    last = None if budget is None else state.n_iter + budget

    def going(state):
        running = state.status == Status.RUNNING
        return running if last is None else running & (state.n_iter < last)

    def body(state):
        return step(state, evaluate(state.proposal, state.method), tol, max_iter, stopping)

    return jax.lax.while_loop(going, body, state)


def settled(state: State):
    """(params, objective AT them, applications of the map that led there) of a finished run."""
    refused = (state.status == Status.DECREASED) | (state.status == Status.NONFINITE)
    return (
        select(refused, state.before, state.params),
        jnp.where(refused, state.objective_before, state.objective),
        jnp.maximum(state.n_iter - refused, 0),
    )


def step(state: State, seen, tol, max_iter, stopping) -> State:
    """Shifts in the proposal that was just evaluated, and decides whether to go on."""
    gain = seen.objective - state.objective
    if seen.fresh is not None:
        gain = jnp.where(seen.fresh, jnp.inf, gain)
    noise, n_iter = seen.noise, state.n_iter + 1
    told = (seen.objective, gain if seen.gain is None else seen.gain, seen.ahead, noise)
    if seen.quiet is not None:
        told = (None, seen.gain, seen.ahead, seen.quiet)
    memory, near = stopping.watch(state.memory, *told, tol, n_iter)
    if seen.back is not None and stopping.watches_bounds:
        near = near & ~(seen.back < HORIZON * n_iter)  # a false zero
    if seen.fresh is not None:
        memory = jnp.where(seen.fresh, jnp.asarray(NOTHING, memory.dtype), memory)
    status = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING)
    status = jnp.where(near, Status.CONVERGED, status)
    # A fall below the tolerance is rounding too: ill-conditioned terms cancel more than they show.
    status = jnp.where(gain < -jnp.maximum(noise, tol), Status.DECREASED, status)
    sound = jnp.isfinite(seen.objective + blemish(state.proposal))
    new = State(
        params=state.proposal,
        objective=seen.objective,
        before=state.params,
        objective_before=state.objective,
        proposal=seen.proposal,
        n_iter=n_iter,
        status=jnp.where(sound, status, Status.NONFINITE).astype(jnp.int32),
        memory=memory,
        method=seen.memory,
    )
    if seen.accepted is None:
        return new
    ended = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING).astype(jnp.int32)
    onward = {"proposal": seen.proposal, "n_iter": n_iter, "status": ended}
    passed = replace(state, **onward, memory=memory, method=seen.memory)
    return select(seen.accepted, new, passed)


def blemish(params):
    """0, or NaN where any leaf holds a NaN or an infinity."""
    return sum(jnp.sum(jnp.asarray(leaf) * 0) for leaf in jax.tree.leaves(params))
