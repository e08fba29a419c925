"""Checks of the arguments of a regression."""

import numpy as np

from jaxem.numerics.tree import is_traced
from jaxem.protocol.priors import CoefficientPrior


def columns_of(shared) -> tuple[int, ...]:
    """Columns as a sorted tuple of ints; ValueError where they are none."""
    if isinstance(shared, (int, np.integer)) and not isinstance(shared, bool):
        shared = (shared,)
    is_listed = isinstance(shared, (tuple, list, range, np.ndarray))
    columns = list(shared) if is_listed else [None]
    are_ints = all(isinstance(c, (int, np.integer)) and not isinstance(c, bool) for c in columns)
    if not are_ints or any(c < 0 for c in columns) or len(set(columns)) < len(columns):
        raise ValueError(
            f"shared must be columns of x, different ints counted from 0, got {shared!r}"
        )
    return tuple(sorted(int(c) for c in columns))


def check_prior(prior) -> None:
    if prior is None or isinstance(prior, CoefficientPrior) or is_traced(prior):
        return
    is_number = np.ndim(prior) == 0 and np.asarray(prior).dtype.kind in "fiu"
    if not is_number or not (np.isfinite(prior) and prior > 0):
        raise ValueError(
            "prior must be a precision above 0, jaxem.CoefficientPrior(precision, mean) or None, "
            f"got {prior!r}"
        )
