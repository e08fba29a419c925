"""The status of a fit: how it ended, one integer per lane, set inside the loop."""

import contextlib
import contextvars
import enum
import warnings


class Status(enum.IntEnum):
    """How one fit ended. `result.status` holds these integers; only `CONVERGED` means converged."""

    RUNNING = 0
    """The fit has not ended; no finished fit has this status."""
    CONVERGED = 1
    """The stopping rule was met at the returned params, which lie on no floor."""
    MAX_ITER = 2
    """`max_iter` applications of the EM map were spent; the params are sound but not final."""
    DECREASED = 3
    """The objective fell by more than rounding: a faulty M-step. The best iterate is kept."""
    NONFINITE = 4
    """The objective or the params became NaN or infinite. The last finite iterate is kept."""
    DEGENERATE = 5
    """A component collapsed onto a floor or emptied: its log-likelihood means nothing."""
    BAD_INPUT = 6
    """A unit holds a value outside the model's support (NaN, a negative count), or a bad weight."""
    EMPTY = 7
    """Every weight is zero: there is nothing to fit."""


HANDED_OVER = 8
"""The status of a climb between its plain steps and its accelerated ones; no fit ends with it."""

MEANING = {
    Status.MAX_ITER: "the iteration limit was reached first; raise max_iter or tol",
    Status.DECREASED: "the objective fell by more than rounding, so the M-step does not maximise "
    "what the E-step measures; the best iterate was kept",
    Status.NONFINITE: "the objective became NaN or infinite; the last finite iterate was kept. "
    "Rescale the data, use float64, or look for units that the model gives probability zero",
    Status.DEGENERATE: "a component collapsed onto too few distinct units, or emptied; use fewer "
    "components, a simpler covariance, a prior, more restarts, or a start that outliers do not set "
    '(init="random"), or give float64 data, with x64 enabled, where variances are small beside the '
    "values",
    Status.BAD_INPUT: "the data hold values outside the model's support, or a bad weight",
    Status.EMPTY: "every weight is zero",
}


class FitError(RuntimeError):
    """Raised by `Result.raise_if_failed` alone; nothing raises from inside a compiled fit."""


class FitWarning(UserWarning):
    """The fit has ended, and its result needs attention."""


def sentence(code, many=None) -> str:
    """The name of a status and what it means, for messages; many: how many fits have it."""
    lead = "" if many in (None, 1) else f"{many} fits: "
    return f"{lead}{Status(code).name}: {MEANING[Status(code)]}"


_collected = contextvars.ContextVar("collected", default=None)
"""The list that takes the texts of the warnings of fits, or None."""


def warn(text: str, stacklevel: int = 1) -> None:
    """Gives a `FitWarning`, or collects it in the block of `collected_warnings`."""
    collected = _collected.get()
    if collected is None:
        warnings.warn(text, FitWarning, stacklevel=stacklevel + 1)
    else:
        collected.append(text)


@contextlib.contextmanager
def collected_warnings():
    """A list of the texts that fits in the block, also those in threads, warn of instead.

    `warnings.catch_warnings` would change the filters of the whole process, for good where two
    threads use it at once.
    """
    texts: list[str] = []
    token = _collected.set(texts)
    try:
        yield texts
    finally:
        _collected.reset(token)
