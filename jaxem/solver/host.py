"""A long climb in slices, each a call of a program: a call that has begun runs to its end."""

import builtins
import contextlib
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


def run_in_slices(advance, queue, work: int, progress, record=None):
    """Calls `advance(queue, budget)` until no state is RUNNING.

    Args:
      work: the cost of a round of steps, in units × features² × components.
      progress: the bar of `bar`, which the threads of a call may share.
      record: a function of the states before and after a slice, which is then one round; or None.
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
        progress.update(done - shown)
        shown = done
        if not np.any(status == Status.RUNNING):
            return queue
        if is_compiled and record is None:  # the time of the first slice may include compilation
            budget = max(1, int(budget * min(4.0, max(0.25, tuning.SLICE_SECONDS / seconds))))
        is_compiled = True


FITS, STEPS = " fits", " steps"
"""The units that a progress bar counts."""


class _Silent(contextlib.AbstractContextManager):
    """A progress bar that shows nothing."""

    def __init__(self, unit):
        self.unit = unit

    def update(self, count):
        return None

    def __exit__(self, *error):
        return None


def bar(total: int, unit: str, is_wanted: bool):
    """tqdm's bar, shown after one second, where tqdm is installed and output goes to a terminal or
    a notebook."""
    notebook = hasattr(builtins, "__IPYTHON__") and "ipykernel" in sys.modules
    is_visible = notebook or sys.stderr.isatty()
    if not (is_wanted and is_visible) or importlib.util.find_spec("tqdm") is None:
        return _Silent(unit)
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=unit, desc="jaxem.fit", delay=1, leave=False)
