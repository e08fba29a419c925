"""`Documents`: bags of words of any length, the units of one topic model."""

import operator

import numpy as np

from jaxem.data.options import integer
from jaxem.numerics.tree import register


class Documents:
    """Counts of words, document by document; each document is a unit.

    Args:
      data: a scipy sparse matrix or dense array of counts, (documents, vocabulary); or a list with
        one list of (word, count) pairs for every document, words coded from 0. A word that a
        document lists twice is counted with both.
      vocabulary: how many words there are. None: the columns of a matrix, or one more than the
        largest word of the lists; give it where others must fit the same model.

    Fields: size (n,), the tokens of each document; words (n, L) and counts (n, L), its distinct
    words in front, then cells of count 0, L for the longest document; vocabulary, an int.
    Memory: 8 bytes a cell in float32. A fit cuts documents to a few lengths of its own, so that
    short ones do not wait for the longest. `documents[rows]` are some of them. A pytree.

    Raises ValueError or TypeError where counts are negative, fractional or not finite, or words are
    no integers from 0 to vocabulary − 1.
    """

    def __init__(self, data, vocabulary: int | None = None):
        if vocabulary is not None:
            vocabulary = integer(vocabulary, "vocabulary", 1)
        if isinstance(data, Documents):
            raise TypeError("data are Documents already: use them as they are")
        read = _from_matrix if hasattr(data, "tocsr") or hasattr(data, "shape") else _from_lists
        start, words, counts, found = read(data)
        vocabulary = found if vocabulary is None else vocabulary
        if len(start) < 2:
            raise ValueError("data hold no document: pass at least one")
        if vocabulary < 1:
            raise ValueError("the vocabulary is empty: pass vocabulary= or documents with words")
        _check(start, words, counts, vocabulary)
        self._set(*_packed(start, words, counts), vocabulary)

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
    """Where each document starts, its words and counts, and the vocabulary, from a matrix."""
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
        start, words, counts = rows.indptr, rows.indices, _numbers(rows.data)
    else:
        if isinstance(data, np.ma.MaskedArray):
            raise TypeError("data are a masked array: fill it, with 0 where a word is absent")
        dense = _numbers(np.asarray(data))
        row, words = np.nonzero(dense)
        start = np.searchsorted(row, np.arange(dense.shape[0] + 1))
        counts = dense[row, words]
    return np.asarray(start, np.int64), np.asarray(words, np.int64), counts, data.shape[1]


def _from_lists(data):
    """The same from lists of (word, count)."""
    if not isinstance(data, (list, tuple)):
        raise TypeError(
            f"data must be a matrix of counts or a list of lists of (word, count), got "
            f"{type(data).__name__}"
        )
    start, words, counts = [0], [], []
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
        start.append(len(words))
    words = np.array(words, np.int64)
    found = int(words.max()) + 1 if words.size else 0
    counts = _numbers(np.array(counts or [0.0])[: len(words)])
    return np.array(start, np.int64), words, counts, found


def _numbers(array):
    if array.dtype.kind not in "biuf":
        raise TypeError(f"counts have dtype {array.dtype}: pass counts 0, 1, 2, ...")
    wide = array.dtype.kind != "f" or array.dtype.itemsize != 4
    return array.astype(np.float64) if wide else array


def _check(start, words, counts, vocabulary):
    """ValueError that names the first document with a count or word that cannot be."""

    def refuse(wrong, what, values, remedy):
        at = int(np.argmax(wrong))
        document = int(np.searchsorted(start, at, side="right")) - 1
        raise ValueError(
            f"data hold {int(wrong.sum())} {what}, the first in document {document}, word "
            f"{int(words[at])}: {values[at]}; {remedy}"
        )

    with np.errstate(invalid="ignore"):
        wrong = ~((counts >= 0) & (counts % 1 == 0))
    if wrong.any():
        refuse(wrong, "counts that are negative, fractional or not finite", counts, TAKES)
    wrong = (words < 0) | (words >= vocabulary)
    if wrong.any():
        remedy = f"words are integers from 0 to {vocabulary - 1}: pass a larger vocabulary="
        refuse(wrong, "words outside the vocabulary", words, remedy)


TAKES = "counts are 0, 1, 2, ...; to count a document in part give it a weight in fit"


def _packed(start, words, counts):
    """Sizes (n,), words and counts (n, L), from documents one after the other."""
    document = np.repeat(np.arange(len(start) - 1), np.diff(start))
    some = counts > 0
    document, words, counts = document[some], words[some], counts[some]
    length = np.bincount(document, minlength=len(start) - 1)
    place = np.arange(len(words)) - np.repeat(np.cumsum(length) - length, length)
    shape = (len(length), max(1, int(length.max())))
    padded = np.zeros(shape, np.int32), np.zeros(shape, counts.dtype)
    padded[0][document, place] = words
    padded[1][document, place] = counts
    return padded[1].sum(1), *padded
