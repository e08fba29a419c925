"""When a climb has converged: the rules behind `fit(..., criterion=...)`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

AUDIBLE = 0.25
"""The part of the bound on rounding errors above which a gain counts as one: the bound is four
times the largest error that was measured."""

HORIZON, STREAK = 36, 5
"""A transient or a plateau misleads Aitken's rate. So HORIZON times the steps so far, each with the
last gain, must gain less than tol too, for STREAK steps: that is four times what a run ten times as
long would add, so that gains may even grow there. Chosen on 1,000 recorded climbs; the notebook on
mixtures has the figures on others."""

LOOKS = 2
"""How often in a row a method that estimates the gain to come must find it below tol."""

WINDOW = 32
"""A climb that gains no more than rounding over this many steps, a power of 2, has ended."""


class Memory(NamedTuple):
    """The last gain; the rate at which gains shrink; for how many steps in a row the gain to come
    was below tol; the objective some steps ago."""

    gain: Any
    rate: Any
    streak: Any
    anchor: Any


NOTHING = Memory(0, 0.4, 0, -jnp.inf)
"""The memory of a climb that has gained nothing yet."""


@dataclass(frozen=True)
class Aitken:
    """The estimated gain still to come is below the tolerance.

    With gains that shrink by the rate a the gain to come is gain · a / (1 − a). That, and the gain
    over the `HORIZON`, must be below tol for `STREAK` steps. A gain lost in rounding counts as
    large as the rounding, and the rate of the gains before it is kept. A method that estimates the
    gain to come itself says so in its `Signal`, and has gain NaN where a step tells nothing.
    """

    def watch(self, memory, evaluation, gain, tol, n_iter):
        """The rule's memory after a step, and whether the end is reached.

        memory: a `Memory` as one vector: one compiled kernel instead of four. gain: of the
        objective. A tolerance below the bound on rounding errors is raised to it; 0 never stops.
        """
        signal, noise, known = evaluation.signal, evaluation.noise, evaluation.objective
        gain = gain if signal.gain is None else signal.gain
        if signal.error is not None:
            noise, known = signal.error, None
        memory, near = self._near(memory, known, gain, signal.to_come, noise, tol, n_iter)
        if signal.return_steps is not None:  # a probability that grows from next to 0
            near &= ~(signal.return_steps < HORIZON * n_iter)
        if signal.restarted is not None:
            nothing = jnp.asarray(NOTHING, memory.dtype)
            memory = jnp.where(signal.restarted, nothing, memory)
        return memory, near

    def _near(self, memory, objective, gain, to_come, noise, tol, n_iter):
        """The memory and whether the end is near; objective: None where gains are known better."""
        tol = _raised(tol, noise)
        past = Memory(*(memory[i] for i in range(len(Memory._fields))))
        least = AUDIBLE * noise
        size = jnp.maximum(gain, least)
        rate = jnp.where((past.gain > least) & (n_iter > 1), size / past.gain, past.rate)
        far = jnp.where(gain > least, HORIZON * n_iter * size, 0)
        if to_come is None:
            near = (size * rate < tol * (1 - rate)) & (far < tol)
            streak = jnp.where(near, past.streak + 1, 0)
            enough = STREAK
        else:
            near = (to_come < tol) & (far < tol)
            streak = jnp.where(jnp.isnan(gain), past.streak, jnp.where(near, past.streak + 1, 0))
            enough = LOOKS
        if objective is None:
            return jnp.stack(Memory(gain, rate, streak, past.anchor)), streak >= enough
        due = n_iter & (WINDOW - 1) == 0
        stalled = due & (objective - past.anchor <= noise) & (tol > 0)
        anchor = jnp.where(due, objective, past.anchor)
        return jnp.stack(Memory(gain, rate, streak, anchor)), (streak >= enough) | stalled


@dataclass(frozen=True)
class Change:
    """The last gain is below the tolerance: scikit-learn's rule."""

    def watch(self, memory, evaluation, gain, tol, n_iter):
        """As in `Aitken`."""
        signal, noise = evaluation.signal, evaluation.noise
        gain = gain if signal.gain is None else signal.gain
        noise = noise if signal.error is None else signal.error
        return memory, (n_iter > 0) & (jnp.abs(gain) < _raised(tol, noise))


def _raised(tol, noise):
    return jnp.where(tol > 0, jnp.maximum(tol, noise), 0)


CRITERIA = {"aitken": Aitken(), "change": Change()}
