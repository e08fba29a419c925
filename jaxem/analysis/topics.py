"""What topics are asked: their parts in documents, their words, how they predict and cohere."""

import numpy as np

from jaxem.data.documents import Documents

MEASURES = ("npmi", "umass")


def transform(result, documents):
    """E[θ] (n, k) under the mean-field posterior: what part of each document every topic has."""
    return result.predict_proba(documents)


def top_words(result, n: int = 10, vocabulary=None):
    """The n most probable words of every topic, best first: a list of k lists.

    vocabulary: what the words are, a sequence; None: their numbers.
    """
    topics = np.asarray(result.params.topics)
    order = np.argsort(-topics, axis=1, kind="stable")[:, :n]
    if vocabulary is None:
        return order.tolist()
    if len(vocabulary) != topics.shape[1]:
        raise ValueError(
            f"vocabulary has {len(vocabulary)} words and the topics {topics.shape[1]}: pass the "
            "words that the columns of the counts stand for"
        )
    return [[vocabulary[word] for word in topic] for topic in order]


def completed(documents, key: int = 0):
    """Two `Documents`: half of the tokens of each document, drawn at random, and the other half."""
    counts = np.asarray(documents.counts, np.int64)
    rng = np.random.default_rng(key)
    size = counts.sum(1)
    halves = np.zeros_like(counts)
    for i, total in enumerate(size):
        row = counts[i]
        halves[i] = rng.multivariate_hypergeometric(row, total // 2, method="marginals")
    words, vocabulary = np.asarray(documents.words), documents.vocabulary
    return tuple(
        Documents(
            [list(zip(w, c, strict=True)) for w, c in zip(words, part, strict=True)], vocabulary
        )
        for part in (halves, counts - halves)
    )


def perplexity(result, documents, key: int = 0) -> float:
    """Held-out perplexity by document completion: exp(−mean log p(word)) over unseen tokens.

    Topic shares come from a random half of each document's tokens; the other half is predicted by
    p(word) = Σ_k E[θ_k] topics_k,word. Lower is better; the vocabulary's size is what no knowledge
    at all gives. Infinite where a word is unseen that no topic holds.

    Args:
      documents: `Documents` that the fit has not seen.  key: an int, of the halves.
    """
    seen, unseen = completed(documents, key)
    theta = np.asarray(transform(result, seen), np.float64)
    topics = np.asarray(result.params.topics, np.float64)
    counts, words = np.asarray(unseen.counts, np.float64), np.asarray(unseen.words)
    total = 0.0
    for shares, row, count in zip(theta, words, counts, strict=True):
        some = count > 0
        with np.errstate(divide="ignore"):
            total += count[some] @ np.log(shares @ topics[:, row[some]])
    return float(np.exp(-total / counts.sum()))


def coherence(result, documents, n: int = 10, measure: str = "npmi"):
    """How often the n top words of each topic share documents: (k,), higher is better.

    "npmi": the mean over pairs of log(p_ij / (p_i p_j)) / −log p_ij, from −1, never together, to 1
    (Bouma 2009; Lau, Newman & Baldwin 2014). "umass": the mean over pairs of
    log((D_ij + 1) / D_j), j the more probable word (Mimno et al. 2011). p and D count the documents
    that hold both words, or one. With a word in no document a pair counts −1, or is left out.
    """
    if measure not in MEASURES:
        raise ValueError(
            f"measure must be one of {', '.join(map(repr, MEASURES))}, got {measure!r}"
        )
    top = np.array(top_words(result, n))
    among = np.unique(top)
    place = np.full(documents.vocabulary, -1)
    place[among] = np.arange(len(among))
    held = np.zeros((len(documents), len(among)))
    words, counts = np.asarray(documents.words), np.asarray(documents.counts)
    at = place[words]
    row, column = np.nonzero((counts > 0) & (at >= 0))
    held[row, at[row, column]] = 1
    together = held.T @ held
    better, worse = np.triu_indices(top.shape[1], 1)
    of = _npmi if measure == "npmi" else _umass
    return np.array([of(together[np.ix_(t, t)], better, worse, len(held)) for t in place[top]])


def _npmi(together, i, j, n):
    both, one, other = together[i, j] / n, together[i, i] / n, together[j, j] / n
    some = both > 0
    safe = np.where(some, both, 1)
    pmi = np.log(safe / np.where(some, one * other, 1))
    always = both == 1
    return np.mean(np.where(some, pmi / np.where(always | ~some, 1, -np.log(safe)) + always, -1))


def _umass(together, i, j, n):
    known = together[i, i] > 0
    ratio = (together[i, j] + 1) / np.where(known, together[i, i], 1)
    return np.mean(np.log(ratio)[known]) if known.any() else np.nan
