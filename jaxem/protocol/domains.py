"""What data a model takes: which values, in which shapes, and what a unit costs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np


def finite(x):
    """Which entries are finite, by operators that NumPy and JAX share."""
    return abs(x) < float("inf")


@dataclass(frozen=True)
class Domain:
    """Any tree of arrays with one leading unit axis.

    mask(leaf) -> booleans shaped like a leaf: which values the model can explain; written with
    operators alone, so that it serves NumPy and JAX arrays alike. words: the same for messages.
    components: numbers of the widest array that a pass makes, per number of the data; also the
    fewest units of a fit. further: functions of x that raise where a shape is not one to take.
    """

    words: str = "finite numbers"
    mask: Callable[[Any], Any] = finite
    components: int = 1
    further: tuple[Callable[[Any], None], ...] = ()

    def valid(self, x):
        """Which values the model can explain: a boolean tree shaped like x."""
        return jax.tree.map(self.mask, x)

    def check(self, x, name: str) -> None:
        """Raises ValueError or TypeError, in the name of a model, where data shaped like x are not
        what it takes."""
        for function in self.further:
            function(x)

    def also(self, function):
        """The same with one more check of x."""
        return replace(self, further=(*self.further, function))


@dataclass(frozen=True)
class Matrix(Domain):
    """One array of shape (n, d)."""

    def check(self, x, name):
        require_matrix(x, name)
        super().check(x, name)


def require_matrix(x, name: str) -> None:
    """ValueError unless x is one array of shape (n, d)."""
    if not hasattr(x, "ndim"):
        raise TypeError(f"{name} takes data as one array of shape (n, d), got {type(x).__name__}")
    if x.ndim == 2:
        return
    remedy = {
        1: "for one feature use x[:, None]",
        3: "for many data sets use jaxem.Batch",
    }.get(x.ndim, "reshape it to units by features")
    raise ValueError(f"{name} takes data of shape (n, d), got shape {tuple(x.shape)}: {remedy}")


def _counts(x):
    return (x >= 0) & (x % 1 == 0) & (x < float("inf"))


REALS = Matrix()
POSITIVE = Matrix("finite positive numbers", lambda x: (x > 0) & (x < float("inf")))
NONNEGATIVE = Matrix("finite numbers of 0 or more", lambda x: (x >= 0) & (x < float("inf")))
COUNTS = Matrix("counts 0, 1, 2, ...", _counts)
BITS = Matrix("0 and 1", lambda x: (x == 0) | (x == 1))


def codes(levels) -> Matrix:
    """Codes 0 … levels − 1 in every column; levels: an int, or a tuple with one a column."""
    limit = levels if isinstance(levels, int) else np.asarray(levels)
    top = levels - 1 if isinstance(levels, int) else "levels - 1"
    domain = Matrix(f"codes 0, 1, ..., {top}", lambda x: (x >= 0) & (x < limit) & (x % 1 == 0))
    if isinstance(levels, int):
        return domain

    def check(x):
        if x.shape[1] != len(levels):
            raise ValueError(
                f"Categorical has levels for {len(levels)} columns, the data have {x.shape[1]}: "
                "give one entry a column"
            )

    return domain.also(check)
