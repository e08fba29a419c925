"""The data that a model takes: values, shapes, and the memory of a pass for a unit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics import rows


def finite(x):
    """Which entries are finite, for NumPy and JAX arrays."""
    return abs(x) < float("inf")


def whole(x):
    """Which entries are whole numbers or infinite, for NumPy and JAX arrays. (A remainder takes 17
    times as long in NumPy.)"""
    return x == (x.round() if jnp.issubdtype(x.dtype, jnp.inexact) else x)


def _no_remedy(values) -> str:
    return ""


@dataclass(frozen=True)
class Domain:
    """The data that a model takes: any tree of arrays with one leading unit axis.

    mask(leaf) -> booleans shaped like a leaf: which values are in the model's support. It uses
    operators only, so that it works for NumPy and JAX arrays. words: the support in words, for
    messages. components: the size of the largest array of a pass over the size of the data. least:
    the smallest number of units of a fit, None: `components`. lags: of a bank, how many rows before
    a row its density is conditional on. further: functions of x that raise where its shape is
    wrong. remedy: a function of NumPy values, some of them outside the support, that says how to
    recode them, "" where it does not know. takes: of a bank, the fields of `Data` that it takes
    beside x; None: the data may be any tree. counted: the number of components of a bank for which
    k must be that number; else None. variances: whether the model estimates a variance of
    every column. are_points: whether k-means++ takes the units as they are, up to the scales of
    columns. discrete: whether a unit may have probability 0 under components that were estimated
    without it.
    """

    words: str = "finite numbers"
    mask: Callable[[Any], Any] = finite
    components: int = 1
    further: tuple[Callable[[Any], None], ...] = ()
    remedy: Callable[[Any], str] = _no_remedy
    variances: bool = False
    are_points: bool = False
    discrete: bool = False
    least: int | None = None
    lags: int = 0
    takes: tuple[str, ...] | None = None
    counted: int | None = None

    @property
    def fewest(self) -> int:
        """The smallest number of units of a fit."""
        return self.components if self.least is None else self.least

    @property
    def classes(self) -> int:
        """The columns of responsibilities that are given as a start, and labels from 0."""
        return self.components

    def rows(self, x) -> float:
        """The mean number of rows of data in a unit, padding included."""
        return 1

    def observations(self, x):
        """How many observations every unit has, (n,) or (b, n) of a batch; None where it is 1."""
        return None

    def numbers(self, x) -> int:
        """How many numbers a pass over data shaped like x holds for one component."""
        return sum(leaf.size for leaf in jax.tree.leaves(x))

    def completes(self, x) -> bool:
        """Of a bank: whether the statistics of data shaped like x depend on params beside
        responsibilities, as those of data with missing cells do."""
        return False

    def with_variance(self, d: int):
        """The columns, of d, of which the model estimates a variance."""
        return list(range(d)) if self.variances else []

    def is_observed(self, x):
        """Which units have any observed value, (n,) or (b, n) of a batch; None where all have.
        Others say nothing about params: a fit gives them weight 0."""
        return None

    def valid(self, x):
        """Which values are in the model's support: a boolean tree shaped like x."""
        return jax.tree.map(self.mask, x)

    def examined(self, x):
        """The values that `valid` judges, leaf by leaf: x, where every leaf has a unit axis."""
        return x

    def substitute(self, x, is_usable):
        """The index of a unit of x, whose values replace those of absent units: the first one with
        is_usable (n,)."""
        return rows.first(is_usable)

    def outside(self, x, evidence):
        """`evidence` (n,) or (n, k), with −∞ for units outside the support, or NaN where they hold
        a NaN."""
        n = evidence.shape[0]
        is_valid, is_nan = jnp.ones(n, bool), jnp.zeros(n, bool)
        x = self.examined(x)
        for mask, leaf in zip(*map(jax.tree.leaves, (self.valid(x), x)), strict=True):
            is_valid &= mask.reshape(n, -1).all(1)
            is_nan |= (~mask & (leaf != leaf)).reshape(n, -1).any(1)
        shape = (n,) + (1,) * (evidence.ndim - 1)
        value = jnp.where(is_nan, jnp.nan, -jnp.inf).astype(evidence.dtype).reshape(shape)
        return jnp.where(is_valid.reshape(shape), evidence, value)

    def accepted(self, path: str, values) -> tuple[str, str]:
        """What values a leaf may have, and how to recode others, in words. path: of the leaf in the
        data, such as ".y"; values: NumPy values of it, some of them outside the support."""
        return self.words, self.remedy(values)

    def check(self, x, name: str) -> None:
        """ValueError or TypeError where the model does not take data shaped like x. name: of the
        model, for the message."""
        for function in self.further:
            function(x)

    def check_values(self, x, weights) -> None:
        """ValueError where the values of host data x with weights (n,), None for 1, leave params
        without an estimate, although each value lies in the support."""

    def also(self, function):
        """The same domain with `function` as one more check of x."""
        return replace(self, further=(*self.further, function))


@dataclass(frozen=True)
class Matrix(Domain):
    """One array of shape (n, d). missing: whether a NaN is a value that was not observed."""

    takes: tuple[str, ...] | None = ()
    missing: bool = False

    def valid(self, x):
        return super().valid(x) | (x != x) if self.missing else super().valid(x)

    def is_observed(self, x):
        return (x == x).any(-1) if self.missing else None

    def observations(self, x):
        return self.is_observed(x)

    def accepted(self, path, values):
        words, remedy = super().accepted(path, values)
        return (f"{words}, or NaN where a value is missing" if self.missing else words), remedy

    def check_values(self, x, weights):
        if not self.missing:
            return
        present = slice(None) if weights is None else np.asarray(weights) > 0
        empty = np.flatnonzero(np.isnan(np.asarray(x)[present]).all(0))
        if empty.size:
            names = ", ".join(map(str, empty))
            what = f"column {names} has" if empty.size == 1 else f"columns {names} have"
            raise ValueError(
                f"{what} no observed value in the data (columns are counted from 0), and params of "
                "such a column have no estimate: leave it out"
            )

    def check(self, x, name):
        require_matrix(x, name)
        super().check(x, name)


def require_matrix(x, name: str) -> None:
    """ValueError unless x is one array of shape (n, d)."""
    if not hasattr(x, "ndim"):
        remedy = ": use np.stack(x) for a tuple of rows" * (type(x) is tuple)
        got = f"{type(x).__name__}{remedy}"
        raise TypeError(f"{name} takes data as one array of shape (n, d), got {got}")
    if x.ndim == 2:
        return
    remedy = {
        1: "for one feature use x[:, None]",
        3: "for many data sets use jaxem.Batch",
    }.get(x.ndim, "reshape it to units by features")
    raise ValueError(f"{name} takes data of shape (n, d), got shape {tuple(x.shape)}: {remedy}")


def require_count(domain, k: int, name: str) -> None:
    """ValueError where a bank of this domain and name has another number of components than k."""
    if domain.counted not in (None, k):
        raise ValueError(
            f"k is {k}, and {name} has {domain.counted} components, the sum of the counts of its "
            f"parts: give k={domain.counted}, or other counts"
        )


def is_count(x):
    """Which entries are finite whole numbers of 0 or more."""
    return (x >= 0) & whole(x) & (x < float("inf"))


def _two_values(values) -> str:
    found = np.unique(values)
    if len(found) != 2:
        return ""
    return f"recode the two values {found[0]:g} and {found[1]:g} as 0 and 1"


def _recoded(values, limit: int) -> str:
    """How to recode codes that are not 0 … limit − 1."""
    if not (values.size and np.isfinite(values).all()):
        return ""
    if not whole(values).all() or values.min() < 0:
        return ""
    low, high = int(values.min()), int(values.max())
    if low > 0 and high - low < limit:
        return f"codes are counted from 0: subtract {low}"
    return f"recode them, or give Categorical levels={high + 1}" if high >= limit else ""


REALS = Matrix()
POINTS = Matrix(are_points=True)
SPREAD_POINTS = replace(POINTS, variances=True)
POSITIVE = Matrix("finite positive numbers", lambda x: (x > 0) & (x < float("inf")))
SPREAD_POSITIVE = replace(POSITIVE, variances=True)
NONNEGATIVE = Matrix("finite numbers of 0 or more", lambda x: (x >= 0) & (x < float("inf")))
COUNTS = Matrix("counts 0, 1, 2, ...", is_count, discrete=True)
BITS = Matrix("0 and 1", lambda x: (x == 0) | (x == 1), remedy=_two_values, discrete=True)


def codes(levels) -> Matrix:
    """Codes 0 … levels − 1 in every column; levels: an int, or a tuple with one a column."""
    limit = levels if isinstance(levels, int) else np.asarray(levels)
    words = f"codes from 0 to below {levels}, a limit for each column"
    if isinstance(levels, int):
        few = {1: "the code 0 alone", 2: "codes 0 and 1"}
        words = few.get(levels, f"codes 0, 1, ..., {levels - 1}")
    domain = Matrix(
        words,
        lambda x: (x >= 0) & (x < limit) & whole(x),
        remedy=lambda values: _recoded(values, int(np.max(limit))),
        discrete=True,
    )
    if isinstance(levels, int):
        return domain

    def check(x):
        if x.shape[1] != len(levels):
            raise ValueError(
                f"Categorical has levels for {len(levels)} columns, the data have {x.shape[1]}: "
                "give one entry a column"
            )

    return domain.also(check)
