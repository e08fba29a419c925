"""The rows of a regression as arrays with units minor, and the sums of products of regressors."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal.products import products, unpacked
from jaxem.numerics.tree import float_dtype

MOST_PRODUCTS = 16
"""Regressors up to which the products of all pairs are stored for one matrix product."""


class Rows(NamedTuple):
    """regressors (m, n), the constant first where there is one; response, offset, trials (n,), None
    where they are absent."""

    regressors: Any
    response: Any
    offset: Any
    trials: Any

    def predictor(self, coefficients):
        """η = coefficients · regressors + offset, (k, n), from coefficients (k, m)."""
        eta = jnp.matmul(coefficients, self.regressors, precision=Precision.HIGHEST)
        return eta if self.offset is None else eta + self.offset


def has_fields(x) -> bool:
    """Whether data are `jaxem.Data`, with fields beside x. (Families do not import that class.)"""
    return dataclasses.is_dataclass(x) and hasattr(x, "y") and hasattr(x, "trials")


def rows_of(x, intercept: bool) -> Rows:
    """The `Rows` of `Data`, or of regressors (n, p) alone, in its floating point numbers."""
    dtype, is_plain = float_dtype(x), not has_fields(x)
    regressors = (x if is_plain else x.x).T.astype(dtype)
    if intercept:
        constant = jnp.ones((1, regressors.shape[1]), dtype)
        regressors = jnp.concatenate([constant, regressors])
    columns = (None,) * 3 if is_plain else (x.y, x.offset, x.trials)
    return Rows(regressors, *(None if a is None else a.reshape(-1).astype(dtype) for a in columns))


def second_moments(weights, regressors):
    """Σ w u uᵀ (k, m, m), for weights (k, n) or (1, n) and regressors u (m, n)."""
    m = regressors.shape[0]
    if m > MOST_PRODUCTS:
        weighted = weights[:, None] * regressors
        return jnp.matmul(weighted, regressors.T, precision=Precision.HIGHEST)
    sums = jnp.matmul(products(regressors), weights.T, precision=Precision.HIGHEST)
    return unpacked(sums, m)
