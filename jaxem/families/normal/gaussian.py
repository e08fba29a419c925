"""Params and sufficient statistics of normal components, whatever bank they are of."""

from typing import Any, NamedTuple

from jaxem.numerics.tree import pytree


@pytree(eq=False)
class NormalParams:
    """mean (k, d); covariance (k, d, d) full, (d, d) tied, (k, d) diagonal, (k,) spherical."""

    mean: Any
    covariance: Any


class NormalStatistics(NamedTuple):
    """Moments about the mean that params hold: Σw (k,), Σw·c (k, d), Σw·c cᵀ by structure."""

    count: Any
    first: Any
    second: Any
