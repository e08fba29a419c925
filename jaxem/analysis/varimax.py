"""`varimax`: a rotation of factor loadings that is easy to read."""

import itertools

import jax
import jax.numpy as jnp

SWEEPS = 30
"""Sweeps over all pairs of factors. Each sweep about squares the distance to the maximum once it is
small; 12 factors take 8 of them in float64."""


def varimax(loadings, normalize: bool = True):
    """Loadings after the rotation of the factors that maximises the variance of squared loadings.

    The likelihood of `Factors` does not depend on the rotation of the factors. Varimax looks for
    one in which each loading is large or near 0: it maximises Σ_j [mean_i λ_ij⁴ − (mean_i λ_ij²)²],
    by a closed-form rotation of each pair of factors in turn. It maximises locally.

    Args:
      loadings: (d, q), or (k, d, q) of k components, each with its own rotation; q factors.
      normalize: whether every row is divided by its length before, which is Kaiser's normalization,
        and multiplied by it after. Rows of zeros stay.

    Returns loadings of the same shape, in the same order of factors, with the sign of each column
    such that its sum is not negative. Raises ValueError where loadings have another number of axes.
    Sources: Kaiser 1958, Psychometrika 23, 187-200; as R's `varimax`.
    """
    loadings = jnp.asarray(loadings)
    loadings = loadings if jnp.issubdtype(loadings.dtype, jnp.inexact) else loadings.astype(float)
    if loadings.ndim not in (2, 3):
        raise ValueError(
            f"loadings must have shape (d, q), or (k, d, q) of k components, got {loadings.shape}"
        )
    if loadings.ndim == 3:
        return jax.vmap(lambda matrix: _rotated(matrix, normalize))(loadings)
    return _rotated(loadings, normalize)


def _rotated(loadings, normalize):
    length = jnp.sqrt(jnp.square(loadings).sum(1, keepdims=True))
    length = jnp.where(length > 0, length, 1) if normalize else jnp.ones_like(length)
    pairs = list(itertools.combinations(range(loadings.shape[1]), 2))
    columns = (loadings / length).T
    if pairs:
        first, second = jnp.asarray(pairs).T

        def turn(i, columns):
            i = i % len(pairs)
            return _turned(columns, first[i], second[i])

        columns = jax.lax.fori_loop(0, SWEEPS * len(pairs), turn, columns)
    sign = jnp.where(columns.sum(1, keepdims=True) < 0, -1, 1)
    return (sign * columns).T * length


def _turned(columns, i, j):
    """Columns (q, d) with the pair i, j in the rotation that maximises their criterion."""
    x, y = columns[i], columns[j]
    u, v = jnp.square(x) - jnp.square(y), 2 * x * y
    along = (jnp.square(u) - jnp.square(v)).mean() - jnp.square(u.mean()) + jnp.square(v.mean())
    across = 2 * ((u * v).mean() - u.mean() * v.mean())
    angle = jnp.arctan2(across, along) / 4
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return columns.at[i].set(cos * x + sin * y).at[j].set(cos * y - sin * x)
