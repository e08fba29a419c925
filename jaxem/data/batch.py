"""Many data sets in one call: an array of equal ones, or ragged ones padded to a few lengths."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_array, as_weights
from jaxem.data.documents import Documents
from jaxem.numerics.tree import float_dtype, is_traced


class Batch:
    """Many data sets, fitted independently, results in the order given.

    Args:
      data: an array (b, n, d); a list of arrays (n_i, d) of one width d and any lengths; or a list
        of `Documents` of one vocabulary.

    A list is padded with absent units to a few lengths, each at most `GRID` times the one before.
    Memory while it runs: a copy of the (padded) data, about five times the params of every fit, and
    the work of as many fits as there are lanes.
    """

    def __init__(self, data):
        self.data = data


GRID = 1.5


class Block(NamedTuple):
    """Data sets of one padded length: x (b, n, d) or a tree of such arrays, weights (b, n) or None,
    their place in order, and the number of units of the shortest."""

    x: Any
    weights: Any
    index: np.ndarray
    shortest: int


def as_blocks(batch: Batch, weights) -> list[Block]:
    """A batch as blocks of equal shape; ValueError where the data sets cannot be stacked."""
    data = batch.data
    if hasattr(data, "ndim"):
        x = as_array(data, "Batch data")
        if x.ndim != 3:
            raise ValueError(
                f"Batch takes an array (b, n, d) or a list of arrays (n, d), got shape {x.shape}"
            )
        if 0 in x.shape:
            raise ValueError(f"Batch data are empty, with shape {x.shape}")
        if weights is not None:
            weights = as_array(weights, "weights").astype(x.dtype)
            if weights.shape != x.shape[:2]:
                raise ValueError(f"weights must have shape {x.shape[:2]}, got {weights.shape}")
        return [Block(x, weights, np.arange(x.shape[0]), x.shape[1])]
    if not isinstance(data, (list, tuple)) or not data:
        raise TypeError(
            "Batch takes an array (b, n, d), a list of arrays (n, d) or a list of Documents"
        )
    if any(isinstance(one, Documents) for one in data):
        return _by_length(_corpora(data), weights)
    sets = [as_array(one, f"Batch data[{i}]") for i, one in enumerate(data)]
    sets = [one if is_traced(one) else np.asarray(one) for one in sets]
    for i, one in enumerate(sets):
        if one.ndim != 2 or 0 in one.shape or one.shape[1] != sets[0].shape[1]:
            raise ValueError(
                f"Batch data[{i}] has shape {one.shape}: every data set must be (n, d) with at "
                f"least one unit and the width of the first, {sets[0].shape[-1]}"
            )
    return _by_length(sets, weights)


def _corpora(data):
    """`Documents` of one vocabulary, all with as many cells as the longest document."""
    for i, one in enumerate(data):
        if not isinstance(one, Documents):
            raise TypeError(
                f"Batch data[{i}] is {type(one).__name__}, others are Documents: give one kind"
            )
        if one.vocabulary != data[0].vocabulary:
            raise ValueError(
                f"Batch data[{i}] has a vocabulary of {one.vocabulary} words, data[0] one of "
                f"{data[0].vocabulary}: build all with the same jaxem.Documents(..., vocabulary=)"
            )
    cells = max(one.words.shape[1] for one in data)

    def widened(leaf):
        xp = jnp if is_traced(leaf) else np
        return leaf if leaf.ndim < 2 else xp.pad(leaf, ((0, 0), (0, cells - leaf.shape[1])))

    return [jax.tree.map(widened, one) for one in data]


def _by_length(sets, weights) -> list[Block]:
    """Data sets as blocks of a few padded lengths."""
    if weights is None:
        weights = [np.ones(len(one), float_dtype(one)) for one in sets]
    if len(weights) != len(sets):
        raise ValueError(f"weights must be a list of {len(sets)}, one a data set")
    pairs = zip(weights, sets, strict=True)
    weights = [as_weights(w, len(one), float_dtype(one)) for w, one in pairs]
    longest = max(len(one) for one in sets)
    lengths: dict[int, list[int]] = {}
    for i, one in enumerate(sets):
        lengths.setdefault(min(padded_length(len(one)), longest), []).append(i)
    return [_stack(sets, weights, n, np.array(index)) for n, index in sorted(lengths.items())]


def padded_length(n: int) -> int:
    """The least length of the grid 8, 12, 18, 27, ... that holds n units."""
    length = 8
    while length < n:
        length = math.ceil(GRID * length)
    return length


def _stack(sets, weights, n: int, index) -> Block:
    def stacked(*arrays):
        """Arrays padded with zeros to n rows, on the host unless some are traced."""
        dtype = np.result_type(*(a.dtype for a in arrays))
        if is_traced(arrays):
            blank = [jnp.zeros((n - len(a), *a.shape[1:]), a.dtype) for a in arrays]
            full = [jnp.concatenate(pair) for pair in zip(arrays, blank, strict=True)]
            return jnp.stack(full).astype(dtype)
        out = np.zeros((len(arrays), n, *arrays[0].shape[1:]), dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return out

    x = jax.tree.map(stacked, *(sets[i] for i in index))
    w = stacked(*(weights[i] for i in index)).astype(float_dtype(x))
    return Block(x, w, index, min(len(sets[i]) for i in index))
