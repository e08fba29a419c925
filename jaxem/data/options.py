"""Checks of integer options."""

import operator

import numpy as np


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
