"""Rows with missing cells or with noise of known variance, row by row.

A row is x = (v + e)_o: its observed cells o of v ~ N(μ, Σ) and of e ~ N(0, N), whose variance N
is known, 0 without noise. Its density is that of N(μ_o, Σ_oo + N_oo); the M-step takes the mean and
the covariance of v given the row. Sources: Little & Rubin 2019, chapter 11; Bovy, Hogg & Roweis
2011.

Axes: `n` rows, minor; `k` components; `d` features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal.cells import Cells
from jaxem.families.normal.moments import LOG_2PI, weighted_sums
from jaxem.numerics import tuning
from jaxem.numerics.rows import are_sharded
from jaxem.numerics.sweeps import product, swept, times
from jaxem.passes.chunks import in_chunks


class Given(NamedTuple):
    """What rows say of v: distance and log_det (k, n), of their observed cells; shift (k, d, n),
    E[v | x] − μ; spread (k, d, d, n), cov(v | x), or (k, d, n) its diagonal."""

    distance: Any
    log_det: Any
    shift: Any
    spread: Any


def given_cells(mean, covariance, cells: Cells, once=False) -> Given:
    """`Given` for means (k, d) and covariances (k, d, d), or (k, d) where features are
    uncorrelated and noise is (n, d). once: as in `swept`."""
    observed = cells.observed.T
    centred = jnp.where(observed, cells.x.T - mean[:, :, None], 0)
    if covariance.ndim == 2:
        return _by_feature(centred, covariance[:, :, None], cells)
    noise = cells.noise
    if noise is not None:
        noise = jnp.moveaxis(noise, 0, -1)
        noise = (
            noise * jnp.eye(len(noise), dtype=noise.dtype)[..., None] if noise.ndim == 2 else noise
        )
    total = jnp.broadcast_to(covariance[..., None], (*covariance.shape, cells.x.shape[0]))
    matrix, log_det = swept(total if noise is None else total + noise, observed, once)
    solved = times(matrix, centred)
    distance = -(centred * solved).sum(1)
    both = observed[:, None] & observed
    if noise is None:
        shift = jnp.where(observed, centred, solved)
        either = observed[:, None] | observed
        return Given(distance, log_det, shift, jnp.where(either, 0, matrix))
    # M has the rows of N where noise is small and those of Σ where it is large, so that nothing
    # cancels: with P = (Σ + N)_oo⁻¹, v is c − N P c or Σ P c, and its covariance N − N P N,
    # Σ − Σ P Σ or N P Σ.
    diagonals = (jnp.diagonal(a, axis1=-3, axis2=-2) for a in (noise, covariance[..., None]))
    of_noise, of_total = (jnp.swapaxes(a, -1, -2) for a in diagonals)
    is_small = of_noise <= of_total
    rows = jnp.where(is_small[:, :, None], noise, total)
    rows = jnp.where(both, rows, 0)
    precision = jnp.where(both, -matrix, 0)
    moved = times(rows, jnp.where(observed, -solved, 0))
    shift = jnp.where(observed, jnp.where(is_small, centred - moved, moved), solved)
    found = product(product(rows, precision), rows.swapaxes(1, 2))
    is_alike = is_small[:, :, None] == is_small[:, None]
    whole = jnp.where(is_small[:, :, None], noise, total)
    within = jnp.where(is_alike, whole - found, found)
    across = jnp.where(observed[:, None], 0, product(jnp.where(observed, matrix, 0), noise))
    across = across + across.swapaxes(1, 2)
    neither = ~(observed[:, None] | observed)
    spread = jnp.where(both, within, jnp.where(neither, matrix, across))
    return Given(distance, log_det, shift, spread)


def _by_feature(centred, variance, cells: Cells) -> Given:
    """The same for uncorrelated features: variance (k, d, 1), spread (k, d, n)."""
    observed = cells.observed.T
    noise = 0 if cells.noise is None else cells.noise.T
    total = jnp.where(observed, variance + noise, 1)
    scaled = centred / total
    distance = (centred * scaled).sum(1)
    log_det = jnp.log(total).sum(1)
    if cells.noise is None:
        return Given(distance, log_det, centred, jnp.where(observed, 0, variance))
    is_small = noise <= variance
    shift = jnp.where(is_small, centred - noise * scaled, variance * scaled)
    spread = jnp.where(observed, variance / total * noise, variance)
    return Given(distance, log_det, shift, spread)


def posterior(mean, covariance, cells: Cells):
    """(`Given`, or None for more than two blocks of rows; log p(x | k) of the observed cells
    (n, k), 0 for a row without one)."""
    count = cells.observed.sum(1).astype(mean.dtype)[:, None]

    def of_block(cells):
        found = given_cells(mean, covariance, cells)
        return found, (found.log_det + found.distance).T

    if cells.x.shape[0] <= 2 * block_rows(covariance):
        found, distance = of_block(cells)
    else:
        found = None
        distance = _by_block(lambda cells: of_block(cells)[1], cells, block_rows(covariance))
    return found, -0.5 * (count * LOG_2PI + distance)


def completed(mean, covariance, cells: Cells):
    """E[x | k] given the observed cells, which stay as they are, (n, k, d)."""

    def of_block(cells):
        shift = given_cells(mean, covariance, cells, once=True).shift
        expected = jnp.moveaxis(shift + mean[:, :, None], -1, 0)
        return jnp.where(cells.observed[:, None], cells.x[:, None], expected)

    return _by_block(of_block, cells, block_rows(covariance))


def _by_block(function, cells: Cells, rows: int):
    """`function(cells) -> (n, ...)` of blocks of rows, joined."""
    n = cells.x.shape[0]
    if n <= rows or are_sharded():
        return function(cells)
    count = -(-n // rows)

    def blocks(a):
        padded = jnp.pad(a, [(0, count * rows - n)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(count, rows, *a.shape[1:])

    found = jax.lax.map(jax.checkpoint(function), jax.tree.map(blocks, cells))
    return found.reshape(count * rows, *found.shape[2:])[:n]


def moments(mean, covariance, cells: Cells, weights, varies=None, q=None, once=False):
    """(Σw (k,), Σw·E[v − μ | x] (k, d), Σw·E[(v − μ)(v − μ)ᵀ | x] (k, d, d), or (k, d) its
    diagonal), for weights (n, k). Rows without an observed cell count 0. varies (d,): the features
    that are not constant, None for all; of the others every cell is known. q: the `Given` of the
    rows, None where it is not at hand. once: as in `swept`."""

    def of_rows(found, cells, weights):
        weights = jnp.where(cells.any[:, None], weights, 0).T
        if varies is not None:
            of_spread = varies if found.spread.ndim == 3 else varies[:, None] & varies
            found = found._replace(spread=jnp.where(of_spread[..., None], found.spread, 0))
        return summed_moments(found, weights)

    def of_block(params, block, row_weights):
        cells, weights = block
        found = of_rows(given_cells(*params, cells, once), cells, weights * row_weights[:, None])
        return found, jnp.zeros_like(row_weights)

    if q is not None:
        return of_rows(q, cells, weights)
    ones, rows = jnp.ones_like(weights[:, 0]), block_rows(covariance)
    return in_chunks(of_block, rows, (mean, covariance), (cells, weights), ones).statistics


def summed_moments(found: Given, weights):
    """The `moments` of rows from their `Given`, for weights (k, n)."""
    if found.spread.ndim == 3:
        return weighted_sums(weights, found.shift, jnp.square(found.shift) + found.spread)
    k, d, _, n = found.spread.shape
    weighted = weights[:, None] * found.shift
    outer = jnp.matmul(weighted, found.shift.swapaxes(1, 2), precision=Precision.HIGHEST)
    spread = found.spread.reshape(k, d * d, n)
    spread = jnp.matmul(spread, weights[..., None], precision=Precision.HIGHEST)
    return weights.sum(1), weighted.sum(2), outer + spread.reshape(k, d, d)


def block_rows(covariance) -> int:
    """Rows of a block whose matrices stay in the cache of a CPU, or fit an accelerator."""
    rows = tuning.chunk_numbers() // max(1, covariance.size)
    return max(64, rows - rows % 64)
