"""Symmetric matrices swept on some of their rows: what a normal vector says about the rest of it.

Axes: `...` any batch, `d` rows, `n` matrices (last, so that elementwise code vectorises).
"""

import jax.numpy as jnp
from jax import lax

from jaxem.numerics import tuning


def swept(matrix, observed, once=False):
    """(the matrices S (..., d, d, n) after a sweep of every observed row, log |S_oo| (..., n)).

    observed: booleans that broadcast to (..., d, n). With o the observed rows of a matrix and m the
    others, the blocks are oo: −S_oo⁻¹; mo: S_mo S_oo⁻¹; mm: S_mm − S_mo S_oo⁻¹ S_om. Rounding
    errors do not depend on the scales of the rows. once: whether it is not in a hot loop, so that a
    short compile time counts more. Source: Beaton 1964; Goodnight 1979.
    """
    d = matrix.shape[-3]
    rows = jnp.arange(d)
    log_det = jnp.zeros(jnp.broadcast_shapes(matrix[..., 0, :, :].shape, observed.shape))[..., 0, :]

    def sweep(j, carry):
        matrix, log_det = carry
        is_observed = lax.dynamic_index_in_dim(observed, j, -2, keepdims=False)
        row = lax.dynamic_index_in_dim(matrix, j, -3, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, j, -2, keepdims=False)
        pivot = jnp.where(is_observed, pivot, 1)
        inverse = 1 / pivot
        part = row * inverse[..., None, :]
        cross = jnp.where((rows == j)[:, None], -inverse[..., None, :], part)
        is_row, is_column = (rows == j)[:, None, None], (rows == j)[None, :, None]
        at_pivot = jnp.where(is_row, cross[..., None, :, :], cross[..., :, None, :])
        rest = matrix - row[..., :, None, :] * part[..., None, :, :]
        after = jnp.where(is_row | is_column, at_pivot, rest)
        matrix = jnp.where(is_observed[..., None, None, :], after, matrix)
        return matrix, log_det + jnp.log(pivot)

    is_hot = not once and are_unrolled(d)
    return _repeated(d, sweep, (matrix, log_det.astype(matrix.dtype)), is_hot)


def times(matrix, vector):
    """matrix (..., i, j, n) · vector (..., j, n), (..., i, n)."""
    return (matrix * vector[..., None, :, :]).sum(-2)


def product(a, b):
    """a (..., i, j, n) · b (..., j, l, n), (..., i, l, n)."""

    def add(j, total):
        column = lax.dynamic_index_in_dim(a, j, -2, keepdims=True)
        return total + column * lax.dynamic_index_in_dim(b, j, -3, keepdims=True)

    shape = jnp.broadcast_shapes(a[..., :, :1, :].shape, b[..., :1, :, :].shape)
    d = a.shape[-2]
    return _repeated(d, add, jnp.zeros(shape, a.dtype), are_unrolled(d))


def _repeated(d: int, step, carry, unrolled: bool):
    """carry after steps 0 … d − 1, `step(j, carry)`."""
    if not unrolled:
        return lax.fori_loop(0, d, step, carry)
    for j in range(d):
        carry = step(j, carry)
    return carry


def are_unrolled(d: int) -> bool:
    """Whether the sweeps of matrices of d rows are unrolled: for few rows, and where a pass by
    patterns has too many of them. A loop copies the matrices at every row (20,000 matrices of 16
    rows in blocks of 256: 66 ms against 15) and compiles in a fifth of the time (0.1 s)."""
    return d <= tuning.SWEPT_SMALL or tuning.PATTERN_FEATURES < d <= tuning.SWEPT_LARGE
