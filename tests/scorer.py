"""Log-likelihoods of mixtures in float64, by NumPy alone: no code of jaxem, JAX or SciPy.

`log_likelihood` scores any params that a fit returned. The densities are computed in forms that
lose no digits for narrow or far components, so that the scorer is the more exact of the two.
"""

import math

import jax
import numpy as np

lgamma = np.vectorize(math.lgamma, otypes=[float])
LOG_2PI = math.log(2 * math.pi)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), tree)


def xlogy(x, y):
    """x log y, 0 where x is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == 0, 0.0, x * np.log(y))


def mahalanobis(mean, covariance, x):
    """(squared distances (n,), log determinant) for a covariance (d, d), scaled to correlations
    first."""
    scale = np.sqrt(np.diag(covariance))
    root = np.linalg.cholesky(covariance / scale[:, None] / scale)
    z = np.linalg.solve(root, ((x - mean) / scale).T)
    return (z**2).sum(0), 2 * (np.log(np.diag(root)) + np.log(scale)).sum()


def normal(structure):
    def density(p, x):
        k, d = p.mean.shape
        c = p.covariance
        shape = {"full": (k, d, d), "tied": (d, d), "diagonal": (k, d), "spherical": (k,)}
        assert c.shape == shape[structure]
        if structure == "tied":
            c = np.broadcast_to(c, (k, d, d))
        elif structure != "full":
            variances = np.broadcast_to(c.reshape(k, -1), (k, d))
            z = (x[:, None] - p.mean) / np.sqrt(variances)
            return -0.5 * (d * LOG_2PI + np.log(variances).sum(-1) + (z**2).sum(-1))
        parts = [mahalanobis(m, s, x) for m, s in zip(p.mean, c, strict=True)]
        return np.stack([-0.5 * (d * LOG_2PI + det + q) for q, det in parts], 1)

    return density


def student(p, x):
    d, columns = x.shape[1], []
    for mean, scale, df in zip(p.mean, p.scale, p.df, strict=True):
        q, det = mahalanobis(mean, scale, x)
        constant = math.lgamma((df + d) / 2) - math.lgamma(df / 2) - d / 2 * math.log(math.pi * df)
        columns.append(constant - det / 2 - (df + d) / 2 * np.log1p(q / df))
    return np.stack(columns, 1)


def stirling(a):
    """a log a − a − log Γ(a), by its series where a is large."""
    large = np.maximum(a, 100.0)
    series = 0.5 * np.log(large) - 0.5 * LOG_2PI - 1 / (12 * large) + 1 / (360 * large**3)
    return np.where(a < 100, a * np.log(a) - a - lgamma(np.minimum(a, 100)), series)


def log_less_linear(e):
    """log(1 + e) − e, by its series where e is small."""
    small = np.where(np.abs(e) < 1e-3, e, 0)
    series = -(small**2) * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small * (1 / 5 - small / 6))))
    with np.errstate(divide="ignore"):
        return np.where(np.abs(e) < 1e-3, series, np.log1p(e) - e)


def log_less_excess(r):
    """log r − (r − 1), exact where r is near 1 or near 0."""
    near = np.abs(r - 1) < 0.5
    with np.errstate(divide="ignore"):
        return np.where(near, log_less_linear(np.where(near, r - 1, 0)), np.log(r) - (r - 1))


def gamma(p, x):
    """With r = x · rate/shape: a log a − a − log Γ(a) + a (log r − r + 1) − log x."""
    a, x = p.shape, x[:, None]
    return (stirling(a) + a * log_less_excess(x * p.rate / a) - np.log(x)).sum(-1)


def exponential(p, x):
    return (np.log(p.rate) - p.rate * x[:, None]).sum(-1)


def poisson(p, x):
    """x (log rate/x − rate/x + 1) + x log x − x − log x!"""
    rate, x = p.rate, x[:, None]
    at = np.where(x > 0, x, 1)
    each = at * log_less_excess(rate / at) + stirling(at) - np.log(at)
    return np.where(x > 0, each, -rate).sum(-1)


def bernoulli(p, x):
    x = x[:, None]
    return (xlogy(x, p.probs) + xlogy(1 - x, 1 - p.probs)).sum(-1)


def categorical(p, x):
    with np.errstate(divide="ignore"):
        return np.log(p.probs[:, np.arange(x.shape[1]), x.astype(int)]).sum(-1).T


def multinomial(p, x):
    constant = lgamma(x.sum(1) + 1) - lgamma(x + 1).sum(1)
    return constant[:, None] + xlogy(x[:, None], p.probs).sum(-1)


def product(parts):
    """parts: {name: (density, columns)}."""

    def density(p, x):
        return sum(part(p[name], x[:, columns]) for name, (part, columns) in parts.items())

    return density


def log_prob(density, params, x):
    """log p(x) (n,) of a mixture. params: `MixtureParams` in float64."""
    with np.errstate(divide="ignore"):
        joint = density(params.components, x) + np.log(params.weights)
    top = joint.max(1, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return (safe + np.log(np.exp(joint - safe).sum(1, keepdims=True)))[:, 0]


def log_likelihood(density, params, x, weights):
    """Σ w · log p(x) over units of positive weight."""
    present = weights > 0
    each = log_prob(density, float64(params), np.asarray(x, np.float64)[present])
    return float((np.asarray(weights, np.float64)[present] * each).sum())
