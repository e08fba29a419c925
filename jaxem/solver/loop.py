"""The one loop: state, stopping, status. It knows neither models nor methods.

`evaluate(params, memory)` returns the next params, what the method remembers, and the objective AT
params, so the pair that is returned always belongs together. The state never holds the data; it
goes in and comes out whole, so that a run can be cut into slices.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree, select
from jaxem.protocol.status import Status

AUDIBLE = 0.25
"""The part of that rounding above which a gain is a gain: the bound is four times what is seen."""

HORIZON, STREAK = 36, 5
"""A transient or a plateau fools Aitken's rate. So HORIZON times the steps so far, each as large as
the last, must gain less than tol too, for STREAK steps: that is four times what a run ten times as
long would add, so gains may even grow there. Chosen on 1,000 recorded climbs; README has the
figures on others.
"""

LOOKS = 2
"""How often in a row a method that foresees the gain to come must find the end near."""

WINDOW = 32
"""A climb that gains no more than rounding over this many steps, a power of 2, has ended."""


class Stopping(NamedTuple):
    """What the stopping rule remembers: the last gain, its rate, for how many steps in a row the
    end was in sight, and the objective some steps ago. The state carries it as one vector: a
    compiled kernel instead of four."""

    gain: Any
    rate: Any
    streak: Any
    anchor: Any


NOTHING = Stopping(0, 0.4, 0, -jnp.inf)
"""The memory of a climb that has gained nothing yet."""


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


def run(state: State, evaluate, *, tol, max_iter, criterion: str, budget=None) -> State:
    """Steps until the status is no longer RUNNING, or `budget` times. `tol` is for the whole
    objective."""
    last = None if budget is None else state.n_iter + budget

    def going(state):
        running = state.status == Status.RUNNING
        return running if last is None else running & (state.n_iter < last)

    def body(state):
        return step(state, evaluate(state.proposal, state.method), tol, max_iter, criterion)

    return jax.lax.while_loop(going, body, state)


def settled(state: State):
    """(params, objective AT them, applications of the map that led there) of a finished run."""
    refused = (state.status == Status.DECREASED) | (state.status == Status.NONFINITE)
    return (
        select(refused, state.before, state.params),
        jnp.where(refused, state.objective_before, state.objective),
        jnp.maximum(state.n_iter - refused, 0),
    )


def step(state: State, seen, tol, max_iter, criterion: str) -> State:
    """Shifts in the proposal that was just evaluated, and decides whether to go on."""
    gain = seen.objective - state.objective
    if seen.fresh is not None:
        gain = jnp.where(seen.fresh, jnp.inf, gain)
    noise, n_iter = seen.noise, state.n_iter + 1
    told = (seen.objective, gain if seen.gain is None else seen.gain, seen.ahead, noise)
    if seen.quiet is not None:
        told = (None, seen.gain, seen.ahead, seen.quiet)
    memory, near = watch(state.memory, *told, tol, criterion, n_iter)
    if seen.back is not None and criterion != "change":
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


def watch(memory, objective, gain, ahead, noise, tol, criterion, n_iter):
    """The stopping rule: its new memory, a `Stopping` as one vector, and whether the end is near.

    A method that knows what is to come says so in `ahead`, and has gain NaN where a step tells
    nothing. Else, "aitken": with gains that shrink by the rate a, the gain still to come is
    gain·a/(1−a); that and the gain over the `HORIZON` must be below tol for `STREAK` steps. A gain
    lost in rounding counts as large as the rounding, and the rate of the gains before it is kept.
    "change": the last gain is below tol. A tolerance below the rounding of the objective is raised
    to it; 0 never stops. objective: None where gains are known better than objectives.
    """
    tol = jnp.where(tol > 0, jnp.maximum(tol, noise), 0)
    if criterion == "change":
        return memory, (n_iter > 0) & (jnp.abs(gain) < tol)
    past = Stopping(*(memory[i] for i in range(len(Stopping._fields))))
    audible = AUDIBLE * noise
    heard = (past.gain > audible) & (n_iter > 1)
    size = jnp.maximum(gain, audible)
    rate = jnp.where(heard, size / past.gain, past.rate)
    far = jnp.where(gain > audible, HORIZON * n_iter * size, 0)
    if ahead is None:
        near = (size * rate < tol * (1 - rate)) & (far < tol)
        streak = jnp.where(near, past.streak + 1, 0)
        enough = STREAK
    else:
        near = (ahead < tol) & (far < tol)
        streak = jnp.where(jnp.isnan(gain), past.streak, jnp.where(near, past.streak + 1, 0))
        enough = LOOKS

    if objective is None:
        return jnp.stack(Stopping(gain, rate, streak, past.anchor)), streak >= enough
    due = n_iter & (WINDOW - 1) == 0
    stalled = due & (objective - past.anchor <= noise) & (tol > 0)
    anchor = jnp.where(due, objective, past.anchor)
    return jnp.stack(Stopping(gain, rate, streak, anchor)), (streak >= enough) | stalled
