"""Cholesky factors, and inverses of triangular matrices, of many matrices at once.

On a CPU they are loops of elementwise operations and products. XLA's own routines for a CPU hand
the matrices to a pool of threads and wait for them in a thread of that pool, so that as many calls
at a time as there are threads wait for each other for ever (jaxlib 0.10.2: two on two cores).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import Precision

from jaxem.numerics import tuning


def times(matrix, vector):
    return jnp.matmul(matrix, vector, precision=Precision.HIGHEST)


@jax.custom_jvp
def cholesky(matrix):
    """The lower Cholesky factors of (..., d, d), from their lower triangles. Some of their columns
    are NaN where a matrix is not positive definite."""
    if tuning.platform() != "cpu":
        return lax.linalg.cholesky(matrix, symmetrize_input=False)
    return _factorised(matrix)


@partial(jax.jit, inline=True)  # outside of jit, its loops are compiled once
def _factorised(matrix):
    d, size = matrix.shape[-1], tuning.ELIMINATED_ROWS
    rest = jnp.tril(matrix) + jnp.tril(matrix, -1).swapaxes(-1, -2)
    if d <= tuning.ELIMINATED_FEATURES:
        return _factor(_eliminated(rest))
    blocks = -(-d // size)
    rest, rows = _padded(rest, blocks * size), jnp.arange(blocks * size)[:, None]

    def factor_block(j, carry):
        rest, lower = carry
        panel = lax.dynamic_slice_in_dim(rest, j * size, size, -1)
        block = lax.dynamic_slice_in_dim(panel, j * size, size, -2)
        identity = jnp.broadcast_to(jnp.eye(size, dtype=block.dtype), block.shape)
        both = _eliminated(jnp.concatenate([block, identity], axis=-1))
        on_diagonal = _factor(both[..., :size])
        inverse = both[..., size:] / _root(both)
        below = jnp.where(rows >= (j + 1) * size, times(panel, inverse.swapaxes(-1, -2)), 0)
        rest = rest - times(below, below.swapaxes(-1, -2))
        panel = lax.dynamic_update_slice_in_dim(below, on_diagonal, j * size, -2)
        return rest, lax.dynamic_update_slice_in_dim(lower, panel, j * size, -1)

    _, lower = lax.fori_loop(0, blocks, factor_block, (rest, jnp.zeros_like(rest)))
    return lower[..., :d, :d]


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    lower = cholesky(*primals)
    inverse = triangular_inverse(lower)
    inner = times(times(inverse, *tangents), inverse.swapaxes(-1, -2))
    half = jnp.tril(inner) * (1 - jnp.eye(inner.shape[-1], dtype=inner.dtype) / 2)
    return lower, times(lower, half)


def _eliminated(matrix):
    """Matrices (..., d, m ≥ d) after Gaussian elimination below the diagonal: for [A, 1] with a
    symmetric A = L Lᵀ and D = diag(L)², [D^½ Lᵀ, D^½ L⁻¹]."""
    d = matrix.shape[-2]
    rows = jnp.arange(d)[:, None]

    def eliminate(c, matrix):
        row = lax.dynamic_slice_in_dim(matrix, c, 1, -2)
        column = lax.dynamic_slice_in_dim(matrix, c, 1, -1)
        pivot = lax.dynamic_slice_in_dim(row, c, 1, -1)
        return matrix - jnp.where(rows > c, column / pivot, 0) * row

    return lax.fori_loop(0, d - 1, eliminate, matrix)


def _root(upper):
    """D^½ (..., d, 1) of `_eliminated` matrices."""
    return jnp.sqrt(jnp.diagonal(upper, axis1=-2, axis2=-1))[..., None]


def _factor(upper):
    """L of D^½ Lᵀ."""
    return jnp.tril((upper / _root(upper)).swapaxes(-1, -2))


@jax.custom_jvp
def triangular_inverse(lower):
    """The inverse of lower triangular (..., d, d) matrices.

    The diagonal is cut into 2^levels blocks of at most `ELIMINATED_FEATURES` rows, whose inverses
    are merged in pairs, all pairs of a level at once:
    [[A, 0], [C, D]]⁻¹ = [[A⁻¹, 0], [−D⁻¹ C A⁻¹, D⁻¹]].
    """
    d, levels = lower.shape[-1], 0
    while (size := -(-d >> levels)) > tuning.ELIMINATED_FEATURES:
        levels += 1
    if levels == 0:
        return _inverse_of_few_rows(lower)
    lead, padded = lower.shape[:-2], _padded(lower, size << levels)
    blocks = _on_diagonal(padded.reshape(*lead, 1 << levels, size, 1 << levels, size))
    inverse = _inverse_of_few_rows(blocks)
    for _ in range(levels):
        inverse_a, inverse_d = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        m = padded.shape[-1] // (2 * size)
        halves = padded.reshape(*lead, m, 2, size, m, 2, size)
        c = _on_diagonal(halves[..., 1, :, :, 0, :])
        corner = -times(inverse_d, times(c, inverse_a))
        top = jnp.concatenate([inverse_a, jnp.zeros_like(corner)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, inverse_d], axis=-1)], axis=-2)
        size *= 2
    return inverse[..., 0, :d, :d]


@triangular_inverse.defjvp
def _triangular_inverse_jvp(primals, tangents):
    inverse = triangular_inverse(*primals)
    return inverse, -jnp.tril(times(inverse, times(jnp.tril(*tangents), inverse)))


def _inverse_of_few_rows(lower):
    """The inverse of lower triangular matrices (..., d, d) with few rows."""
    if tuning.platform() == "cpu":
        return _substituted(lower)
    eye = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
    return lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)


@partial(jax.jit, inline=True)
def _substituted(lower):
    """The same by forward substitution."""
    d = lower.shape[-1]
    eye, rows = jnp.broadcast_to(jnp.eye(d, dtype=lower.dtype), lower.shape), jnp.arange(d)

    def substitute(c, inverse):
        column = lax.dynamic_slice_in_dim(lower, c, 1, -1)
        pivot = lax.dynamic_slice_in_dim(column, c, 1, -2)
        row = lax.dynamic_slice_in_dim(inverse, c, 1, -2) / pivot
        below = jnp.where(rows[:, None] > c, column, 0)
        is_row = rows[:, None] == c
        return jnp.where(is_row, row, inverse - below * row)

    return lax.fori_loop(0, d, substitute, eye)


def _padded(matrix, size: int):
    """(..., size, size) with the identity in the added rows and columns."""
    d = matrix.shape[-1]
    padding = [(0, 0)] * (matrix.ndim - 2) + [(0, size - d)] * 2
    return jnp.where(jnp.diag(jnp.arange(size) >= d), 1, jnp.pad(matrix, padding))


def _on_diagonal(blocks):
    """The m blocks (..., m, i, j) on the diagonal of m × m blocks (..., m, i, m, j)."""
    m = blocks.shape[-2]
    return jnp.where(jnp.eye(m, dtype=bool)[:, None, :, None], blocks, 0).sum(-2)
