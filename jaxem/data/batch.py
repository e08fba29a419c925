"""`Batch`: many data sets in one call, of one length or padded to few lengths."""

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

    The data sets of a list are padded with units of weight 0 to few lengths, each at most 1.5 times
    the one before. Memory during a fit: a copy of the padded data, about five times the params of
    every fit, and the temporaries of as many fits as there are lanes.
    """

    def __init__(self, data):
        self.data = data


LENGTH_RATIO = 1.5
"""The ratio of one padded length to the one before."""


class Block(NamedTuple):
    """Data sets of one padded length.

    x: (b, n, d), or a tree of such arrays. weights: (b, n), or None for 1. index: the position of
    each data set in the batch. shortest: the number of units of the shortest data set.
    """

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
    if any(isinstance(dataset, Documents) for dataset in data):
        return _padded_blocks(_documents_of_one_width(data), weights)
    sets = [as_array(dataset, f"Batch data[{i}]") for i, dataset in enumerate(data)]
    sets = [dataset if is_traced(dataset) else np.asarray(dataset) for dataset in sets]
    for i, dataset in enumerate(sets):
        if dataset.ndim != 2 or 0 in dataset.shape or dataset.shape[1] != sets[0].shape[1]:
            raise ValueError(
                f"Batch data[{i}] has shape {dataset.shape}: every data set must be (n, d) with at "
                f"least one unit and the width of the first, {sets[0].shape[-1]}"
            )
    return _padded_blocks(sets, weights)


def _documents_of_one_width(data):
    """`Documents` of one vocabulary, all padded to the number of cells of the longest document."""
    for i, documents in enumerate(data):
        if not isinstance(documents, Documents):
            raise TypeError(
                f"Batch data[{i}] is {type(documents).__name__}, others are Documents: give one "
                "kind"
            )
        if documents.vocabulary != data[0].vocabulary:
            raise ValueError(
                f"Batch data[{i}] has a vocabulary of {documents.vocabulary} words, data[0] one of "
                f"{data[0].vocabulary}: build all with the same jaxem.Documents(..., vocabulary=)"
            )
    cells = max(documents.words.shape[1] for documents in data)

    def padded(leaf):
        xp = jnp if is_traced(leaf) else np
        return leaf if leaf.ndim < 2 else xp.pad(leaf, ((0, 0), (0, cells - leaf.shape[1])))

    return [jax.tree.map(padded, documents) for documents in data]


def _padded_blocks(sets, weights) -> list[Block]:
    """Data sets as blocks of few padded lengths."""
    if weights is None:
        weights = [np.ones(len(dataset), float_dtype(dataset)) for dataset in sets]
    if len(weights) != len(sets):
        raise ValueError(f"weights must be a list of {len(sets)}, one a data set")
    pairs = zip(weights, sets, strict=True)
    weights = [as_weights(w, len(dataset), float_dtype(dataset)) for w, dataset in pairs]
    longest = max(len(dataset) for dataset in sets)
    members: dict[int, list[int]] = {}
    for i, dataset in enumerate(sets):
        members.setdefault(min(padded_length(len(dataset)), longest), []).append(i)
    return [
        _padded_block(sets, weights, length, np.array(positions))
        for length, positions in sorted(members.items())
    ]


def padded_length(n: int) -> int:
    """The least of the lengths 8, 12, 18, 27, … that is n or more."""
    length = 8
    while length < n:
        length = math.ceil(LENGTH_RATIO * length)
    return length


def _padded_block(sets, weights, n: int, index) -> Block:
    def pad_and_stack(*arrays):
        """Arrays padded with zeros to n rows and stacked, on the host unless one is traced."""
        dtype = np.result_type(*(a.dtype for a in arrays))
        if is_traced(arrays):
            padding = [jnp.zeros((n - len(a), *a.shape[1:]), a.dtype) for a in arrays]
            padded = [jnp.concatenate(pair) for pair in zip(arrays, padding, strict=True)]
            return jnp.stack(padded).astype(dtype)
        stack = np.zeros((len(arrays), n, *arrays[0].shape[1:]), dtype)
        for row, array in zip(stack, arrays, strict=True):
            row[: len(array)] = array
        return stack

    x = jax.tree.map(pad_and_stack, *(sets[i] for i in index))
    padded_weights = pad_and_stack(*(weights[i] for i in index)).astype(float_dtype(x))
    return Block(x, padded_weights, index, min(len(sets[i]) for i in index))
