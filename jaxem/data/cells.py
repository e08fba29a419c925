"""The cells of documents, distinct words with their counts: one after another, or as rows.

In the compressed form the cells of document i are those from offsets[i] to offsets[i + 1] of words
and counts. As rows (n, L), cells of count 0 fill up the shorter ones. Where that would take far
more memory, there are rows of several widths: those of one width are a class of documents.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from jaxem.numerics import tuning


def widths_of(length) -> list[int]:
    """The widths of the rows of documents with length (n,) cells, ascending.

    One, unless the rows would then take more than `tuning.PADDED_CELLS` cells, and more than
    `tuning.PADDED_RATIO` times those of the documents; else few, whose rows take at most twice as
    many.
    """
    length = np.maximum(length, 1)
    n_cells = int(length.sum())
    longest = int(length.max())
    padded = len(length) * longest
    if padded <= max(tuning.PADDED_CELLS, tuning.PADDED_RATIO * n_cells):
        return [longest]
    power = np.ceil(np.log2(length)).astype(int)
    classes = [(int(length[power == p].max()), int((power == p).sum())) for p in np.unique(power)]
    padded = sum(width * count for width, count in classes)
    while len(classes) > 1:
        added = [
            (wider - width) * count for (width, count), (wider, _) in itertools.pairwise(classes)
        ]
        least = int(np.argmin(added))
        padded += added[least]
        if padded > 2 * n_cells:
            break
        (_, count), (width, wider_count) = classes[least : least + 2]
        classes[least : least + 2] = [(width, count + wider_count)]
    return [width for width, _ in classes]


def packed(offsets, words, counts, widths=None, rows=None):
    """(words, counts, place) of documents in the compressed form.

    words, counts: (n, L), and place is None; or tuples of (n_c, L_c), one of each width, and place
    (n,) is the row of each document where these are counted from the first of the first. widths:
    None for `widths_of`. rows: the least n_c of every width.
    """
    is_present = counts != 0
    if not is_present.all():
        kept = np.concatenate([[0], np.cumsum(is_present)])
        offsets, words, counts = kept[offsets], words[is_present], counts[is_present]
    length = np.diff(offsets)
    widths = widths_of(length) if widths is None else widths
    if len(widths) == 1:
        return *_rows(length, widths[0], words, counts, len(length)), None
    class_of = np.searchsorted(widths, length)
    order = np.argsort(class_of, kind="stable")
    row_in_class = np.arange(len(length))
    parts, start = [], 0
    place = np.zeros(len(length), np.int32)
    for i, width in enumerate(widths):
        members = order[class_of[order] == i]
        is_cell = np.repeat(class_of == i, length)
        n_rows = len(members) if rows is None else max(len(members), rows[i])
        parts.append(_rows(length[members], width, words[is_cell], counts[is_cell], n_rows))
        place[members] = start + row_in_class[: len(members)]
        start += n_rows
    words, counts = zip(*parts, strict=True)
    return words, counts, place


def _rows(length, width: int, words, counts, n_rows: int):
    """Words and counts (n_rows, width), of documents with length (n,) cells, one after another."""
    is_cell = np.zeros((n_rows, width), bool)
    is_cell[: len(length)] = np.arange(width) < length[:, None]
    padded = np.zeros(is_cell.shape, np.int32), np.zeros(is_cell.shape, counts.dtype)
    padded[0][is_cell], padded[1][is_cell] = words, counts
    return padded


def padded(words, counts, place):
    """Words and counts (n, L), of rows of several widths."""
    longest = words[-1].shape[1]
    n = place.shape[0]
    out = [jnp.zeros((n, longest), leaves[0].dtype) for leaves in (words, counts)]
    start = 0
    for parts in zip(words, counts, strict=True):
        n_rows, width = parts[0].shape
        is_member = (place >= start) & (place < start + n_rows)
        row = jnp.clip(place - start, 0, n_rows - 1)
        for i, part in enumerate(parts):
            cells = jnp.where(is_member[:, None], jnp.asarray(part)[row], 0)
            out[i] = out[i].at[:, :width].add(cells)
        start += n_rows
    return tuple(out)


def compressed(words, counts, place):
    """(offsets, words, counts) of documents on the host; the inverse of `packed`."""
    if place is None:
        counts = np.asarray(counts)
        is_cell = counts != 0
        offsets = np.concatenate([[0], np.cumsum(is_cell.sum(1))])
        return offsets, np.asarray(words)[is_cell], counts[is_cell]
    parts = [compressed(w, c, None) for w, c in zip(words, counts, strict=True)]
    length = np.concatenate([np.diff(offsets) for offsets, _, _ in parts])
    words, counts = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    start = (np.cumsum(length) - length)[np.asarray(place)]
    offsets = np.concatenate([[0], np.cumsum(length[np.asarray(place)])])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    cell = np.repeat(start, np.diff(offsets)) + within
    return offsets, words[cell], counts[cell]
