"""Faster passes over many units: their interface, and that of banks with a linear log density."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxem.numerics import tuning


class FusedPass(NamedTuple):
    """A faster pass over many units, for data of one shape.

    prepare(x) -> the data in the form of the pass, units along `axis` of every leaf, and all else
    that is the same in every pass. coefficients(params) -> the part of a pass that does not depend
    on units. sums(coefficients, units, weights) -> (sums, evidence (n,)) of at most `rows` units.
    statistics(params, sums) -> the model's statistics from the sums over all units. terms(params)
    -> a scalar, the size of the terms that cancel to log p(x), or None where they are never large.
    room: whether there is memory for the prepared data beside the data. A model that only needs
    `prepare` leaves out the other functions.
    """

    prepare: Callable
    room: bool
    coefficients: Callable | None = None
    sums: Callable | None = None
    statistics: Callable | None = None
    terms: Callable | None = None
    rows: int = 0
    axis: int = 0


class Linear(NamedTuple):
    """A bank whose log density is linear in features that no parameter enters: see `LinearBank`.

    log p(x | k) = base(x) + coefficients[k] · features(x), where feature `one` is 1.

    columns(x) -> (c, n), the data with units minor, which stay in memory if there is `room`.
    features(columns) -> (size, n). coefficients(params, level) -> (k, size), where level (k,) is
    added to the coefficient of feature `one`. base(x) -> (n,), or None where it is 0.
    statistics(params, sums (size, k)) -> the bank's statistics from Σw·features. terms(params): as
    in `FusedPass`. lowest: a log density of `lowest` or less counts as log 0.
    """

    size: int
    one: int
    room: bool
    columns: Callable
    features: Callable
    coefficients: Callable
    base: Callable
    statistics: Callable
    terms: Callable
    lowest: float = -math.inf

    def hoisted(self, x):
        """The same with features stored in place of columns, where there are few more features than
        columns (1e5 × 8, k = 8, spherical, float64: 4.1 to 3.0 ms)."""
        columns = jax.eval_shape(self.columns, x).shape[0]
        if not self.room or self.size > columns + tuning.SPARE_FEATURES:
            return self
        return self._replace(
            columns=lambda x: self.features(self.columns(x)), features=lambda columns: columns
        )


def roomy(x) -> bool:
    """Whether there is memory for a copy of x (`tuning.copied_bytes`)."""
    return (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x)) <= tuning.copied_bytes()
    )
