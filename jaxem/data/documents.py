"""`Documents`: word counts of documents of any length, the units of a topic model."""

import operator
from collections import Counter

import jax.numpy as jnp
import numpy as np

from jaxem.data.cells import compressed, packed, padded, widths_of
from jaxem.data.options import integer
from jaxem.numerics import tuning
from jaxem.numerics.tree import SharedLeaves, is_traced, register
from jaxem.protocol.domains import is_count


class Documents(SharedLeaves):
    """Word counts of documents; each document is a unit.

    Args:
      data: counts (documents, vocabulary), as a sparse matrix of scipy, a `BCOO` of JAX or a dense
        array; a list with one list of (word, count) pairs for every document, words coded from 0;
        or a list with one list of tokens, which are strings, for every document. The counts of a
        word that a document lists twice are added.
      vocabulary: the number of words, or the words themselves, a list of distinct strings. None:
        the number of columns of a matrix, one more than the largest word of lists of pairs, or all
        tokens in alphabetical order. Give it where several `Documents` must have one vocabulary:
        `Documents(new_tokens, vocabulary=documents.terms, unknown="drop")`.
      unknown: what to do with words outside the vocabulary: "error", or "drop" to leave them out.

    Fields: terms, the words of the vocabulary as strings, or None where they were not given; it is
    lost where the documents pass through a function of JAX. size (n,), the number of tokens of each
    document; words (n, L) and counts (n, L), the distinct words of each document followed by cells
    of count 0, where L is the number of distinct words of the longest; vocabulary, an int.
    `documents[rows]` selects documents. A pytree.

    Memory: 8 bytes a cell in float32, of at most twice as many cells as there are distinct words in
    all documents where n·L is large and more than four times their number, else of n·L. In the
    first case words and counts (n, L) are computed when they are read, and take n·L cells then. A
    fit groups documents by length, so that short ones cost less than the longest.

    Raises ValueError or TypeError where counts are negative, fractional or not finite, or words are
    no integers from 0 to vocabulary − 1.
    """

    terms = None

    def __init__(self, data, vocabulary=None, unknown: str = "error"):
        if unknown not in UNKNOWN:
            raise ValueError(
                f"unknown must be one of {', '.join(map(repr, UNKNOWN))}, got {unknown!r}"
            )
        terms = None
        if (
            vocabulary is not None
            and not isinstance(vocabulary, (str, bytes))
            and np.ndim(vocabulary)
        ):
            terms = _checked_terms(vocabulary)
            vocabulary = len(terms)
        elif vocabulary is not None:
            vocabulary = integer(vocabulary, "vocabulary", 1)
        if isinstance(data, Documents):
            raise TypeError("data are Documents already: use them as they are")
        if _are_tokens(data):
            if vocabulary is not None and terms is None:
                raise TypeError(
                    f"vocabulary must be a list of strings for lists of tokens, got {vocabulary}: "
                    "leave it out to take all tokens"
                )
            (offsets, words, counts), terms = _from_tokens(data, terms, unknown)
            vocabulary = observed_vocabulary = len(terms)
        else:
            is_matrix = hasattr(data, "tocsr") or hasattr(data, "shape")
            reader = _from_matrix if is_matrix else _from_lists
            offsets, words, counts, observed_vocabulary = reader(data)
        vocabulary = observed_vocabulary if vocabulary is None else vocabulary
        if len(offsets) < 2:
            raise ValueError("data hold no document: pass at least one")
        if vocabulary < 1:
            raise ValueError("the vocabulary is empty: pass vocabulary= or documents with words")
        if unknown == "drop":
            offsets, words, counts = _without_unknown(offsets, words, counts, vocabulary)
        _check(offsets, words, counts, vocabulary)
        self._pack((offsets, words, counts), vocabulary)
        self.__dict__["terms"] = terms

    @classmethod
    def of(cls, cells, vocabulary: int, terms=None):
        """Documents of valid cells, (offsets (n + 1,), words, counts), over a vocabulary of so many
        words; terms: the words, or None."""
        documents = object.__new__(cls)._pack(cells, vocabulary)
        documents.__dict__["terms"] = terms
        return documents

    def _pack(self, cells, vocabulary, widths=None, rows=None):
        offsets, _, counts = cells
        n = len(offsets) - 1
        size = np.bincount(np.repeat(np.arange(n), np.diff(offsets)), counts, n)
        size = size.astype(counts.dtype)
        words, counts, place = packed(*cells, widths, rows)
        return self._set(size, words, counts, vocabulary, place)

    def _set(self, size, words, counts, vocabulary, place=None):
        """place: None where words and counts are (n, L), else as `packed` returns them."""
        fields = {"size": size, "words": words, "counts": counts, "place": place}
        self.__dict__.update(fields, vocabulary=vocabulary)
        return self

    def __setattr__(self, name, value):
        raise AttributeError(f"Documents cannot be changed: {name}")

    @property
    def words(self):
        """The distinct words of each document (n, L)."""
        return self._padded()[0]

    @property
    def counts(self):
        """Their counts (n, L)."""
        return self._padded()[1]

    @property
    def stored(self):
        """(words, counts, place) as `packed` returns them."""
        return self.__dict__["words"], self.__dict__["counts"], self.place

    def _padded(self):
        if self.place is None:
            return self.stored[:2]
        if is_traced(self.stored):
            return padded(*self.stored)
        return packed(*self.cells(), [self._longest])[:2]

    @property
    def _longest(self) -> int:
        """L."""
        words, _, place = self.stored
        return (words if place is None else words[-1]).shape[1]

    def cells(self):
        """(offsets (n + 1,), words, counts) on the host: those of document i are from offsets[i] to
        offsets[i + 1], without cells of count 0."""
        return compressed(*self.stored)

    def over_units(self, function):
        words, counts, place = self.stored
        if place is None:
            words, counts = function(words), function(counts)
        else:
            place = function(place)
        result = object.__new__(Documents)
        return result._set(function(self.size), words, counts, self.vocabulary, place)

    def __len__(self):
        return self.size.shape[0]

    def __getitem__(self, rows):
        """The documents of a slice, an array of numbers or one of booleans."""
        rows = np.arange(len(self))[rows]
        if rows.ndim != 1:
            raise TypeError("documents are indexed by a slice or an array: documents[i : i + 1]")
        selected = self.over_units(lambda leaf: leaf[rows])
        if self.place is not None and not is_traced(selected):
            selected = Documents.of(selected.cells(), self.vocabulary)
        selected.__dict__["terms"] = self.terms
        return selected

    def toarray(self):
        """The counts as a dense array (n, vocabulary)."""
        offsets, words, counts = self.cells()
        dense = np.zeros((len(self), self.vocabulary), counts.dtype)
        dense[np.repeat(np.arange(len(self)), np.diff(offsets)), words] = counts
        return dense

    def __repr__(self):
        return f"Documents({len(self)} of {self.vocabulary} words, at most {self._longest})"


register(Documents, ("size", "words", "counts", "place"), ("vocabulary",))


def of_one_form(sets):
    """The `Documents` of a list with rows of the same widths, and of each width the same number of
    rows where there are several."""
    longest = max(documents._longest for documents in sets)
    are_few = sum(map(len, sets)) * longest <= tuning.PADDED_CELLS
    if is_traced(sets) or (are_few and all(documents.place is None for documents in sets)):
        return [_widened(documents, longest) for documents in sets]
    cells = [documents.cells() for documents in sets]
    lengths = [np.diff(offsets) for offsets, _, _ in cells]
    widths = widths_of(np.concatenate(lengths))
    classes = [np.searchsorted(widths, length) for length in lengths]
    rows = np.max([np.bincount(c, minlength=len(widths)) for c in classes], axis=0)
    return [
        object.__new__(Documents)._pack(c, d.vocabulary, widths, rows)
        for c, d in zip(cells, sets, strict=True)
    ]


def _widened(documents, width: int):
    """Documents with rows (n, width) of one width."""

    def padded_rows(leaf):
        xp = jnp if is_traced(leaf) else np
        return xp.pad(leaf, ((0, 0), (0, width - leaf.shape[1])))

    rows = map(padded_rows, (documents.words, documents.counts))
    return object.__new__(Documents)._set(documents.size, *rows, documents.vocabulary)


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
    elif hasattr(data, "todense"):
        offsets, words, counts = _from_bcoo(data)
    else:
        if isinstance(data, np.ma.MaskedArray):
            raise TypeError("data are a masked array: fill it, with 0 where a word is absent")
        dense = _numbers(np.asarray(data))
        row, words = np.nonzero(dense)
        offsets = np.searchsorted(row, np.arange(dense.shape[0] + 1))
        counts = dense[row, words]
    return np.asarray(offsets, np.int64), words, counts, data.shape[1]


def _from_bcoo(data):
    """(offsets, words, counts) of a `BCOO` or `BCSR` of JAX, which may list a word twice, and may
    hold indices beyond its shape, which mean nothing."""
    n, v = data.shape
    kind, counts = type(data).__name__, np.asarray(data.data)
    if kind not in ("BCOO", "BCSR") or counts.ndim != 1 or data.n_batch:
        raise TypeError(
            f"data are a sparse matrix of JAX, a {kind} of values {counts.shape}: pass a BCOO "
            "without batch and dense axes"
        )
    if kind == "BCOO":
        document, words = np.asarray(data.indices).T
    else:
        document = np.repeat(np.arange(n), np.diff(np.asarray(data.indptr)))
        words, counts = np.asarray(data.indices)[: len(document)], counts[: len(document)]
    is_inside = (document < n) & (words < v)
    key = document[is_inside].astype(np.int64) * v + words[is_inside]
    counts = _numbers(counts[is_inside])
    key, cell = np.unique(key, return_inverse=True)
    sums = np.zeros(len(key), counts.dtype)
    np.add.at(sums, cell, counts)
    return np.searchsorted(key, np.arange(n + 1) * v), (key % v).astype(np.int32), sums


UNKNOWN = ("error", "drop")


def _checked_terms(terms):
    """The words of a vocabulary as a tuple; ValueError or TypeError unless they are distinct
    strings."""
    terms = tuple(terms)
    for i, term in enumerate(terms):
        if not isinstance(term, str):
            raise TypeError(f"vocabulary[{i}] must be a string, got {term!r:.40}")
    if len(set(terms)) < len(terms):
        repeated = next(term for i, term in enumerate(terms) if term in terms[:i])
        raise ValueError(f"vocabulary holds {repeated!r} twice: give distinct words")
    return terms


def _are_tokens(data) -> bool:
    """Whether data are lists of tokens: the first word of all is a string."""
    if not isinstance(data, (list, tuple)):
        return False
    first = next((d for d in data if not isinstance(d, (list, tuple)) or len(d)), None)
    return isinstance(first, str) or (
        isinstance(first, (list, tuple)) and isinstance(first[0], str)
    )


def _from_tokens(data, terms, unknown):
    """((offsets, words, counts), terms) of lists of tokens."""
    for i, document in enumerate(data):
        wrong = isinstance(document, str) or not all(isinstance(t, str) for t in document)
        if wrong:
            raise TypeError(
                f"data[{i}] must be a list of tokens, which are strings, got {document!r:.60}: "
                "split texts into words, such as text.lower().split()"
            )
    if terms is None:
        terms = tuple(sorted({token for document in data for token in document}))
    code = {term: i for i, term in enumerate(terms)}
    offsets, words, counts = [0], [], []
    for i, document in enumerate(data):
        found = Counter(code.get(token, -1) for token in document)
        if found.pop(-1, 0) and unknown == "error":
            token = next(token for token in document if token not in code)
            raise ValueError(
                f"data[{i}] holds {token!r}, which is not in the vocabulary of {len(terms)} words: "
                'leave such words out with unknown="drop", or give a larger vocabulary'
            )
        words += sorted(found)
        counts += [found[word] for word in sorted(found)]
        offsets.append(len(words))
    arrays = np.array(offsets, np.int64), np.array(words, np.int64), np.array(counts, np.float64)
    return arrays, terms


def _without_unknown(offsets, words, counts, vocabulary):
    """The cells whose words are in the vocabulary. Negative words remain, which are an error."""
    is_known = words < vocabulary
    kept = np.concatenate([[0], np.cumsum(is_known)])
    return kept[offsets], words[is_known], counts[is_known]


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
    return array.astype(np.float64, copy=False) if wide else array


def _check(offsets, words, counts, vocabulary):
    """ValueError that names the first document with an invalid count or word."""

    def refuse(is_wrong, what, values, remedy):
        position = int(np.argmax(is_wrong))
        document = int(np.searchsorted(offsets, position, side="right")) - 1
        raise ValueError(
            f"data hold {int(is_wrong.sum())} {what}, the first in document {document}, word "
            f"{int(words[position])}: {values[position]}; {remedy}"
        )

    is_wrong = ~is_count(counts)
    if is_wrong.any():
        refuse(is_wrong, "counts that are negative, fractional or not finite", counts, VALID_COUNTS)
    is_wrong = (words < 0) | (words >= vocabulary)
    if is_wrong.any():
        remedy = (
            f'words are integers from 0 to {vocabulary - 1}: leave others out with unknown="drop", '
            "or, before a fit, pass a larger vocabulary="
        )
        refuse(is_wrong, "words outside the vocabulary", words, remedy)


VALID_COUNTS = "counts are 0, 1, 2, ...; to count a document in part give it a weight in fit"
