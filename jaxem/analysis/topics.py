"""Quantities of fitted topics: shares in documents, top words, held-out perplexity, coherence."""

import itertools

import numpy as np

from jaxem.data.documents import Documents

__all__ = ["coherence", "completed", "perplexity", "top_words", "transform"]

MEASURES = ("npmi", "umass")


def transform(result, documents):
    """E[θ] (n, k) under the mean-field posterior: the share of every topic in each document.

    Args:
      result: of one fit of `LDA`, with k topics.  documents: n `Documents`.

    Raises ValueError where the documents have another vocabulary. Source: Blei, Ng & Jordan 2003.
    """
    return result.predict_proba(documents)


def top_words(result, n: int = 10, vocabulary=None):
    """The n most probable words of every topic, best first: a list of k lists.

    Args:
      result: of one fit of `LDA`, with k topics.  n: words of each topic, an int.
      vocabulary: a sequence of the words, such as `documents.terms`; None: words are given as their
        column numbers.

    Raises ValueError for another number of words than that of the topics.
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
    """Two `Documents`: a random half of the tokens of each document, and the other half.

    Args:
      documents: n `Documents` with whole counts.  key: an int, which draws the halves.

    Returns (first half, other half), n `Documents` each. Source: the document completion of
    Wallach, Murray, Salakhutdinov & Mimno 2009.
    """
    offsets, words, counts = documents.cells()
    counts = counts.astype(np.int64)
    rng = np.random.default_rng(key)
    first_half = np.zeros_like(counts)
    for first, last in itertools.pairwise(offsets):
        row = counts[first:last]
        first_half[first:last] = rng.multivariate_hypergeometric(
            row, row.sum() // 2, method="marginals"
        )
    return tuple(
        Documents.of((offsets, words, half.astype(float)), documents.vocabulary)
        for half in (first_half, counts - first_half)
    )


def perplexity(result, documents, key: int = 0) -> float:
    """Held-out perplexity by document completion: exp(−mean log p(word)) over held-out tokens.

    The topic shares of each document are estimated from a random half of its tokens. The other half
    is predicted by p(word) = Σ_k E[θ_k] topics_k,word. Lower is better; for uniform p it is the
    size of the vocabulary. Infinite where a held-out word has probability 0 in every topic.

    Args:
      result: of one fit of `LDA`.
      documents: `Documents` that were not part of the fit.  key: an int, which draws the halves.

    Returns a number. Raises ValueError where the documents have another vocabulary. Source:
    Wallach, Murray, Salakhutdinov & Mimno 2009.
    """
    observed, held_out = completed(documents, key)
    topic_shares = np.asarray(transform(result, observed), np.float64)
    topics = np.asarray(result.params.topics, np.float64)
    offsets, words, counts = held_out.cells()
    total = 0.0
    for shares, first, last in zip(topic_shares, offsets[:-1], offsets[1:], strict=True):
        with np.errstate(divide="ignore"):
            total += counts[first:last] @ np.log(shares @ topics[:, words[first:last]])
    return float(np.exp(-total / counts.sum()))


def coherence(result, documents, n: int = 10, measure: str = "npmi"):
    """How often the n top words of each topic occur in the same documents: (k,), higher is better.

    "npmi": the mean over pairs of words of log(p_ij / (p_i p_j)) / −log p_ij, from −1, never in one
    document, to 1 (Bouma 2009; Lau, Newman & Baldwin 2014). "umass": the mean over pairs of
    log((D_ij + 1) / D_j), where j is the more probable word (Mimno et al. 2011). D_ij is the
    number of documents that hold words i and j, D_j that of documents that hold word j, and p the
    proportions. A pair with a word that is in no document counts −1 in "npmi" and is left out of
    "umass".

    Args:
      result: of one fit of `LDA`, with k topics.
      documents: `Documents` in which words are counted.
      n: the top words of each topic, an int.
      measure: "npmi" or "umass".

    Raises ValueError for another measure or vocabulary.
    """
    if measure not in MEASURES:
        raise ValueError(
            f"measure must be one of {', '.join(map(repr, MEASURES))}, got {measure!r}"
        )
    size = np.shape(result.params.topics)[1]
    if documents.vocabulary != size:
        raise ValueError(
            f"the documents have a vocabulary of {documents.vocabulary} words, the topics one of "
            f"{size}: build them with the vocabulary of the fit, "
            f'jaxem.Documents(..., vocabulary={size}), and unknown="drop" to leave out other words'
        )
    top = np.array(top_words(result, n))
    distinct = np.unique(top)
    column_of = np.full(documents.vocabulary, -1)
    column_of[distinct] = np.arange(len(distinct))
    occurs = np.zeros((len(documents), len(distinct)))
    offsets, words, _ = documents.cells()
    column = column_of[words]
    document = np.repeat(np.arange(len(documents)), np.diff(offsets))
    occurs[document[column >= 0], column[column >= 0]] = 1
    joint_counts = occurs.T @ occurs
    first, second = np.triu_indices(top.shape[1], 1)
    score = _npmi if measure == "npmi" else _umass
    return np.array(
        [score(joint_counts[np.ix_(t, t)], first, second, len(occurs)) for t in column_of[top]]
    )


def _npmi(joint_counts, i, j, n):
    p_both = joint_counts[i, j] / n
    p_first, p_second = joint_counts[i, i] / n, joint_counts[j, j] / n
    is_joint = p_both > 0
    safe = np.where(is_joint, p_both, 1)
    pmi = np.log(safe / np.where(is_joint, p_first * p_second, 1))
    in_every_document = p_both == 1
    return np.mean(
        np.where(
            is_joint,
            pmi / np.where(in_every_document | ~is_joint, 1, -np.log(safe)) + in_every_document,
            -1,
        )
    )


def _umass(joint_counts, i, j, n):
    is_present = joint_counts[i, i] > 0
    ratio = (joint_counts[i, j] + 1) / np.where(is_present, joint_counts[i, i], 1)
    return np.mean(np.log(ratio)[is_present]) if is_present.any() else np.nan
