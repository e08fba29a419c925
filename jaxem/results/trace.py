"""`Trace`: the climb of a fit, step by step."""

from typing import Any

import numpy as np

from jaxem.numerics.rounding import ROUNDING
from jaxem.numerics.tree import pytree
from jaxem.results.frames import as_frame
from jaxem.solver.problem import rank


@pytree(eq=False)
class Trace:
    """The steps of the best restart of `fit(..., trace=True)`, NumPy arrays (s,), s = n_iter + 1.

    objective: of the start, and after every application of the EM map, in nats; the last one is
    `result.objective`. With an accelerator it stays where a proposal is refused. log_likelihood: at
    the same params. step: the length of the step to them, in standard errors of an estimate
    from one unit of complete data, as accelerators measure it: the Euclidean norm of the whitened
    step (`Metric.whitened`); NaN for the start. A pytree; prints as one line.
    """

    objective: Any
    log_likelihood: Any
    step: Any

    @property
    def rate(self):
        """The ratio of the length of a step to that of the step before, (s,): near the end of plain
        EM the rate of convergence, the largest eigenvalue of the Jacobian of the EM map at the
        optimum (Dempster, Laird & Rubin 1977, section 3). NaN where it is not known: in the first
        two entries, and where one of the two steps is as short as its rounding error."""
        step = np.asarray(self.step, float)
        before = np.concatenate([[np.nan], step[:-1]])
        shortest = ROUNDING * np.finfo(np.asarray(self.step).dtype).eps  # of params of order 1
        is_known = (before > shortest) & (step > shortest)
        return np.where(is_known, step, np.nan) / np.where(is_known, before, 1.0)

    def to_dataframe(self):
        """A pandas data frame with a row for every step. Raises ImportError where pandas is
        missing."""
        columns = {name: np.asarray(value) for name, value in vars(self).items()}
        return as_frame(columns | {"rate": self.rate})

    def __len__(self):
        return len(self.objective)

    def __repr__(self):
        ends = f"{float(self.objective[0]):.6g} to {float(self.objective[-1]):.6g}"
        return f"Trace of {len(self) - 1} steps: objective {ends}, last rate {self.rate[-1]:.3g}"


def trace_of(recorder, every) -> Trace | None:
    """The trace of the best restart, from the `Recorder` of a fit and the fits of its restarts;
    None where no start could be evaluated."""
    best = int(rank(every))
    objective, log_likelihood, step = recorder.of(best)
    if not len(step):
        return None
    step[0] = np.nan
    # The same quantities at the same params, rounded in another program.
    objective[-1], log_likelihood[-1] = every.objective[best], every.log_likelihood[best]
    dtype = np.asarray(every.objective).dtype
    return Trace(*(array.astype(dtype) for array in (objective, log_likelihood, step)))
