"""`Batch`: many data sets in one call, of one length or padded to few lengths."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_array, as_data, as_weights, is_tree
from jaxem.data.data import Data, as_units, of_components
from jaxem.data.documents import Documents, of_one_form
from jaxem.data.grouped import Grouped
from jaxem.data.sequences import Sequences
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, have_unit_axes, is_traced
from jaxem.protocol.returned import listed


class Batch:
    """Many data sets, fitted independently, results in the order given.

    Args:
      data: one of

        - an array (b, n, d), or (b, n, ...) for models that take other units than rows;
        - a dict, a named tuple, `Data` or another tree of arrays (b, n, ...), stacked: the
          first axis of every array counts data sets and the second units;
        - a list of data sets of any lengths, each of them data for one `fit`: arrays (n_i, d),
          trees of arrays (n_i, ...), tuples such as (features, y), `Sequences`, or `Documents` of
          one vocabulary. A plain tuple is such a list. Arrays differ in the number of units alone.

    Integers stay integers in a tree, such as categories that index a table of params; a bare array
    becomes floating point.

    The data sets of a list are padded with units of weight 0 to few lengths: on a CPU each at most
    1.5 times the one before, on an accelerator at most four. Memory during a fit: a copy of the
    padded data, about five times the params of every fit, and the intermediate arrays of as many
    fits as there are `Lanes`.
    """

    def __init__(self, data):
        self.data = data


ACCEPTED = (
    "Batch takes an array (b, n, d), a stacked tree of arrays (b, n, ...), or a list of arrays "
    "(n, d), of trees or of Documents"
)

LENGTH_RATIO = 1.5
"""The ratio of one padded length to the one before."""


class Block(NamedTuple):
    """Data sets of one padded length.

    x: (b, n, d), or a tree of arrays (b, n, ...). weights: (b, n), or None for 1. index: the
    position of each data set in the batch. sizes: the number of units of each, without padding.
    """

    x: Any
    weights: Any
    index: np.ndarray
    sizes: np.ndarray


def as_blocks(batch: Batch, weights, repeat: bool = False) -> list[Block]:
    """A batch as blocks of equal shape; ValueError where the data sets cannot be stacked.

    repeat: whether data sets are padded with copies of their last unit, not with zeros.
    """
    data, weights, _ = grouped_sets(batch.data, weights)
    if is_list(data):
        if not data:
            raise TypeError(f"Batch data are an empty list: {ACCEPTED}")
        is_documents = any(isinstance(dataset, Documents) for dataset in data)
        sets = _documents_of_one_vocabulary(data) if is_documents else _data_sets(data)
        return _padded_blocks(sets, weights, repeat)
    if isinstance(data, Documents):
        raise TypeError("Batch data are one Documents: use fit(model, documents), or give a list")
    if not (hasattr(data, "ndim") or is_tree(data)):
        raise TypeError(f"{ACCEPTED}; got {type(data).__name__}")
    return [_stacked(data, weights)]


def grouped_sets(data, weights):
    """(data of a batch, weights, the `Names` of the groups of every data set or None): data sets
    with groups as `Grouped`, with one weight a group, in a list; else as they are."""
    if isinstance(data, Data) and data.groups is not None:
        sets = [data_set_at(data, i) for i in range(np.shape(data.groups)[0])]
        weights = weights if weights is None else list(weights)
        return grouped_sets(sets, weights)
    if not is_list(data) or not any(isinstance(d, Data) and d.groups is not None for d in data):
        return data, weights, None
    found = [as_units(one, f"Batch data[{i}]") for i, one in enumerate(data)]
    sets, names = [x for x, _, _ in found], [names for _, _, names in found]
    if weights is not None and len(weights) == len(sets):
        weights = [
            w if n is None or w is None else n.weights(w, f"weights[{i}]")
            for i, (w, n) in enumerate(zip(weights, names, strict=True))
        ]
    return sets, weights, names


def is_list(data) -> bool:
    """Whether the data of a batch are a list of data sets, not a stacked array or tree."""
    return isinstance(data, (list, tuple)) and not hasattr(data, "_fields")


def data_set_at(data, index):
    """The data of a batch, or its weights, at an index; those of several for a slice or an array
    of indices."""
    if not is_list(data):
        return jax.tree.map(lambda a: a[index], data)
    positions = np.arange(len(data))[index]
    return [data[i] for i in positions] if positions.ndim else data[positions]


def check_data_sets(batch: Batch, blocks: list[Block], domain, name: str):
    """The shapes of one data set, (n, d) or a tree; ValueError or TypeError where a model with this
    domain does not take them. name: of the model."""
    x = blocks[0].x
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
    try:
        domain.check(shapes, name)
    except (TypeError, ValueError) as error:
        plain = None if isinstance(shapes, Grouped) else of_components(shapes)
        if not hasattr(plain, "ndim") or plain.ndim == 2:
            raise type(error)(f"every data set of the Batch: {error}") from None
        at = int(blocks[0].index[0])
        got = of_components(batch.data)
        got = (
            f"data[{at}] of shape {np.shape(of_components(got[at]))}"
            if is_list(got)
            else (f"shape {tuple(got.shape)}")
        )
        remedy = ": for one feature add an axis, x[..., None]" if plain.ndim == 1 else ""
        raise ValueError(
            f"for {name} Batch takes an array (b, n, d) or a list of arrays (n, d), got "
            f"{got}{remedy}"
        ) from None
    return shapes


def _stacked(data, weights) -> Block:
    """The block of a stacked array or tree."""
    x, sets = as_data(data, "Batch data")
    leaves = jax.tree_util.tree_leaves_with_path(x)
    for path, leaf in leaves:
        name = "Batch data" + jax.tree_util.keystr(path)
        if leaf.ndim < 2:
            raise ValueError(
                f"{name} has shape {leaf.shape}: a stacked batch has axes (b, n, ...), data sets "
                "first and units second; for data sets of different lengths give a list of them"
            )
        if leaf.shape[1] != leaves[0][1].shape[1]:
            raise ValueError(
                f"{name} has {leaf.shape[1]} units a data set, Batch data"
                f"{jax.tree_util.keystr(leaves[0][0])} {leaves[0][1].shape[1]}: the second axis "
                "of every array counts units"
            )
    n = leaves[0][1].shape[1]
    if weights is not None:
        weights = as_array(weights, "weights").astype(float_dtype(x))
        if weights.shape != (sets, n):
            raise ValueError(f"weights must have shape {(sets, n)}, got {weights.shape}")
    return Block(x, weights, np.arange(sets), np.full(sets, n))


def _data_sets(data):
    """The data sets of a list, each an array or a tree, of one structure and of one width."""
    sets = []
    for i, dataset in enumerate(data):
        if isinstance(dataset, Sequences) and dataset.is_converted:
            sets.append(dataset)
            continue
        x, _ = as_data(dataset, f"Batch data[{i}]")
        sets.append(x if is_traced(x) else jax.tree.map(np.asarray, x))
    structure, first = jax.tree.structure(sets[0]), jax.tree.leaves(sets[0])
    for i, x in enumerate(sets):
        in_time = isinstance(x, PADDED) and type(x) is type(sets[0])
        if in_time:
            _require_one_width(i, x, sets[0])
        elif jax.tree.structure(x) != structure:
            raise ValueError(
                f"Batch data[{i}] is {_described(x)}, data[0] is {_described(sets[0])}: give all "
                "data sets the same structure"
            )
        pairs = [] if in_time else zip(jax.tree.leaves(x), first, strict=True)
        if any(a.shape[1:] != b.shape[1:] for a, b in pairs):
            _refuse_width(i, x, first)
    return sets


PADDED = (Sequences, Grouped)
"""Data whose units are rows in number, which are padded too."""


def _require_one_width(i: int, x, first):
    """ValueError unless two `Sequences` have the same numbers of features and of inputs, two
    `Grouped` rows of the same arrays."""
    if isinstance(x, Grouped) and x.widths != first.widths:
        raise ValueError(
            f"Batch data[{i}] has other fields, or fields of other widths, than data[0]: give all "
            "data sets the same ones"
        )
    if x.widths != first.widths:
        raise ValueError(
            f"Batch data[{i}] has (features, inputs) {x.widths}, data[0] {first.widths}: all "
            "sequences must have the same ones"
        )


def _described(x) -> str:
    return f"an array of shape {x.shape}" if hasattr(x, "shape") else listed(x)


def _refuse_width(i: int, x, first):
    """ValueError that names the first array of data set i whose width is not that of data[0]."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    for (path, leaf), expected in zip(leaves, first, strict=True):
        if leaf.shape[1:] != expected.shape[1:]:
            raise ValueError(
                f"Batch data[{i}]{jax.tree_util.keystr(path)} has shape {leaf.shape}, that of "
                f"data[0] {expected.shape}: every data set must have the width of the first, only "
                "the number of units may differ"
            )


def _documents_of_one_vocabulary(data):
    """The `Documents` of a list; ValueError where their vocabularies differ."""
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
    return list(data)


def _padded_blocks(sets, weights, repeat) -> list[Block]:
    """Data sets as blocks of few padded lengths."""
    sizes = np.array([jax.tree.leaves(x)[0].shape[0] for x in sets])
    weights = _weights_of(sets, sizes, weights)
    is_documents, is_sequences = (isinstance(sets[0], kind) for kind in (Documents, PADDED))
    # Sequences of a block have one number of rows, and the sets one number of sequences.
    lengths = np.array([x.longest for x in sets]) if is_sequences else sizes
    longest = int(lengths.max())
    members: dict[int, list[int]] = {}
    for i, n in enumerate(lengths.tolist()):
        members.setdefault(min(padded_length(n), longest), []).append(i)
    if tuning.platform() != "cpu":
        members = _fewer(members, tuning.ACCELERATOR_LENGTHS)
    if not is_documents:
        forms = [one.widened(one.longest) for one in sets] if is_sequences else sets
        leaves = zip(*map(jax.tree.leaves, forms), strict=True)
        dtypes = [jnp.result_type(*{leaf.dtype for leaf in of_sets}) for of_sets in leaves]
    blocks = []
    for length, positions in sorted(members.items()):
        block = [sets[i] for i in positions]
        if is_documents:
            block = of_one_form(block)
            dtypes = _dtypes_of_documents(block[0], float_dtype(sets))
        elif is_sequences:
            block = [one.widened(length) for one in block]
            length = int(sizes[positions].max())
        index, of_block = np.array(positions), [weights[i] for i in positions]
        x, padded_weights = _padded_block(block, of_block, dtypes, length, repeat)
        blocks.append(Block(x, padded_weights, index, sizes[index]))
    return blocks


def _fewer(members, most: int):
    """{length: positions} with at most so many lengths: neighbours that add the least padding are
    joined."""
    lengths = sorted(members)
    while len(lengths) > most:
        added = [(b - a) * len(members[a]) for a, b in itertools.pairwise(lengths)]
        shorter = lengths.pop(int(np.argmin(added)))
        longer = next(length for length in lengths if length > shorter)
        members[longer] = sorted(members[shorter] + members[longer])
    return {length: members[length] for length in lengths}


def _dtypes_of_documents(documents, dtype):
    """The dtype of every leaf: `dtype`, or that of integers."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(documents)]
    return [dtype if jnp.issubdtype(own, jnp.floating) else own for own in dtypes]


def _weights_of(sets, sizes, weights) -> list:
    """The weights (n_i,) of every data set, 1 where none are given."""
    if weights is None:
        weights = [None] * len(sets)
    if not isinstance(weights, (list, tuple)) and np.ndim(weights) == 0:
        raise TypeError(
            f"weights must be a list of {len(sets)}, one a data set, got {type(weights).__name__}"
        )
    if len(weights) != len(sets):
        raise ValueError(
            f"weights must be a list of {len(sets)}, one a data set, got {len(weights)}"
        )
    return [
        np.ones(n, float_dtype(x))
        if w is None
        else as_weights(w, n, float_dtype(x), f"weights[{i}]")
        for i, (w, n, x) in enumerate(zip(weights, sizes.tolist(), sets, strict=True))
    ]


def padded_length(n: int) -> int:
    """The least of the lengths 8, 12, 18, 27, … that is n or more."""
    length = 8
    while length < n:
        length = math.ceil(LENGTH_RATIO * length)
    return length


def _padded_block(sets, weights, dtypes, n: int, repeat):
    """(data (b, n, ...), weights (b, n)) of the data sets of a block."""

    def pad_and_stack(arrays, dtype, repeat, has_unit_axis=True):
        """Arrays padded to n rows and stacked, on the host unless one is traced."""
        if not has_unit_axis:
            return (jnp if is_traced(arrays) else np).stack(arrays).astype(dtype)
        if is_traced(arrays):
            mode = {"mode": "edge"} if repeat else {}
            padding = [((0, n - len(a)), *((0, 0),) * (a.ndim - 1)) for a in arrays]
            padded = [jnp.pad(a, p, **mode) for a, p in zip(arrays, padding, strict=True)]
            return jnp.stack(padded).astype(dtype)
        stack = np.zeros((len(arrays), n, *arrays[0].shape[1:]), dtype)
        for row, array in zip(stack, arrays, strict=True):
            row[: len(array)] = array
            if repeat:
                row[len(array) :] = array[-1:]
        return stack

    structure = jax.tree.structure(sets[0])
    leaves = zip(*map(jax.tree.leaves, sets), strict=True)
    stacked = [
        pad_and_stack(arrays, dtype, repeat, has_unit_axis)
        for arrays, dtype, has_unit_axis in zip(
            leaves, dtypes, have_unit_axes(sets[0]), strict=True
        )
    ]
    x = jax.tree.unflatten(structure, stacked)
    return x, pad_and_stack(weights, float_dtype(x), False)
