"""The loop of a climb: its state, its stopping, its status. It works for any model and method.

`evaluate(state)` returns the next params, the memory of the method, and the objective AT the
proposal of the state, so that the returned params and objective belong together. The state has no
data in it and is all that the loop takes and returns, so that a climb can be cut into slices.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree, select
from jaxem.protocol.status import HANDED_OVER, Status
from jaxem.solver.stopping import INITIAL_MEMORY


@pytree(eq=False)
class State:
    """The last two params, with their objectives, and a proposal that is not evaluated yet.

    params, objective: the last evaluated pair. before, objective_before: the pair before it.
    memory: of the stopping rule. method: the memory of the method. A step evaluates the proposal
    and makes it the last pair. Where its objective is not finite or has fallen, the climb ends, and
    `last_accepted` returns the pair before it.
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
    """The state before the first evaluation; the first step evaluates the start itself."""
    low, zero = jnp.asarray(-jnp.inf, dtype), jnp.asarray(0, jnp.int32)
    return State(
        params=params,
        objective=low,
        before=params,
        objective_before=low,
        proposal=params,
        n_iter=zero - 1,
        status=jnp.asarray(status, jnp.int32),
        memory=jnp.asarray(INITIAL_MEMORY, dtype),
        method=method,
    )


def iterate(state: State, evaluate, *, tol, max_iter, stopping, budget=None) -> State:
    """Steps until the status is no longer RUNNING, at most `budget`. tol: in nats, of the whole
    objective."""
    last_iter = None if budget is None else state.n_iter + budget

    def is_running(state):
        running = state.status == Status.RUNNING
        return running if last_iter is None else running & (state.n_iter < last_iter)

    def body(state):
        return step(state, evaluate(state), tol, max_iter, stopping)

    return jax.lax.while_loop(is_running, body, state)


def last_accepted(state: State):
    """(params, objective AT them, the number of applications of the map up to them) of a climb that
    has ended."""
    refused = (state.status == Status.DECREASED) | (state.status == Status.NONFINITE)
    return (
        select(refused, state.before, state.params),
        jnp.where(refused, state.objective_before, state.objective),
        jnp.maximum(state.n_iter - refused, 0),
    )


def step(state: State, evaluation, tol, max_iter, stopping) -> State:
    """The state after the evaluation of the proposal, RUNNING or with the status with which the
    climb ends."""
    gain, n_iter = evaluation.objective - state.objective, state.n_iter + 1
    if evaluation.signal.restarted is not None:
        gain = jnp.where(evaluation.signal.restarted, jnp.inf, gain)
    memory, is_converged = stopping.watch(state.memory, evaluation, gain, tol, n_iter)
    status = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING)
    status = jnp.where(is_converged, Status.CONVERGED, status)
    # A fall by less than the tolerance counts as rounding too: where ill-conditioned terms cancel,
    # rounding errors are larger than their bound.
    status = jnp.where(gain < -jnp.maximum(evaluation.noise, tol), Status.DECREASED, status)
    if stopping.hands_over:
        is_slow = stopping.is_slow(memory)
        status = jnp.where(is_slow & (status == Status.RUNNING), HANDED_OVER, status)
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
    end_status = jnp.where(n_iter >= max_iter, Status.MAX_ITER, Status.RUNNING).astype(jnp.int32)
    changes = {"proposal": evaluation.proposal, "n_iter": n_iter, "status": end_status}
    refused = replace(state, **changes, memory=memory, method=evaluation.memory)
    return select(evaluation.accepted, kept, refused)


def zero_or_nan(params):
    """0, or NaN where any leaf holds a NaN or an infinity."""
    return sum(jnp.sum(jnp.asarray(leaf) * 0) for leaf in jax.tree.leaves(params))
