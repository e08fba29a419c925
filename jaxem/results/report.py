"""Errors and warnings after an eager fit: bad input, and fits that did not converge."""

import dataclasses
from collections import Counter

import jax
import numpy as np

from jaxem.data import arrays as checks
from jaxem.data.data import of_components
from jaxem.data.grouped import Grouped
from jaxem.numerics.rounding import ROUNDING
from jaxem.protocol.status import Status, sentence, warn
from jaxem.results.columns import explain_collapse, explain_constant
from jaxem.results.result import Result
from jaxem.results.separation import explain_separation
from jaxem.wrappers.factored import factored


def report(
    result: Result, model, x, weights, tol, resolves_small_gains=False, names=None
) -> Result:
    """The result with its scalars on the host; raises and warns by its status.

    ValueError for bad input; one `FitWarning` for fits that did not converge, or for a tolerance
    below the rounding error of the objective.

    resolves_small_gains: whether the fit measured gains below that rounding error, as large float32
    fits do (`EM.gains_from_steps`), so that such a tolerance needs no warning. names: of the
    columns of x, where it was a data frame.
    """
    scalars = ("log_likelihood", "objective", "n_iter", "status", "posterior_entropy")
    ends = ("gradient_ok", "total_weight")
    restarts = _on_host(result.restarts, scalars)
    result = _on_host(dataclasses.replace(result, restarts=restarts), (*scalars, *ends))
    if np.ndim(result.status):
        return _report_batch(result, tol)
    status = int(result.status)
    if status in (Status.BAD_INPUT, Status.EMPTY):
        raise ValueError(checks.explain_bad_input(model, x, weights, names))
    is_requested = status == Status.MAX_ITER and (tol == 0 or int(result.n_iter) == 0)
    mean_field_model = factored(model) if status == Status.NONFINITE else None
    if mean_field_model is not None and not jax.jit(mean_field_model.exact)(result.params, x):
        raise TypeError(mean_field_model.refusal())
    if status != Status.CONVERGED and not is_requested:
        count = len(result.restarts.status)
        subject = "the fit" if count == 1 else f"the best of {count} restarts"
        impossible = _impossible_units(result, x, weights) if status == Status.NONFINITE else ""
        message = f"{subject} did not converge: {impossible or sentence(status)}"
        if status == Status.DEGENERATE:
            message += _collapsed_columns(result, model, x, names)
        elif (constant := _constant_columns(model, x, names)) is not None:
            message += f"; {constant}"
        warn(message, stacklevel=3)
        return result
    if tol and not resolves_small_gains:
        _warn_of_rounding(result, tol, model.domain.rows(x))
    constant = _constant_columns(model, x, names)
    if constant is not None:
        warn(constant, stacklevel=3)
    if (separation := explain_separation(result, model, x, weights)) is not None:
        warn(separation, stacklevel=3)
    return result


def _on_host(fits, names):
    """A `Fit` with the named fields as NumPy arrays."""
    values = {name: getattr(fits, name) for name in names}
    host = {name: None if value is None else np.asarray(value) for name, value in values.items()}
    return dataclasses.replace(fits, **host)


def _report_batch(result, tol) -> Result:
    """The result of a batch, with one warning for all its fits that did not converge."""
    is_requested = (result.status == Status.MAX_ITER) & ((tol == 0) | (result.n_iter == 0))
    failed = result.status[(result.status != Status.CONVERGED) & ~is_requested]
    if failed.size:
        counts = Counter(failed.tolist()).most_common()
        sentences = "; ".join(sentence(code, many) for code, many in counts)
        warn(
            f"{failed.size} of {result.status.size} fits did not converge: {sentences}",
            stacklevel=4,
        )
    return result


def _matrix(x):
    """The data as one array (n, d), without labels; None where they are another tree, or in
    groups."""
    plain = None if isinstance(x, Grouped) else of_components(x)
    return plain if getattr(plain, "ndim", 0) == 2 else None


def _collapsed_columns(result, model, x, names) -> str:
    """The end of a message that names columns without a variance of their own."""
    matrix = _matrix(x)
    if matrix is None or not model.domain.with_variance(matrix.shape[1]):
        return ""
    labels = np.asarray(result.predict(x))
    return explain_collapse(np.asarray(matrix), labels, model.domain.components, names)


def _constant_columns(model, x, names) -> str | None:
    """A sentence where columns are the same in all units, for models that estimate variances."""
    matrix = _matrix(x)
    columns = [] if matrix is None else model.domain.with_variance(matrix.shape[1])
    return explain_constant(matrix, columns, names) if columns else None


def _impossible_units(result, x, weights) -> str:
    """A sentence that names the first unit of probability 0, "" where there is none."""
    evidence = np.asarray(result.score_samples(x))
    has_weight = True if weights is None else np.asarray(weights) > 0
    is_impossible = (evidence == -np.inf) & has_weight
    if not is_impossible.any():
        return ""
    first = int(np.argmax(is_impossible))
    return (
        f"NONFINITE: the log-likelihood is -inf ({int(is_impossible.sum())} have probability zero "
        f"under every component, the first at index {first}); give such units weight 0, another "
        "start, or the model a prior that keeps probabilities above 0"
    )


def _warn_of_rounding(result, tol, rows):
    """A warning where `tol` is below the rounding error of the objective per unit of weight. rows:
    in a unit."""
    dtype, total = result.log_likelihood.dtype, float(result.total_weight) / rows
    smallest = ROUNDING * float(np.finfo(dtype).eps) * abs(float(result.log_likelihood)) / total
    if tol < smallest:
        warn(
            f"tol={tol:g} per unit is below the rounding of a {dtype} objective here; about "
            f"{smallest:.1g} was used"
            + (": give float64 data, with x64 enabled, for more" * (dtype == np.float32)),
            stacklevel=4,
        )
