"""The steps of a climb, recorded on the host between slices of one step."""

import contextlib
import contextvars
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.tree import is_floating
from jaxem.protocol.derived import whitened
from jaxem.solver import devices

_recorder = contextvars.ContextVar("recorder", default=None)
"""The `Recorder` of the climbs of this call, or None."""


class Step(NamedTuple):
    """What is recorded of a step of R restarts, (R,) each. n_iter: of the state, −1 before its
    first evaluation; kept: applications of the EM map that led to the last accepted params, to
    which objective and log_likelihood belong. length: of the step, as in `length`."""

    n_iter: Any
    kept: Any
    objective: Any
    log_likelihood: Any
    length: Any


class Recorder:
    """The steps of the climbs of a call: one climb, or with screened restarts two, of which the
    second is of the restarts `index`."""

    def __init__(self):
        self.climbs: list[list[Step]] = []
        self.index = None

    def begin(self) -> None:
        """Begins the record of a climb."""
        self.climbs.append([])

    def add(self, step: Step) -> None:
        """Records a step of all restarts of one data set, (1, R) each."""
        self.climbs[-1].append(Step(*(np.asarray(a)[0] for a in devices.fetched(step))))

    def of(self, restart: int):
        """(objective, log-likelihood, length of the step) of one restart, (s,) each: at the start,
        and after every application of the EM map, without a last one that was refused."""
        parts = [_of_climb(self.climbs[0], restart)]
        if self.index is not None and restart in self.index:
            place = int(np.flatnonzero(self.index == restart)[0])
            parts.append(_of_climb(self.climbs[1], place)[:, 1:])
        return np.concatenate(parts, axis=1)


def _of_climb(steps: list[Step], restart: int):
    """An array (3, s) of the steps in which the state of a restart has moved on."""
    n_iter = np.array([step.n_iter[restart] for step in steps])
    kept = np.array([step.kept[restart] for step in steps])
    is_new = np.diff(n_iter, prepend=-1) > 0
    is_new &= (n_iter == 0) | (np.diff(kept, prepend=-1) > 0)
    rows = [[s.objective[restart], s.log_likelihood[restart], s.length[restart]] for s in steps]
    return np.array(rows)[is_new].T


def current() -> Recorder | None:
    """The recorder of this call."""
    return _recorder.get()


@contextlib.contextmanager
def recording(is_wanted: bool):
    """A block in which climbs are recorded by the `Recorder` that it yields; None unless wanted."""
    recorder = Recorder() if is_wanted else None
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


def one_step_a_slice(plan):
    """The plan for climbs of which every step is recorded."""
    return plan._replace(lanes=replace(plan.lanes, steps=1))


def measured(problem, before, state, fit) -> Step:
    """What is recorded of a step from params `before` to a state, whose `Fit` is `fit`."""
    step = length(problem.climbed, before, state.params)
    return Step(state.n_iter, fit.n_iter, fit.objective, fit.log_likelihood, step)


def length(model, before, after):
    """The length of a step of params: of its coordinates in the charts of their spaces, whitened,
    in standard errors of one unit of complete data (`whitened`)."""

    def change(space, old, new):
        return space.chart(new) - space.chart(old) if is_floating(old) else jnp.zeros(())

    step = jax.tree.map(change, model.spaces(before), before, after)
    white = whitened(model, before, step)
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(white)))
