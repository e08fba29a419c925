"""Banks of independent columns, whose cells may be missing: log p(x | k) = Σ_d log p(x_d | k).

A cell that is NaN drops out, of the log density and of all sums, where `missing` is set. A mask
(n, d) says which cells were observed; it is None where cells are not missing, so that nothing is
computed for it.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision, stop_gradient

from jaxem.protocol.counts import is_empty, safe


def domain_of(domain, missing: bool):
    """The domain, which takes NaN where cells may be missing."""
    return dataclasses.replace(domain, missing=True) if missing else domain


def require_flag(missing) -> None:
    """TypeError unless `missing` is True or False."""
    if not isinstance(missing, (bool, np.bool_)):
        raise TypeError(
            f"missing must be True or False, got {missing!r}: with True a cell that is NaN was not "
            "observed"
        )


def observed(x, missing: bool):
    """The mask of x (n, d), or None."""
    return x == x if missing else None


def masked(mask, values, other=0.0):
    """values (n, d) or (n, k, d), and `other` in missing cells."""
    if mask is None:
        return values
    return jnp.where(mask if values.ndim == 2 else mask[:, None], values, other)


def counts(weights, mask):
    """Σw of weights (n, k): (k,), or by column (k, d)."""
    if mask is None:
        return weights.sum(0)
    return jnp.matmul(weights.T, mask.astype(weights.dtype), precision=Precision.HIGHEST)


def by_column(count):
    """Σw as (k, 1) or (k, d)."""
    return count if count.ndim == 2 else count[:, None]


def sums(weights, mask, each):
    """Σw·each (k, d) of values (n, k, d) over the observed cells."""
    return (weights[:, :, None] * masked(mask, each)).sum(0)


def volume(logs, mask):
    """Σ_d of logs (d,): a number, or (n,) over the observed cells of every unit."""
    return logs.sum() if mask is None else jnp.where(mask, logs, 0).sum(-1)


def share(weights, mask):
    """Weights (n, k, d) or (n, k, 1) that sum to 1 over the units, for moments of starts: in a
    column without an observed cell those of all components together."""
    cells = weights[:, :, None] * (1 if mask is None else mask[:, None])
    total = cells.sum(0)
    cells = jnp.where(is_empty(total), cells.sum(1, keepdims=True), cells)
    return cells / safe(cells.sum(0))


def moments(weights, mask, x):
    """Mean and variance (k, d) of x (n, d), by `share`."""
    cells, x = share(weights, mask), masked(mask, x)
    mean = (cells * x[:, None]).sum(0)
    return mean, (cells * jnp.square(x[:, None] - mean)).sum(0)


def column_means(x, weights, mask) -> Any:
    """The weighted mean (d,) of every column of observed cells, for the units of the arithmetic. It
    is not differentiated."""
    x, weights = stop_gradient((masked(mask, x), weights))
    cells = jnp.broadcast_to(weights[:, None] * (1 if mask is None else mask), x.shape)
    return ((cells / safe(cells.sum(0))) * x).sum(0)


def varying(x, weights, mask, tolerance):
    """Which columns (d,) have present cells further apart than `tolerance`."""
    present = jnp.broadcast_to((weights > 0)[:, None] & (True if mask is None else mask), x.shape)
    high = jnp.max(jnp.where(present, x, -jnp.inf), axis=0)
    low = jnp.min(jnp.where(present, x, jnp.inf), axis=0)
    return high - low > tolerance


def filled_by_mean(points):
    """Points (n, e) with the mean of the observed values of a column in place of NaN."""
    mask = points == points
    mean = jnp.where(mask, points, 0).sum(0) / jnp.maximum(mask.sum(0), 1)
    return jnp.where(mask, points, mean)
