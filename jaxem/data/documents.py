"""`Documents`: word counts of documents of any length, the units of a topic model."""

import operator

import numpy as np

from jaxem.data.options import integer
from jaxem.numerics.tree import register


class Documents:
    """Word counts of documents; each document is a unit.

    Args:
      data: a scipy sparse matrix or dense array of counts, (documents, vocabulary); or a list with
        one list of (word, count) pairs for every document, words coded from 0. The counts of a
        word that a document lists twice are added.
      vocabulary: the number of words. None: the number of columns of a matrix, or one more than the
        largest word of the lists. Give it where several `Documents` must have one vocabulary.

    Fields: size (n,), the number of tokens of each document; words (n, L) and counts (n, L), the
    distinct words of each document followed by cells of count 0, where L is the number of distinct
    words of the longest; vocabulary, an int. Memory: 8 bytes a cell in float32. A fit groups
    documents by length, so that short ones cost less than the longest. `documents[rows]` selects
    documents. A pytree.

    Raises ValueError or TypeError where counts are negative, fractional or not finite, or words are
    no integers from 0 to vocabulary − 1.
    """

    def __init__(self, data, vocabulary: int | None = None):
        if vocabulary is not None:
            vocabulary = integer(vocabulary, "vocabulary", 1)
        if isinstance(data, Documents):
            raise TypeError("data are Documents already: use them as they are")
        reader = _from_matrix if hasattr(data, "tocsr") or hasattr(data, "shape") else _from_lists
        offsets, words, counts, observed_vocabulary = reader(data)
        vocabulary = observed_vocabulary if vocabulary is None else vocabulary
        if len(offsets) < 2:
            raise ValueError("data hold no document: pass at least one")
        if vocabulary < 1:
            raise ValueError("the vocabulary is empty: pass vocabulary= or documents with words")
        _check(offsets, words, counts, vocabulary)
        self._set(*_packed(offsets, words, counts), vocabulary)

    def _set(self, size, words, counts, vocabulary):
        self.__dict__.update(size=size, words=words, counts=counts, vocabulary=vocabulary)
        return self

    def __setattr__(self, name, value):
        raise AttributeError(f"Documents cannot be changed: {name}")

    def __len__(self):
        return self.words.shape[0]

    def __getitem__(self, rows):
        """The documents of a slice, an array of numbers or one of booleans."""
        rows = np.arange(len(self))[rows]
        if rows.ndim != 1:
            raise TypeError("documents are indexed by a slice or an array: documents[i : i + 1]")
        parts = (self.size[rows], self.words[rows], self.counts[rows])
        return object.__new__(Documents)._set(*parts, self.vocabulary)

    def toarray(self):
        """The counts as a dense array (n, vocabulary)."""
        dense = np.zeros((len(self), self.vocabulary), self.counts.dtype)
        np.add.at(dense, (np.arange(len(self))[:, None], np.asarray(self.words)), self.counts)
        return dense

    def __repr__(self):
        return f"Documents({len(self)} of {self.vocabulary} words, at most {self.words.shape[1]})"


register(Documents, ("size", "words", "counts"), ("vocabulary",))


def _from_matrix(data):
    """(offsets (n + 1,), words, counts, vocabulary) of a matrix of counts.

    The words and counts of document i are those from offsets[i] to offsets[i + 1].
    """
    if len(data.shape) != 2:
        raise ValueError(
            f"data must have shape (documents, vocabulary), got {tuple(data.shape)}: "
            "for one document use x[None, :]"
        )
    if hasattr(data, "tocsr"):
        rows = data.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        offsets, words, counts = rows.indptr, rows.indices, _numbers(rows.data)
    else:
        if isinstance(data, np.ma.MaskedArray):
            raise TypeError("data are a masked array: fill it, with 0 where a word is absent")
        dense = _numbers(np.asarray(data))
        row, words = np.nonzero(dense)
        offsets = np.searchsorted(row, np.arange(dense.shape[0] + 1))
        counts = dense[row, words]
    return np.asarray(offsets, np.int64), np.asarray(words, np.int64), counts, data.shape[1]


def _from_lists(data):
    """The same as `_from_matrix` for lists of (word, count) pairs."""
    if not isinstance(data, (list, tuple)):
        raise TypeError(
            f"data must be a matrix of counts or a list of lists of (word, count), got "
            f"{type(data).__name__}"
        )
    offsets, words, counts = [0], [], []
    for i, document in enumerate(data):
        try:
            pairs = [(operator.index(word), count) for word, count in document]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"data[{i}] must be a list of (word, count) pairs, words coded by integers from 0, "
                f"got {document!r:.60}"
            ) from error
        merged: dict[int, float] = {}
        for word, count in pairs:
            merged[word] = merged.get(word, 0) + count
        words += sorted(merged)
        counts += [merged[word] for word in sorted(merged)]
        offsets.append(len(words))
    words = np.array(words, np.int64)
    observed_vocabulary = int(words.max()) + 1 if words.size else 0
    counts = _numbers(np.array(counts or [0.0])[: len(words)])
    return np.array(offsets, np.int64), words, counts, observed_vocabulary


def _numbers(array):
    if array.dtype.kind not in "biuf":
        raise TypeError(f"counts have dtype {array.dtype}: pass counts 0, 1, 2, ...")
    wide = array.dtype.kind != "f" or array.dtype.itemsize != 4
    return array.astype(np.float64) if wide else array


def _check(offsets, words, counts, vocabulary):
    """ValueError that names the first document with an invalid count or word."""

    def refuse(is_wrong, what, values, remedy):
        position = int(np.argmax(is_wrong))
        document = int(np.searchsorted(offsets, position, side="right")) - 1
        raise ValueError(
            f"data hold {int(is_wrong.sum())} {what}, the first in document {document}, word "
            f"{int(words[position])}: {values[position]}; {remedy}"
        )

    with np.errstate(invalid="ignore"):
        is_wrong = ~((counts >= 0) & (counts % 1 == 0))
    if is_wrong.any():
        refuse(is_wrong, "counts that are negative, fractional or not finite", counts, VALID_COUNTS)
    is_wrong = (words < 0) | (words >= vocabulary)
    if is_wrong.any():
        remedy = f"words are integers from 0 to {vocabulary - 1}: pass a larger vocabulary="
        refuse(is_wrong, "words outside the vocabulary", words, remedy)


VALID_COUNTS = "counts are 0, 1, 2, ...; to count a document in part give it a weight in fit"


def _packed(offsets, words, counts):
    """Sizes (n,), words (n, L) and counts (n, L), from the form that `_from_matrix` returns."""
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    is_present = counts > 0
    document, words, counts = document[is_present], words[is_present], counts[is_present]
    length = np.bincount(document, minlength=len(offsets) - 1)
    column = np.arange(len(words)) - np.repeat(np.cumsum(length) - length, length)
    shape = (len(length), max(1, int(length.max())))
    padded = np.zeros(shape, np.int32), np.zeros(shape, counts.dtype)
    padded[0][document, column] = words
    padded[1][document, column] = counts
    return padded[1].sum(1), *padded
