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
from jaxem.solver.stopping import NOTHING


@pytree(eq=False)
class State:
    """The last two params kept, with their objectives, and a proposal not yet evaluated.

    A step shifts all three along; only the end looks back: a step that is refused ends the run, and
    `last_accepted` returns to the pair before it.
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


def initial_state(params, dtype, status, method=()) -> State:
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


def iterate(state: State, evaluate, *, tol, max_iter, stopping, budget=None) -> State:
    """Steps until the status is no longer RUNNING, or `budget` times. `tol` is for the whole
    objective."""
    last = None if budget is None else state.n_iter + budget

    def going(state):
        running = state.status == Status.RUNNING
        return running if last is None else running & (state.n_iter < last)

    def body(state):
        return step(state, evaluate(state.proposal, state.method), tol, max_iter, stopping)

    return jax.lax.while_loop(going, body, state)


def last_accepted(state: State):
    """(params, objective AT them, applications of the map that led there) of a finished run."""
    refused = (state.status == Status.DECREASED) | (state.status == Status.NONFINITE)
    return (
        select(refused, state.before, state.params),
        jnp.where(refused, state.objective_before, state.objective),
        jnp.maximum(state.n_iter - refused, 0),
    )


def step(state: State, evaluation, tol, max_iter, stopping) -> State:
    """The state after the proposal was evaluated: it is shifted in, and goes on or ends."""
    gain, n_iter = evaluation.objective - state.objective, state.n_iter + 1
    if evaluation.signal.restarted is not None:
        gain = jnp.where(evaluation.signal.restarted, jnp.inf, gain)
    memory, near = stopping.watch(state.memory, evaluation, gain, tol, n_iter)
    status = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING)
    status = jnp.where(near, Status.CONVERGED, status)
    # A fall below the tolerance is rounding too: ill-conditioned terms cancel more than they show.
    status = jnp.where(gain < -jnp.maximum(evaluation.noise, tol), Status.DECREASED, status)
    finite = jnp.isfinite(evaluation.objective + zero_or_nan(state.proposal))
    kept = State(
        params=state.proposal,
        objective=evaluation.objective,
        before=state.params,
        objective_before=state.objective,
        proposal=evaluation.proposal,
        n_iter=n_iter,
        status=jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32),
        memory=memory,
        method=evaluation.memory,
    )
    if evaluation.accepted is None:
        return kept
    ended = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING).astype(jnp.int32)
    onward = {"proposal": evaluation.proposal, "n_iter": n_iter, "status": ended}
    refused = replace(state, **onward, memory=memory, method=evaluation.memory)
    return select(evaluation.accepted, kept, refused)


def zero_or_nan(params):
    """0, or NaN where any leaf holds a NaN or an infinity."""
    return sum(jnp.sum(jnp.asarray(leaf) * 0) for leaf in jax.tree.leaves(params))
