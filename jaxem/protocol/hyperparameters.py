"""Checks of the numbers that a family or a rule is built with."""

import operator

import numpy as np

from jaxem.numerics.tree import is_traced


def finite_number(value, name: str, least: float = 0.0, above: bool = False) -> None:
    """TypeError or ValueError unless every number in `value` is finite and `least` or more (above
    it, if `above`), or it is traced."""
    if is_traced(value):
        return
    numbers = np.asarray(value)
    accepted = f"above {least:g}" if above else f"{least:g} or more"
    if numbers.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be a number {accepted}, got {value!r}")
    inside = (numbers > least) if above else (numbers >= least)
    if not np.all(inside & np.isfinite(numbers)):
        raise ValueError(f"{name} must be finite and {accepted}, got {value!r}")


def integer(value, name: str, least: int) -> int:
    """`value` as an int, at most 2^31 − 1. TypeError or ValueError unless it is `least` or more."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be an int of {least} or more, got {value!r}: pass a Python int"
        ) from error
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an int of {least} or more, got {value!r}")
    return min(number, np.iinfo(np.int32).max)
