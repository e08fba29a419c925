"""Families by scipy and plain NumPy alone: densities, priors, means, and moves within the space.

A `Case` is one line of the tables that test_families.py and test_priors.py run through.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from internals import pytree
from scipy import linalg, special, stats

import jaxem

K, D, N = 3, 3, 60
PUBLISHED = pathlib.Path(__file__).parents[2] / "shared" / "published"


def published(name: str):
    """A published case by its id; skips the test where ../shared/published is absent."""
    if not PUBLISHED.exists():
        pytest.skip("../shared/published is absent")
    cases = json.loads((PUBLISHED / "cases.json").read_text())["cases"]
    return next(case for case in cases if case["id"] == name)


class Case(NamedTuple):
    """kinds: a tree like params that names the space of every leaf, for `moved`."""

    name: str
    bank: Any
    params: Callable  # rng -> params
    data: Callable  # rng -> x (N, d)
    log_density: Callable  # params, x -> (n, k)
    kinds: Any
    mean: Callable  # params -> (k, d)
    free: int  # n_parameters
    log_prior: Callable = lambda params: 0.0


def moved(kinds, params, seed, step):
    """params moved by `step` along a random curve that stays within their space."""
    rng = np.random.default_rng(seed)

    def move(kind, leaf):
        z = rng.normal(size=leaf.shape)
        if kind == "real":
            return leaf + step * z
        if kind == "positive":
            return leaf * np.exp(step * z)
        if kind == "probability":
            return special.expit(special.logit(leaf) + step * z)
        if kind == "simplex":
            with np.errstate(divide="ignore"):
                return special.softmax(np.log(leaf) + step * z, axis=-1)
        root = np.linalg.cholesky(leaf)
        turned = linalg.expm(step / 2 * (z + np.swapaxes(z, -1, -2)))
        return root @ turned @ np.swapaxes(root, -1, -2)

    return jax.tree.map(move, kinds, params)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), tree)


def spd(rng, *shape, d=D):
    a = rng.normal(size=(*shape, d, d))
    return a @ np.swapaxes(a, -1, -2) / d + 0.3 * np.eye(d)


def covariances(covariance, k, d):
    """Any structure as (k, d, d)."""
    if covariance.ndim == 1:
        return covariance[:, None, None] * np.eye(d)
    if covariance.shape == (k, d) and k != d:
        return covariance[:, :, None] * np.eye(d)
    return np.broadcast_to(covariance, (k, d, d))


def normal_density(p, x):
    full = covariances(p.covariance, *p.mean.shape)
    each = [stats.multivariate_normal.logpdf(x, m, s) for m, s in zip(p.mean, full, strict=True)]
    return np.stack(each, 1)


def student_density(p, x):
    parts = zip(p.mean, p.scale, p.df, strict=True)
    return np.stack([stats.multivariate_t.logpdf(x, m, s, v) for m, s, v in parts], 1)


def categorical_density(p, x):
    columns = np.arange(x.shape[1])
    with np.errstate(divide="ignore"):
        return np.log(p.probs[:, columns, x.astype(int)]).sum(-1).T


def multinomial_density(p, x):
    constant = special.gammaln(x.sum(1) + 1) - special.gammaln(x + 1).sum(1)
    return constant[:, None] + special.xlogy(x[:, None], p.probs).sum(-1)


@pytree(eq=False)
class RayleighParams:
    scale: Any


@pytree
class Rayleigh(jaxem.Model):
    """One component, as a user would write it: log p(x) = Σ_d log x − 2 log s − x²/2s²."""

    def init(self, key, x, weights):
        return self.maximize(None, self.statistics(None, x, None, weights))

    def posterior(self, params, x):
        s = params.scale
        return None, (jax.numpy.log(x / s**2) - (x / s) ** 2 / 2).sum(-1)

    def statistics(self, params, x, q, weights):
        return weights.sum(), weights @ x**2

    def maximize(self, params, stats):
        return RayleighParams(jax.numpy.sqrt(stats[1] / (2 * stats[0])))

    def n_parameters(self, params):
        return params.scale.size

    def sample(self, key, params, n):
        u = jax.random.exponential(key, (n, params.scale.size), params.scale.dtype)
        return params.scale * jax.numpy.sqrt(2 * u)


def normal_case(structure, d, free):
    k = 2 if d == D else K  # k ≠ d, so that a shape tells the structure
    make, kind = {
        "full": (lambda rng: spd(rng, k, d=d), "spd"),
        "tied": (lambda rng: spd(rng, d=d), "spd"),
        "diagonal": (lambda rng: rng.uniform(0.3, 2, (k, d)), "positive"),
        "spherical": (lambda rng: rng.uniform(0.3, 2, k), "positive"),
    }[structure]
    return Case(
        f"normal-{structure}-{d}",
        jaxem.Normal(structure),
        lambda rng: jaxem.NormalParams(rng.normal(size=(k, d)), make(rng)),
        lambda rng: 2 * rng.normal(size=(N, d)) + 1,
        normal_density,
        jaxem.NormalParams("real", kind),
        lambda p: p.mean,
        free,
    )


def columns_case(name, bank, leaf, draw, data, density, kind, mean, free):
    """Independent columns with one (k, d) parameter."""
    return Case(name, bank, lambda rng: leaf(draw(rng)), data, density, leaf(kind), mean, free)


LEVELS = (2, 4, 3)
PADDED = np.arange(4) < np.array(LEVELS)[:, None]


def simplex(rng, mask):
    raw = rng.uniform(0.2, 1, (K, *mask.shape)) * mask
    return raw / raw.sum(-1, keepdims=True)


STUDENT = Case(
    "student",
    jaxem.StudentT(),
    lambda rng: jaxem.StudentTParams(rng.normal(size=(2, D)), spd(rng, 2), rng.uniform(5, 9, 2)),
    lambda rng: rng.standard_t(4, size=(N, D)),
    student_density,
    jaxem.StudentTParams("real", "spd", "positive"),
    lambda p: p.mean,
    2 * (D + 6 + 1),
)
NORMALS = {
    s: normal_case(s, D, f)
    for s, f in {"full": 18, "tied": 12, "diagonal": 12, "spherical": 8}.items()
}
POISSON = columns_case(
    "poisson", jaxem.Poisson(), jaxem.PoissonParams,
    lambda rng: rng.uniform(0.5, 6, (K, D)), lambda rng: rng.poisson(3, (N, D)) * 1.0,
    lambda p, x: stats.poisson.logpmf(x[:, None], p.rate).sum(-1),
    "positive", lambda p: p.rate, 9,
)  # fmt: skip
EXPONENTIAL = columns_case(
    "exponential", jaxem.Exponential(), jaxem.ExponentialParams,
    lambda rng: rng.uniform(0.3, 3, (K, D)), lambda rng: rng.gamma(2, 1, (N, D)),
    lambda p, x: stats.expon.logpdf(x[:, None], scale=1 / p.rate).sum(-1),
    "positive", lambda p: 1 / p.rate, 9,
)  # fmt: skip
BERNOULLI = columns_case(
    "bernoulli", jaxem.Bernoulli(), jaxem.BernoulliParams,
    lambda rng: rng.uniform(0.1, 0.9, (K, D)), lambda rng: rng.integers(0, 2, (N, D)) * 1.0,
    lambda p, x: stats.bernoulli.logpmf(x[:, None], p.probs).sum(-1),
    "probability", lambda p: p.probs, 9,
)  # fmt: skip
CATEGORICAL = columns_case(
    "categorical", jaxem.Categorical(4), jaxem.CategoricalParams,
    lambda rng: simplex(rng, np.ones((D, 4))), lambda rng: rng.integers(0, 4, (N, D)) * 1.0,
    categorical_density, "simplex", lambda p: p.probs @ np.arange(4), 27,
)  # fmt: skip
PADDED_CATEGORICAL = columns_case(
    "categorical-padded", jaxem.Categorical(LEVELS), jaxem.CategoricalParams,
    lambda rng: simplex(rng, PADDED), lambda rng: rng.integers(0, LEVELS, (N, D)) * 1.0,
    categorical_density, "simplex", lambda p: p.probs @ np.arange(4), 18,
)  # fmt: skip
MULTINOMIAL = columns_case(
    "multinomial", jaxem.Multinomial(trials=7), jaxem.MultinomialParams,
    lambda rng: simplex(rng, np.ones(4)), lambda rng: rng.multinomial(7, [0.25] * 4, N) * 1.0,
    multinomial_density, "simplex", lambda p: 7 * p.probs, 9,
)  # fmt: skip
EACH = columns_case(
    "each", jaxem.Each(Rayleigh()), RayleighParams,
    lambda rng: rng.uniform(0.5, 2, (K, D)), lambda rng: rng.rayleigh(1, (N, D)),
    lambda p, x: stats.rayleigh.logpdf(x[:, None], scale=p.scale).sum(-1),
    "positive", lambda p: p.scale * np.sqrt(np.pi / 2), 9,
)  # fmt: skip
GAMMA = Case(
    "gamma",
    jaxem.Gamma(),
    lambda rng: jaxem.GammaParams(rng.uniform(0.5, 5, (K, D)), rng.uniform(0.3, 2, (K, D))),
    lambda rng: rng.gamma(2, 1, (N, D)),
    lambda p, x: stats.gamma.logpdf(x[:, None], p.shape, scale=1 / p.rate).sum(-1),
    jaxem.GammaParams("positive", "positive"),
    lambda p: p.shape / p.rate,
    18,
)


def pair_case(name, bank, params, draw, data, density, kinds, mean):
    """Independent columns with two (k, d) parameters."""
    return Case(
        name,
        bank,
        lambda rng: params(*draw(rng)),
        data,
        lambda p, x: density(p, x[:, None]).sum(-1),
        params(*kinds),
        mean,
        18,
    )


LOG_NORMAL = pair_case(
    "log-normal", jaxem.LogNormal(), jaxem.LogNormalParams,
    lambda rng: (rng.normal(size=(K, D)), rng.uniform(0.1, 1, (K, D))),
    lambda rng: rng.gamma(2, 1, (N, D)),
    lambda p, x: stats.lognorm.logpdf(x, np.sqrt(p.variance), scale=np.exp(p.location)),
    ("real", "positive"), lambda p: np.exp(p.location + p.variance / 2),
)  # fmt: skip
WEIBULL = pair_case(
    "weibull", jaxem.Weibull(), jaxem.WeibullParams,
    lambda rng: (rng.uniform(0.6, 3, (K, D)), rng.uniform(0.5, 4, (K, D))),
    lambda rng: rng.gamma(2, 1, (N, D)),
    lambda p, x: stats.weibull_min.logpdf(x, p.shape, scale=p.scale),
    ("positive", "positive"), lambda p: p.scale * special.gamma(1 + 1 / p.shape),
)  # fmt: skip
BETA = pair_case(
    "beta", jaxem.Beta(), jaxem.BetaParams,
    lambda rng: (rng.uniform(0.5, 9, (K, D)), rng.uniform(0.5, 9, (K, D))),
    lambda rng: rng.beta(2, 3, (N, D)),
    lambda p, x: stats.beta.logpdf(x, p.a, p.b),
    ("positive", "positive"), lambda p: p.a / (p.a + p.b),
)  # fmt: skip
NEGATIVE_BINOMIAL = pair_case(
    "negative-binomial", jaxem.NegativeBinomial(), jaxem.NegativeBinomialParams,
    lambda rng: (rng.uniform(0.5, 6, (K, D)), rng.uniform(0.2, 2, (K, D))),
    lambda rng: rng.poisson(3 * rng.gamma(2, 0.5, (N, D))) * 1.0,
    lambda p, x: stats.nbinom.logpmf(x, 1 / p.dispersion, 1 / (1 + p.mean * p.dispersion)),
    ("positive", "positive"), lambda p: p.mean,
)  # fmt: skip


def product_case():
    """Columns of three types, out of order; the normal part has two columns."""
    parts = {"size": (GAMMA, [2]), "kind": (PADDED_CATEGORICAL, [4, 0, 3]), "n": (POISSON, [1])}

    def column(leaf, name):
        return leaf[:, : len(parts[name][1])]

    def params(rng):
        drawn = {n: case.params(rng) for n, (case, _) in parts.items()}
        return {n: jax.tree.map(lambda leaf, n=n: column(leaf, n), p) for n, p in drawn.items()}

    def join(pieces):
        out = np.zeros((len(next(iter(pieces.values()))), 5))
        for n, (_, where) in parts.items():
            out[:, where] = column(pieces[n], n)
        return out

    return Case(
        "product",
        jaxem.Product({n: (case.bank, where) for n, (case, where) in parts.items()}),
        params,
        lambda rng: join({n: case.data(rng) for n, (case, _) in parts.items()}),
        lambda p, x: sum(c.log_density(p[n], x[:, where]) for n, (c, where) in parts.items()),
        {n: case.kinds for n, (case, _) in parts.items()},
        lambda p: join({n: case.mean(p[n]) for n, (case, _) in parts.items()}),
        6 + 18 + 3,
    )


CASES = [*NORMALS.values(), STUDENT, POISSON, EXPONENTIAL, BERNOULLI, CATEGORICAL, LOG_NORMAL,
         PADDED_CATEGORICAL, MULTINOMIAL, EACH, GAMMA, WEIBULL, BETA,
         NEGATIVE_BINOMIAL, product_case()]  # fmt: skip
