"""A long run in slices, so that it can be watched and stopped: nothing inside a program can be."""

import builtins
import contextlib
import importlib.util
import sys
import time

import numpy as np

from jaxem.numerics import tuning
from jaxem.protocol.status import Status


def is_long(work: int, steps: int) -> bool:
    """Whether `steps` steps that cost `work` each could take more than a second."""
    return work * steps * tuning.PACE > 1


def run_in_slices(advance, queue, work: int, what: str, total: int):
    """`advance(queue, budget)` again and again, until no state is RUNNING.

    Args:
      work: what a round of steps costs, in units × features² × components.
      what: "fits" or "steps", whichever `total` counts.
    """
    budget = max(1, int(tuning.SLICE / (work * tuning.PACE)))
    with _bar(total, what) as bar:
        warm = False
        while True:
            begun = time.perf_counter()
            queue = advance(queue, np.int32(min(budget, 2**30)))
            status = np.asarray(queue.status)
            took = time.perf_counter() - begun
            done = np.sum(status != Status.RUNNING) if what == "fits" else np.max(queue.n_iter)
            bar.update(int(done) - bar.n)
            if not np.any(status == Status.RUNNING):
                return queue
            if warm:  # the first slice may have been compiled first
                budget = max(1, int(budget * min(4.0, max(0.25, tuning.SLICE / took))))
            warm = True


class _Silent(contextlib.AbstractContextManager):
    """A progress bar that nobody sees."""

    n = 0

    def update(self, count):
        self.n += count

    def __exit__(self, *error):
        return None


def _bar(total: int, unit: str):
    """tqdm's bar where it is installed and somebody looks on, from the first second on."""
    notebook = hasattr(builtins, "__IPYTHON__") and "ipykernel" in sys.modules
    watched = notebook or sys.stderr.isatty()
    if not watched or importlib.util.find_spec("tqdm") is None:
        return _Silent()
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=f" {unit}", desc="jaxem.fit", delay=1, leave=False)
