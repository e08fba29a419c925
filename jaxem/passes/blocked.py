"""Rows sorted by kind into blocks, for passes whose coefficients depend on the kind of a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

LEAST_BLOCK, MOST_BLOCK = 32, 512
"""Rows of a block."""


class Blocks(NamedTuple):
    """Where rows lie in blocks of rows of one kind. row (b, r): the row, of padding any; inside
    (b, r), which are no padding; kind (b,), that of a block; place (n,), that of a row in b · r."""

    row: Any
    inside: Any
    kind: Any
    place: Any


class Blocked(NamedTuple):
    """A bank whose log density is linear in features, with coefficients for every kind of row.

    log p(x | j) = coefficients[kind, j] · features(x), where feature `one` is 1.

    kinds: their number. kind(x) -> (n,), integers. columns(x) -> (n, c). features(columns (c, r))
    -> (size, r). coefficients(params) -> (kinds, k, size). statistics(params, sums (kinds, size,
    k)) -> the bank's statistics from Σw·features. terms(params): as in `FusedPass`.
    """

    kinds: int
    size: int
    one: int
    kind: Callable
    columns: Callable
    features: Callable
    coefficients: Callable
    statistics: Callable
    terms: Callable


def block_rows(n: int, kinds: int) -> int:
    """Rows of a block: a power of two near the mean number of rows of a kind."""
    size = MOST_BLOCK
    while size > LEAST_BLOCK and size * kinds > n:
        size //= 2
    return size


def in_blocks(kind, kinds: int) -> Blocks:
    """`Blocks` of rows of kinds (n,). Their number is the largest one possible."""
    n, size = kind.shape[0], block_rows(kind.shape[0], kinds)
    order = jnp.argsort(kind, stable=True)
    first = jnp.searchsorted(kind[order], jnp.arange(kinds))
    count = jnp.diff(first, append=n)
    blocks = -(-count // size)
    last = jnp.cumsum(blocks)
    most = n // size + kinds
    number = jnp.arange(most)
    of_block = jnp.minimum(jnp.searchsorted(last, number, side="right"), kinds - 1)
    begin = (number - (last - blocks)[of_block]) * size
    within = begin[:, None] + jnp.arange(size)
    inside = (within < count[of_block][:, None]) & (number < last[-1])[:, None]
    at = jnp.where(inside, first[of_block][:, None] + within, 0)
    row = order[at]
    cells = jnp.arange(most * size).reshape(most, size)
    place = jnp.zeros(n, cells.dtype).at[jnp.where(inside, row, n)].set(cells, mode="drop")
    return Blocks(row, inside, of_block, place)
