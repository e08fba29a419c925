"""Faster ways over many units: what a model promises, and banks whose log density is linear."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxem.numerics import tuning


class FusedPass(NamedTuple):
    """A faster pass over many units, for data of one shape.

    prepare(x) -> the units as the pass takes them, along `axis` of every leaf, and whatever else is
    the same in every pass; coefficients(params) -> what all units of a pass have in common;
    sums(coefficients, units, weights) -> (sums, evidence (n,)) for at most `rows` units at a time;
    statistics(params, sums) -> the model's statistics from the sums of all; terms(params) -> a
    scalar, the size of the terms of which log p(x) is the small difference, or None where they are
    never large; room: whether the units may be kept beside the data. A model whose passes only
    share what `prepare` makes leaves out the rest.
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
    """A bank whose log density is linear in features that no parameter enters: see `Bank.linear`.

    log p(x | k) = base(x) + coefficients[k] · features(x), where feature `one` is 1.

    columns(x) -> (c, n), the data with units minor, which is kept if there is `room`;
    features(columns) -> (size, n); coefficients(params, level) -> (k, size), with level (k,) in the
    place of feature `one`; base(x) -> (n,), or None where it is 0; statistics(params, sums
    (size, k)) -> the bank's statistics from Σw·features; terms(params) as in `FusedPass`;
    `lowest`: a log density from which a unit is impossible.
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
        """The same with its features kept in the place of the columns, where these are hardly fewer
        (1e5 × 8, k = 8, spherical, float64: 4.1 to 3.0 ms)."""
        columns = jax.eval_shape(self.columns, x).shape[0]
        if not self.room or self.size > columns + tuning.SPARE_FEATURES:
            return self
        return self._replace(
            columns=lambda x: self.features(self.columns(x)), features=lambda columns: columns
        )


def roomy(x) -> bool:
    """Whether there is room for a copy of x."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x)) <= tuning.ROOM
