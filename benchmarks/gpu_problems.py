"""Problems and float64 scores of `gpu`, by NumPy alone."""

import numpy as np
import scipy.sparse


def fleet(fits, rows, d, k, seed=0):
    """Data sets of k groups at random places, and starts (weights, mean, covariance)."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((fits, k, d), np.float32)
    group = rng.integers(k, size=(fits, rows))
    x = centres[np.arange(fits)[:, None], group]
    x += rng.standard_normal(x.shape, np.float32)
    chosen = rng.integers(rows, size=(fits, k))
    mean = x[np.arange(fits)[:, None], chosen]
    covariance = x.var(1)[:, None, :, None] * np.eye(d, dtype=np.float32)
    covariance = np.broadcast_to(covariance, (fits, k, d, d)).copy()
    return x, (np.full((fits, k), 1 / k, np.float32), mean, covariance)


def ragged(fits, shortest, longest, d, k):
    """(sets, padded, present, starts): of every length as many as of the next, shuffled."""
    x, start = fleet(fits, longest, d, k, seed=1)
    rng = np.random.default_rng(2)
    lengths = rng.permutation(np.linspace(shortest, longest, fits).astype(int))
    present = (np.arange(longest) < lengths[:, None]).astype(np.float32)
    mean = x[np.arange(fits)[:, None], rng.integers(shortest, size=(fits, k))]
    sets = [rows[:length].copy() for rows, length in zip(x, lengths, strict=True)]
    return sets, x * present[:, :, None], present, (start[0], mean, start[2])


def large(n, d, k, covariance):
    """Overlapping groups, and a start at rows of the data with the variances of all."""
    rng = np.random.default_rng(0)
    centre = 2 * rng.standard_normal((k, d), np.float32)
    x = rng.standard_normal((n, d), np.float32)
    x += centre[rng.integers(k, size=n)]
    variance = x.var(0, dtype=np.float64).astype(np.float32)
    full = covariance == "full"
    spread = np.broadcast_to(np.diag(variance) if full else variance, (k, d, d) if full else (k, d))
    return x, (np.full(k, 1 / k, np.float32), x[:k].copy(), spread.copy())


def corpus(documents, words, topics, tokens, seed=0):
    """Counts (documents, words) as a sparse matrix, from planted topics."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(words, 0.1), topics).cumsum(1)
    table[:, -1] = 1
    shares = rng.dirichlet(np.full(topics, 0.1), documents)
    lengths = 2 + rng.poisson(tokens * rng.gamma(4, 0.25, documents))
    topic = rng.multinomial(lengths, shares)
    row = np.repeat(np.arange(documents), lengths)
    topic = np.repeat(np.tile(np.arange(topics), documents), topic.ravel())
    steps = (table + np.arange(topics)[:, None]).ravel()  # one sorted list for all topics
    word = np.searchsorted(steps, topic + rng.random(len(topic))) - topic * words
    word = np.clip(word, 0, words - 1)
    counts = scipy.sparse.coo_array((np.ones(len(row)), (row, word)), (documents, words))
    return counts.tocsr().astype(np.float32)


def log_joint(x, weights, mean, covariance):
    """log p(x, z) (b, n, k) in float64; x (b, n, d), covariance (b, k, d, d) or (b, k, d)."""
    x, weights, mean, covariance = (np.asarray(a, float) for a in (x, weights, mean, covariance))
    d = x.shape[-1]
    if covariance.ndim == 3:
        covariance = covariance[..., None] * np.eye(d)
    inverse = np.linalg.inv(covariance)
    log_det = np.linalg.slogdet(covariance)[1] + d * np.log(2 * np.pi)
    away = x[:, None] - mean[:, :, None]
    distance = ((away @ inverse) * away).sum(-1).transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        return np.log(weights)[:, None] - 0.5 * (log_det[:, None] + distance)


def log_sum(joint):
    top = joint.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(joint - top).sum(-1))


def scores(x, weights, mean, covariance, present=None):
    """The log-likelihood a row (b,) of every fit in float64, NaN where a covariance is none."""
    found = []
    for i in range(len(x)):  # one after the other: little memory
        try:
            np.linalg.cholesky(np.asarray(covariance[i], float))
            one = (np.asarray(a)[i : i + 1] for a in (x, weights, mean, covariance))
            evidence = log_sum(log_joint(*one))[0]
        except np.linalg.LinAlgError:
            evidence = np.full(x.shape[1], np.nan)
        found.append(np.average(evidence, weights=None if present is None else present[i]))
    return np.array(found)


def collapsed(x, covariance):
    """Whether a component of each fit (b,) has shrunk to a point or a line: a standard deviation of
    it is below 0.3% of that of the data. There the likelihood has no maximum."""
    least = np.linalg.eigvalsh(np.asarray(covariance, float))[..., 0].min(1)
    return ~(least >= 1e-5 * x.var(axis=(1, 2), dtype=float))


def large_score(x, weights, mean, covariance, most=20_000):
    """The log-likelihood a row of one fit in float64, over at most so many rows."""
    rows = x[:: max(1, len(x) // most)]
    joint = [
        log_joint(
            rows[None], *(np.asarray(a)[None, j : j + 1] for a in (weights, mean, covariance))
        )
        for j in range(len(weights))
    ]
    return float(log_sum(np.concatenate(joint, axis=-1)).mean())


def combination(params):
    """A fixed random combination of the entries of one fit's (weights, mean, covariance)."""
    rng = np.random.default_rng(5)
    return sum((rng.normal(size=part.shape) * part).sum() for part in params)


def ended(x, params, steps=3000):
    """The params of one data set x (n, d) at the end of a climb by EM in float64."""
    params = [np.asarray(a, float) for a in params]
    for _ in range(steps):
        joint = log_joint(x[None], *(a[None] for a in params))[0]
        r = np.exp(joint - log_sum(joint)[:, None])
        total = r.sum(0)
        mean = r.T @ x / total[:, None]
        away = x - mean[:, None]
        covariance = np.swapaxes(r.T[:, :, None] * away, 1, 2) @ away / total[:, None, None]
        last, params = params, [total / len(x), mean, covariance]
        if max(abs(a - b).max() for a, b in zip(last, params, strict=True)) < 1e-13:
            break
    return params
