"""Exact evidence of small conjugate mixtures, by enumeration and closed forms: NumPy and scipy."""

import itertools

import numpy as np
from scipy.special import betaln, gammaln, logsumexp, multigammaln


def normal(groups, prior, structure):
    """log p(all groups), the precision of each its own, or one if tied; `prior` has attributes."""
    d = groups[0].shape[1]
    scale = np.asarray(prior.scale, float)
    wide = scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale, (d,)))
    total, shared = 0.0, [0, np.zeros((d, d))]
    for x in groups:
        n = len(x)
        mean = x.mean(0) if n else np.zeros(d)
        away = (mean - prior.mean) * np.ones(d)
        spread = (x - mean).T @ (x - mean)
        spread = spread + prior.kappa * n / (prior.kappa + n) * np.outer(away, away)
        total += d / 2 * np.log(prior.kappa / (prior.kappa + n))
        if structure == "full":
            total += wishart(prior.df, wide, n, spread)
        elif structure == "diagonal":
            for j in range(d):
                one = slice(j, j + 1)
                total += wishart(prior.df, wide[one, one], n, spread[one, one])
        elif structure == "spherical":
            total += wishart(prior.df, wide[:1, :1], n * d, np.trace(spread)[None, None])
        shared = [shared[0] + n, shared[1] + spread]
    return total + wishart(prior.df, wide, *shared) if structure == "tied" else total


def wishart(df, scale, n, spread):
    """log ∫ Π_i N(·) dWishart(df, scale⁻¹) for n terms with scatter `spread`, means left out."""
    d, after = len(scale), scale + spread
    value = -n * d / 2 * np.log(np.pi)
    value += multigammaln((df + n) / 2, d) - multigammaln(df / 2, d)
    value += df / 2 * np.linalg.slogdet(scale)[1]
    return value - (df + n) / 2 * np.linalg.slogdet(after)[1]


def poisson(groups, a, b):
    total = 0.0
    for x in groups:
        s, n = x.sum(0), len(x)
        total += np.sum(gammaln(a + s) - gammaln(a) + a * np.log(b) - (a + s) * np.log(b + n))
        total -= gammaln(x + 1).sum()
    return total


def bernoulli(groups, a, b):
    each = [(x.sum(0), len(x) - x.sum(0)) for x in groups]
    return sum(np.sum(betaln(a + one, b + zero) - betaln(a, b)) for one, zero in each)


def dirichlet(counts, alpha):
    """log of the Dirichlet–multinomial integral of counts (..., v), without its coefficient."""
    v, n = counts.shape[-1], counts.sum(-1)
    value = gammaln(v * alpha) - gammaln(v * alpha + n)
    return np.sum(value + (gammaln(alpha + counts) - gammaln(alpha)).sum(-1))


def categorical(groups, alpha, levels):
    return sum(
        dirichlet(np.bincount(x[:, j].astype(int), minlength=v).astype(float), alpha)
        for x in groups
        for j, v in enumerate(levels)
    )


def multinomial(groups, alpha):
    whole = np.concatenate(groups)
    constant = np.sum(gammaln(whole.sum(1) + 1) - gammaln(whole + 1).sum(1))
    return constant + sum(dirichlet(x.sum(0), alpha) for x in groups)


def labels(counts, concentration, process):
    """log p(z) from the counts of its values."""
    if not process:
        return dirichlet(counts, concentration)
    later = np.cumsum(counts[::-1])[::-1] - counts
    return np.sum(betaln(1 + counts, concentration + later) - betaln(1, concentration))


def evidence(x, k, marginal, concentration, process=False):
    """log Σ_z p(z) p(x | z) over all k^n assignments."""
    terms = []
    for z in itertools.product(range(k), repeat=len(x)):
        z = np.array(z)
        counts = np.bincount(z, minlength=k).astype(float)
        groups = [x[z == j] for j in range(k)]
        terms.append(labels(counts, concentration, process) + marginal(groups))
    return logsumexp(terms)
