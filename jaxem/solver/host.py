"""A long climb in slices, each a call of a program: a call that has begun runs to its end."""

import builtins
import contextlib
import contextvars
import importlib.util
import sys
import time

import numpy as np

from jaxem.numerics import tuning
from jaxem.protocol.status import Status
from jaxem.solver import devices, threads


def is_long(work: int, steps: int, seconds: float = 1) -> bool:
    """Whether `steps` steps that cost `work` each could take more than `seconds`."""
    return steps * tuning.step_seconds(work) > seconds


def run_in_slices(advance, queue, work: int, progress, record=None, objective=None):
    """Calls `advance(queue, budget)` until no state is RUNNING.

    Args:
      work: the cost of a round of steps, in units × features² × components.
      progress: the bar of `bar`, which the threads of a call may share.
      record: a function of the states before and after a slice, which is then one round; or None.
      objective: a function of the states, the highest objective, for the bar; or None.
    """
    budget = max(1, int(tuning.SLICE_SECONDS / tuning.step_seconds(work))) if record is None else 1
    is_compiled, shown = False, 0
    while True:
        started = time.perf_counter()
        before, queue = queue, advance(queue, np.int32(min(budget, 2**30)))
        threads.until_ready(queue.status)
        threads.check()
        if record is not None:
            record(before, queue)
        queue_status, n_iter = devices.fetched((queue.status, queue.n_iter))
        status = np.asarray(queue_status)
        seconds = time.perf_counter() - started
        counts_fits = progress.unit == FITS
        done = int(np.sum(status != Status.RUNNING) if counts_fits else np.max(n_iter))
        value = objective(queue) if objective is not None and progress.is_visible else None
        progress.update(done - shown, int(np.max(n_iter)), value)
        shown = done
        if not np.any(status == Status.RUNNING):
            return queue
        if is_compiled and record is None:  # the time of the first slice may include compilation
            budget = max(1, int(budget * min(4.0, max(0.25, tuning.SLICE_SECONDS / seconds))))
        is_compiled = True


FITS, STEPS, MODELS = " fits", " steps", " models"
"""The units that a progress bar counts."""

SECONDS_BEFORE_BAR = 1.0

_is_shown = contextvars.ContextVar("is_shown", default=False)
"""Whether a bar is shown for the call of which this one is a part."""


class _Silent(contextlib.AbstractContextManager):
    """A progress bar that shows nothing."""

    is_visible = False

    def __init__(self, unit):
        self.unit = unit

    def update(self, count, steps=None, objective=None):
        """Counts so many more units. steps: of the longest climb; objective: the highest so far, in
        nats."""

    def __exit__(self, *error):
        return None


class _Bar(_Silent):
    """tqdm's bar: how many units are done, time left, and at the end steps and objective."""

    is_visible = True

    def __init__(self, total, unit, name):
        from tqdm.auto import tqdm

        super().__init__(unit)
        options = {"delay": SECONDS_BEFORE_BAR, "leave": False}
        self.bar, self.best = tqdm(total=total, unit=unit, desc=name, **options), -np.inf

    def update(self, count, steps=None, objective=None):
        parts = [f"{steps} steps"] * (steps is not None and self.unit != STEPS)
        if objective is not None and np.isfinite(objective):
            self.best = max(self.best, objective)
        parts += [f"objective {self.best:.7g}"] * bool(np.isfinite(self.best))
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.update(count)

    def __enter__(self):
        self.token = _is_shown.set(True)
        return self

    def __exit__(self, *error):
        _is_shown.reset(self.token)
        self.bar.close()


def bar(total: int, unit: str, is_wanted: bool, name: str = "jaxem.fit"):
    """tqdm's bar, shown after one second, where tqdm is installed, output goes to a terminal or a
    notebook, and no bar is shown for a call of which this one is a part."""
    if not is_wanted or _is_shown.get() or not _can_be_seen():
        return _Silent(unit)
    return _Bar(total, unit, name)


def _can_be_seen() -> bool:
    is_notebook = hasattr(builtins, "__IPYTHON__") and "ipykernel" in sys.modules
    is_seen = is_notebook or sys.stderr.isatty()
    return is_seen and importlib.util.find_spec("tqdm") is not None
