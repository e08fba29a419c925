"""Checks of the numbers that a family or a rule is built with."""

import numpy as np

from jaxem.numerics.tree import is_traced


def finite_number(value, name: str, least: float = 0.0) -> None:
    """TypeError or ValueError unless every number in `value` is finite and `least` or more, or it
    is traced."""
    if is_traced(value):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be a number of {least:g} or more, got {value!r}")
    if not np.all((numbers >= least) & np.isfinite(numbers)):
        raise ValueError(f"{name} must be finite and {least:g} or more, got {value!r}")
