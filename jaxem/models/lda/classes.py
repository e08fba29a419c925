"""Documents by class of length, and the passes that visit them class by class.

Axes: `n` documents, `l` cells, `k` topics, `w` documents of a block, `c` classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.models.lda.blocks import Table
from jaxem.numerics import tuning
from jaxem.numerics.tree import select


class Arranged(NamedTuple):
    """Documents sorted by class of length.

    order (n,): the documents, class by class. end (c,): the position after the last document of
    each class. words, counts (n + w, L): in that order, followed by rows of 0, so that every block
    is a slice; None where documents are stored by class.
    """

    order: jax.Array
    end: jax.Array
    words: Any
    counts: Any


def arranged(words, counts, place, k: int) -> Arranged:
    """The documents in the order in which every pass with k topics visits them."""
    if place is not None:
        (order, _, end), _ = by_class(stored_class(words, place), len(words))
        return Arranged(order, end, None, None)
    n = words.shape[0]
    lengths, rows = layout(words.shape, k)
    if rows == [n]:
        return Arranged(jnp.arange(n), jnp.full(1, n), words, counts)
    (order, _, end), _ = by_class(class_by_length(counts, lengths), len(lengths))
    padding = ((0, max(rows)), (0, 0))
    words, counts = (jnp.pad(jnp.asarray(leaf)[order], padding) for leaf in (words, counts))
    return Arranged(order, end, words, counts)


def class_layout(data: Table):
    """As `layout`, for the documents of a `Table`, which may be stored by class."""
    k = data.alpha.shape[0]
    if data.place is None:
        return layout(data.words.shape, k)
    shapes = [words.shape for words in data.words]
    n = data.place.shape[0]
    most, numbers = tuning.ACCELERATOR_DOCUMENTS, tuning.ACCELERATOR_DOCUMENT_NUMBERS
    if tuning.platform() == "cpu":
        most, numbers = tuning.MOST_DOCUMENTS, tuning.CLASS_NUMBERS
    rows = []
    for n_rows, length in shapes:
        fitting = numbers // (k * length)
        if tuning.platform() == "cpu":
            fitting = min(
                fitting, max(tuning.LEAST_DOCUMENTS, tuning.DOCUMENT_NUMBERS // (k * length))
            )
        rows.append(min(n, n_rows, max(1, fitting), most))
    return [length for _, length in shapes], rows


def layout(shape, k: int):
    """(the length of each class of documents, ascending; the number of documents of its blocks).

    shape: (n, L) of the documents.
    """
    n, longest = shape
    lengths = [longest]
    shortest, (least_ratio, classes) = tuning.SHORTEST, tuning.length_classes()
    # One very long document must not pad all others to a length of the same order.
    ratio = (longest / (shortest * tuning.LENGTH_SPAN)) ** (1 / max(classes - 1, 1))
    ratio = max(least_ratio, ratio)
    while len(lengths) < classes and lengths[-1] / ratio >= shortest:
        lengths.append(int(lengths[-1] / ratio))
    lengths = lengths[::-1]
    if tuning.platform() == "cpu":
        fitting = [tuning.DOCUMENT_NUMBERS // (k * length) for length in lengths]
        rows = [min(max(tuning.LEAST_DOCUMENTS, r), tuning.MOST_DOCUMENTS) for r in fitting]
    else:
        fitting = [tuning.ACCELERATOR_DOCUMENT_NUMBERS // (k * length) for length in lengths]
        rows = [min(max(1, r), tuning.ACCELERATOR_DOCUMENTS) for r in fitting]
    if n <= min(rows):
        return [longest], [n]
    return lengths, [min(n, r) for r in rows]


def class_of_documents(data: Table, lengths):
    """The class of each document (n,)."""
    if data.place is None:
        return class_by_length(data.counts, lengths)
    return stored_class(data.words, data.place)


def class_by_length(counts, lengths):
    """The class of each document (n,), by the number of its cells in counts (n, L)."""
    column = jnp.arange(1, counts.shape[1] + 1)
    n_cells = jnp.max(jnp.where(counts > 0, column, 0), axis=1)
    return jnp.sum(n_cells[:, None] > jnp.asarray(lengths[:-1], int)[None], axis=1)


def stored_class(words, place):
    """The class of each document (n,), of rows of several widths."""
    return jnp.sum(jnp.asarray(place)[:, None] >= first_rows(words)[1:], axis=1)


def first_rows(words):
    """The number (c,) of the first row of each class."""
    return np.cumsum([0, *map(len, words[:-1])])


def by_class(class_of, n_classes: int, live=True):
    """((order (n,), start (c,), end (c,)), class of each document (n,)).

    order[start[i]:end[i]] are the live documents of class i; those that are not live come last.
    """
    class_of = jnp.where(live, class_of, n_classes)
    count = jnp.sum(class_of[:, None] == jnp.arange(n_classes), axis=0)
    end = jnp.cumsum(count)
    return (jnp.argsort(class_of), end - count, end), class_of


def select_by_class(class_of, previous, trees):
    """Rows (n, ...) of the tree of their class in `trees`, of `previous` where they have none."""
    for i, tree in enumerate(trees):
        previous = select(class_of == i, tree, previous)
    return previous


def visit_classes(function, order, rows, carry, chains=None):
    """The carry of each chain of classes, after `carry = function(carry, idx, inside, i,
    is_only_block)` for each block of class i.

    idx (w,): the documents of a block. inside (w,): which of them are to be visited. Class i is in
    chain i % chains. Every chain begins with the same carry and depends on no other, so that a CPU
    can run two at a time; a chain needs memory for its carry. chains: None for one a class.
    """
    order, starts, ends = order
    carries = [carry] * min(len(rows), chains or len(rows))
    for i, w in enumerate(rows):
        start, end = starts[i], ends[i]

        def visit_block(j, carry, i=i, start=start, end=end, w=w):
            position = start + j * w + jnp.arange(w)
            idx = order[jnp.minimum(position, order.shape[0] - 1)]
            return function(carry, idx, position < end, i, end - start <= w)

        chain = i % len(carries)
        n_blocks = (end - start + w - 1) // w
        carries[chain] = jax.lax.fori_loop(0, n_blocks, visit_block, carries[chain])
    return carries


def cells(data: Table, idx, i: int, length: int):
    """Words and counts (w, length) of the documents idx (w,), which are of class i."""
    if data.place is not None:
        words, counts = data.words[i], data.counts[i]
        row = jnp.clip(data.place[idx] - first_rows(data.words)[i], 0, len(words) - 1)
        return jnp.asarray(words)[row], jnp.asarray(counts)[row]

    def rows(leaf):
        return jax.vmap(lambda i: jax.lax.dynamic_slice(leaf, (i, 0), (1, length))[0])(idx)

    return rows(data.words), rows(data.counts)
