"""The last word of an eager fit: errors for bad input, one warning for what did not converge."""

import dataclasses
import warnings
from collections import Counter

import jax
import numpy as np

from jaxem.data import arrays as checks
from jaxem.numerics.rounding import ROUNDING
from jaxem.protocol.status import FitWarning, Status, sentence
from jaxem.results.result import Result
from jaxem.wrappers.factored import factored


def report(result: Result, model, x, weights, tol, quiet=False) -> Result:
    """An eager fit's last word: errors for bad input, one warning for what did not converge.

    quiet: whether gains below the rounding of the objective were told (`EM.foresees`).
    """
    small = ("log_likelihood", "objective", "n_iter", "status")
    host = jax.device_get({name: getattr(result, name) for name in small})
    every = jax.device_get({name: getattr(result.restarts, name) for name in small})
    restarts = dataclasses.replace(result.restarts, **every)
    ok = result.gradient_ok
    ok = np.asarray(host["status"] == Status.CONVERGED) if ok is None else jax.device_get(ok)
    result = dataclasses.replace(result, restarts=restarts, gradient_ok=ok, **host)
    if np.ndim(result.status):
        return _report_batch(result, tol)
    status = int(result.status)
    if status in (Status.BAD_INPUT, Status.EMPTY):
        raise ValueError(checks.explain_bad_input(model, x, weights))
    asked = status == Status.MAX_ITER and (tol == 0 or int(result.n_iter) == 0)
    several = factored(model) if status == Status.NONFINITE else None
    if several is not None and not jax.jit(several.exact)(result.params, x):
        raise TypeError(several.refusal())
    if status != Status.CONVERGED and not asked:
        many = len(result.restarts.status)
        what = "the fit" if many == 1 else f"the best of {many} restarts"
        told = f"{what} did not converge: {sentence(status)}"
        told += _impossible(result, x, weights) if status == Status.NONFINITE else ""
        warnings.warn(told, FitWarning, stacklevel=3)
    elif tol and not quiet:
        _warn_of_floor(result, weights, tol)
    return result


def _report_batch(result, tol) -> Result:
    """One warning for all the data sets of a batch whose fit did not converge."""
    asked = (result.status == Status.MAX_ITER) & ((tol == 0) | (result.n_iter == 0))
    wrong = result.status[(result.status != Status.CONVERGED) & ~asked]
    if wrong.size:
        counts = Counter(wrong.tolist()).most_common()
        told = "; ".join(sentence(code, many) for code, many in counts)
        warnings.warn(
            f"{wrong.size} of {result.status.size} fits did not converge: {told}",
            FitWarning,
            stacklevel=4,
        )
    return result


def _impossible(result, x, weights) -> str:
    """Names the first present unit that the returned params give probability zero."""
    score = np.asarray(result._ask("scores", x))
    present = True if weights is None else np.asarray(weights) > 0
    wrong = (score == -np.inf) & present
    if not wrong.any():
        return ""
    first = int(np.argmax(wrong))
    return f" ({int(wrong.sum())} have probability zero here, the first at index {first})"


def _warn_of_floor(result, weights, tol):
    total = result.data_shape[0] if weights is None else float(np.sum(np.asarray(weights)))
    dtype = result.log_likelihood.dtype
    least = ROUNDING * float(np.finfo(dtype).eps) * abs(float(result.log_likelihood)) / total
    if tol < least:
        warnings.warn(
            f"tol={tol:g} per unit is below the rounding of a {dtype} objective here; about "
            f"{least:.1g} was used"
            + (": give float64 data, with x64 enabled, for more" * (dtype == np.float32)),
            FitWarning,
            stacklevel=4,
        )
