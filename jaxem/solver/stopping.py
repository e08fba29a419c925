"""Stopping rules: when a climb has converged, for `fit(..., criterion=...)`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

MEASURABLE = 0.25
"""A gain below this fraction of the bound on rounding errors counts as rounding. The bound is four
times the largest error that was measured."""

HORIZON, STREAK = 36, 5
"""At a transient or on a plateau Aitken's rate is wrong. So a second condition must hold, both for
STREAK steps in a row: HORIZON · n_iter further steps with the last gain would gain less than tol.
That is four times the gain of a climb ten times as long, which leaves room for gains that grow.
Chosen on 1,000 recorded climbs; the notebook on mixtures has the figures on others."""

ESTIMATES = 2
"""The number of steps in a row at which a method's own estimate of the remaining gain must be below
tol."""

PLAIN_STEPS = 12
"""Steps before a climb is accelerated: the first ones decide in which basin it ends."""

PATIENCE = 30
"""The further steps that a climb may need, by its rate, before it is accelerated."""

ACCELERATED_STEPS = 700
"""Accelerated climbs seldom take more evaluations (1,024 fits of 500 × 2, k = 3: at most 617)."""

WINDOW = 32
"""A climb whose gain over this many steps, a power of 2, is within rounding errors has converged.
The first window begins at half as many steps."""


class Memory(NamedTuple):
    """gain: the last one. rate: the ratio of successive gains. streak: for how many steps in a row
    the remaining gain was below tol. anchor: the objective up to `WINDOW` steps ago. slow: 1 from
    the step on that found the climb slow, else 0."""

    gain: Any
    rate: Any
    streak: Any
    anchor: Any
    slow: Any


INITIAL_MEMORY = Memory(0, 0.4, 0, -jnp.inf, 0)
"""The memory before the first step."""


@dataclass(frozen=True)
class Aitken:
    """The estimate of the remaining gain is below the tolerance.

    With gains that shrink by the rate a, the remaining gain is gain · a / (1 − a). That, and the
    gain over the `HORIZON`, must be below tol for `STREAK` steps. A gain below the rounding error
    counts as large as that, and the rate before it is kept. A method that estimates the remaining
    gain itself puts it in its `Signal`, with gain NaN for steps that are no measure of convergence.

    patience: a climb that by its rate needs more than so many further steps, after `PLAIN_STEPS`
    steps or later, is slow and to be accelerated; 0: none is. hands_over: whether such a climb ends
    as HANDED_OVER, to be continued by another method.
    """

    patience: int = 0
    hands_over: bool = False

    @property
    def accelerates(self) -> bool:
        """Whether slow climbs are accelerated within the loop."""
        return self.patience > 0 and not self.hands_over

    def most(self, max_iter):
        """The steps that a climb takes at most, but for rare ones."""
        return max_iter if self.patience == 0 else min(max_iter, ACCELERATED_STEPS)

    def is_slow(self, memory):
        """Whether a climb was found to be slow. memory: as one vector."""
        return memory[Memory._fields.index("slow")] > 0

    def _is_slow(self, memory, evaluation, tol, n_iter):
        """Whether a plain climb is slow by its rate. memory: that after the step."""
        noise = evaluation.noise if evaluation.signal.error is None else evaluation.signal.error
        gain, rate = memory[0], jnp.clip(memory[1], 0, 1)
        to_come = jnp.maximum(gain * rate / (1 - rate), HORIZON * n_iter * gain)
        steps = jnp.log(to_come / _raised(tol, noise)) / -jnp.log(rate)
        is_measurable = gain > MEASURABLE * noise
        return (n_iter >= PLAIN_STEPS) & is_measurable & (steps > self.patience) & (tol > 0)

    def watch(self, memory, evaluation, gain, tol, n_iter):
        """The rule's memory after a step, and whether the climb has converged.

        memory: a `Memory` as one vector, which takes one compiled kernel instead of four. gain: of
        the objective. tol: raised to the bound on rounding errors where it is below; 0 never stops.
        """
        args, signal = (gain, tol, n_iter), evaluation.signal
        plain = self._watched(memory, evaluation, *args)
        if signal.accelerated is not None:
            other = self._watched(memory, evaluation._replace(signal=signal.accelerated), *args)
            plain = [jnp.where(signal.is_slow, a, b) for a, b in zip(other, plain, strict=True)]
        memory, is_converged = plain
        if self.patience:
            is_found = self._is_slow(memory, evaluation, tol, n_iter) & ~self.is_slow(memory)
            first = jnp.asarray(INITIAL_MEMORY._replace(slow=1), memory.dtype)
            memory = jnp.where(is_found & ~is_converged, first, memory)
        return memory, is_converged

    def _watched(self, memory, evaluation, gain, tol, n_iter):
        """`watch` for one `Signal`, without `patience`."""
        signal, noise, objective = evaluation.signal, evaluation.noise, evaluation.objective
        gain = gain if signal.gain is None else signal.gain
        if signal.error is not None:
            noise, objective = signal.error, None
        memory, is_converged = self._converged(
            memory, objective, gain, signal.to_come, noise, tol, n_iter
        )
        if signal.return_steps is not None:  # an entry that grows from nearly 0
            is_converged &= ~(signal.return_steps < HORIZON * n_iter)
        if signal.restarted is not None:
            reset = jnp.asarray(INITIAL_MEMORY, memory.dtype)
            memory = jnp.where(signal.restarted, reset, memory)
        return memory, is_converged

    def _converged(self, memory, objective, gain, to_come, noise, tol, n_iter):
        """The memory, and whether the climb has converged. objective: None where gains have an
        error bound of their own."""
        tol = _raised(tol, noise)
        last = Memory(*(memory[i] for i in range(len(Memory._fields))))
        measurable = MEASURABLE * noise
        gain_size = jnp.maximum(gain, measurable)
        rate = jnp.where((last.gain > measurable) & (n_iter > 1), gain_size / last.gain, last.rate)
        horizon_gain = jnp.where(gain > measurable, HORIZON * n_iter * gain_size, 0)
        if to_come is None:
            is_below_tol = (gain_size * rate < tol * (1 - rate)) & (horizon_gain < tol)
            streak = jnp.where(is_below_tol, last.streak + 1, 0)
            needed = STREAK
        else:
            is_below_tol = (to_come < tol) & (horizon_gain < tol)
            streak = jnp.where(
                jnp.isnan(gain), last.streak, jnp.where(is_below_tol, last.streak + 1, 0)
            )
            needed = ESTIMATES
        if objective is None:
            return jnp.stack(Memory(gain, rate, streak, last.anchor, last.slow)), streak >= needed
        is_window_end = n_iter & (WINDOW - 1) == WINDOW // 2
        is_stalled = is_window_end & (objective - last.anchor <= noise) & (tol > 0)
        anchor = jnp.where(is_window_end, objective, last.anchor)
        memory = jnp.stack(Memory(gain, rate, streak, anchor, last.slow))
        return memory, (streak >= needed) | is_stalled


@dataclass(frozen=True)
class Change:
    """The last gain is below the tolerance: scikit-learn's rule. No climb is accelerated by it."""

    accelerates = hands_over = False

    def most(self, max_iter):
        """As in `Aitken`."""
        return max_iter

    def watch(self, memory, evaluation, gain, tol, n_iter):
        """As in `Aitken`."""
        signal, noise = evaluation.signal, evaluation.noise
        gain = gain if signal.gain is None else signal.gain
        noise = noise if signal.error is None else signal.error
        return memory, (n_iter > 0) & (jnp.abs(gain) < _raised(tol, noise))


def _raised(tol, noise):
    return jnp.where(tol > 0, jnp.maximum(tol, noise), 0)


CRITERIA = {"aitken": Aitken(), "change": Change()}
