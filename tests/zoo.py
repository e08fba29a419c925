"""Every model that must obey the laws, with data it can explain: adding a model is one line."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

N, D, K = 40, 3, 3


class Case(NamedTuple):
    model: object
    data: np.ndarray


def _data():
    rng = np.random.default_rng(7)
    group = rng.integers(K, size=(N, 1))
    real = rng.normal(size=(N, D)) + 3 * group * np.array([1.0, -1.0, 0.5])
    counts = rng.poisson(2.0 + 4 * group, size=(N, D)).astype(float)
    codes = np.minimum(rng.poisson(0.4 + group, size=(N, D)), 2).astype(float)
    positive = rng.gamma(2.0, 1.0 + 3 * group, size=(N, D))
    return real, counts, codes, positive, group[:, 0]


def geometric():
    """A one-component model, lifted by Each: the family of the README."""

    @dataclasses.dataclass(frozen=True)
    class Geometric(jaxem.Model):
        def init(self, key, x, weights):
            return self.maximize(None, self.statistics(None, x, None, weights))

        def posterior(self, params, x):
            p = params["probs"]
            return None, (jnp.log(p) + x * jnp.log1p(-p)).sum(-1)

        def statistics(self, params, x, q, weights):
            return {"count": weights.sum(), "total": weights @ x}

        def maximize(self, params, stats):
            return {"probs": stats["count"] / (stats["count"] + stats["total"])}

        def sample(self, key, params, n):
            u = jax.random.uniform(key, (n, params["probs"].size), params["probs"].dtype)
            return jnp.floor(jnp.log(u) / jnp.log1p(-params["probs"]))

        def n_parameters(self, params):
            return params["probs"].size

    return jaxem.Each(Geometric())


@dataclasses.dataclass(frozen=True)
class Graph:
    """A stochastic block model: a unit is a graph, a latent variable the block of a node."""

    blocks: int = 2

    def latents(self, x):
        return (self.blocks,) * x.shape[-1]

    def init(self, key, x, weights):
        more = 0.7 + jnp.eye(self.blocks) + 0.1 * jax.random.uniform(key, (self.blocks,) * 2)
        even = jnp.full(self.blocks, 1 / self.blocks, x.dtype)
        density = weights @ x.mean((1, 2)) / weights.sum()
        return {"shares": even, "links": jnp.clip(density * (more + more.T) / 2, 0.01, 0.99)}

    def log_joint(self, params, x, z):
        pair = 0.5 * (1 - jnp.eye(x.shape[-1]))
        yes, no = jnp.log(params["links"]), jnp.log1p(-params["links"])
        link = jnp.einsum("gij,gik,gjl->gkl", pair * x, z, z)
        rest = jnp.einsum("gij,gik,gjl->gkl", pair * (1 - x), z, z)
        return (link * yes + rest * no).sum((1, 2)) + (z @ jnp.log(params["shares"])).sum(1)

    def statistics(self, params, x, q, weights):
        pair = 1 - jnp.eye(x.shape[-1])
        sums = functools.partial(jnp.einsum, "g,gij,gik,gjl->kl", weights)
        return {
            "count": jnp.einsum("g,gik->k", weights, q),
            "link": sums(pair * x, q, q),
            "all": sums(pair + 0 * x, q, q),
        }

    def maximize(self, params, stats):
        links = jnp.clip(stats["link"] / jnp.maximum(stats["all"], 1e-9), 1e-6, 1 - 1e-6)
        return {"shares": stats["count"] / stats["count"].sum(), "links": links}


def graph(n, blocks, seed=0, inside=0.5, outside=0.05):
    rng = np.random.default_rng(seed)
    z = np.arange(n) % blocks
    chance = np.where(z[:, None] == z, inside, outside)
    upper = np.triu(rng.uniform(size=(n, n)) < chance, 1)
    return (upper + upper.T)[None].astype(float), z


REAL, COUNTS, CODES, POSITIVE, GROUP = _data()
HOLES = np.where(np.random.default_rng(9).random((N, D)) < 0.2, np.nan, REAL)
HOLES[3] = [np.nan, REAL[3, 1], np.nan]
ONES = np.minimum(CODES, 1)
FRACTIONS = np.random.default_rng(9).beta(1 + 5 * GROUP, 6 - 2 * GROUP, (D, N)).T
MIXED = np.concatenate([REAL[:, :2], COUNTS[:, :1], CODES[:, :1]], axis=1)
NORMAL_PRIOR = jaxem.NormalPrior(0.5, 0.1, 6.0, 2.0)

BANKS = {
    "normal-full": Case(jaxem.Normal("full"), REAL),
    "normal-tied": Case(jaxem.Normal("tied"), REAL),
    "normal-diagonal": Case(jaxem.Normal("diagonal"), REAL),
    "normal-spherical": Case(jaxem.Normal("spherical"), REAL),
    "normal-full-map": Case(jaxem.Normal("full", prior=NORMAL_PRIOR), REAL),
    "normal-tied-map": Case(jaxem.Normal("tied", prior=NORMAL_PRIOR), REAL),
    "normal-diagonal-map": Case(jaxem.Normal("diagonal", prior=NORMAL_PRIOR), REAL),
    "normal-spherical-map": Case(jaxem.Normal("spherical", prior=NORMAL_PRIOR), REAL),
    "normal-missing": Case(jaxem.Normal(missing=True), HOLES),
    "student-df": Case(jaxem.StudentT(df=5.0), REAL),
    "student": Case(jaxem.StudentT(), REAL),
    "student-tied": Case(jaxem.StudentT(covariance="tied"), REAL),
    "student-map": Case(jaxem.StudentT(prior=NORMAL_PRIOR), REAL),
    "factors-spherical": Case(jaxem.Factors(1, "spherical"), REAL),
    "factors-tied": Case(jaxem.Factors(1, shared_noise=True, shared_loadings=True), REAL),
    "poisson": Case(jaxem.Poisson(), COUNTS),
    "poisson-map": Case(jaxem.Poisson(prior=jaxem.GammaPrior(2.0, 0.5)), COUNTS),
    "bernoulli": Case(jaxem.Bernoulli(), ONES),
    "bernoulli-map": Case(jaxem.Bernoulli(prior=jaxem.BetaPrior(2.0, 3.0)), ONES),
    "categorical": Case(jaxem.Categorical(3), CODES),
    "categorical-map": Case(jaxem.Categorical((3, 4, 3), prior=jaxem.DirichletPrior(1.5)), CODES),
    "multinomial": Case(jaxem.Multinomial(trials=9), COUNTS),
    "multinomial-map": Case(jaxem.Multinomial(prior=jaxem.DirichletPrior(2.0)), COUNTS),
    "exponential": Case(jaxem.Exponential(), POSITIVE),
    "exponential-map": Case(jaxem.Exponential(prior=jaxem.GammaPrior(2.0, 1.0)), POSITIVE),
    "gamma": Case(jaxem.Gamma(), POSITIVE),
    "gamma-map": Case(jaxem.Gamma(prior=jaxem.GammaConjugatePrior(2.0, 2.0, 0.4)), POSITIVE),
    "log-normal": Case(jaxem.LogNormal(), POSITIVE),
    "weibull": Case(jaxem.Weibull(), POSITIVE),
    "beta": Case(jaxem.Beta(), FRACTIONS),
    "negative-binomial": Case(jaxem.NegativeBinomial(), COUNTS),
    "product": Case(
        jaxem.Product(
            {
                "size": (jaxem.Normal(), [0, 1]),
                "count": (jaxem.Poisson(), 2),
                "class": (jaxem.Categorical(3), [3]),
            }
        ),
        MIXED,
    ),
    "each": Case(geometric(), COUNTS),
    "each-mixture": Case(jaxem.Each(jaxem.Mixture(jaxem.Normal("diagonal"), k=2)), REAL),
}

ROWS = 60
OVERLAPPING = {
    "full": jaxem.Normal("full"),
    "tied": jaxem.Normal("tied"),
    "diagonal": jaxem.Normal("diagonal"),
    "spherical": jaxem.Normal("spherical"),
    "student": jaxem.StudentT(),
    "poisson": jaxem.Poisson(),
    "gamma": jaxem.Gamma(),
    "categorical": jaxem.Categorical(4),
    "full-map": jaxem.Normal("full", prior=jaxem.NormalPrior(0.0, 0.5, 5.0, 0.5)),
    "poisson-map": jaxem.Poisson(prior=jaxem.GammaPrior(2.0, 1.0)),
}
"""Banks for random problems of 60 x 2, whose groups overlap: `overlapping` draws the data."""


def overlapping(bank, seed, n=ROWS, spread=None):
    """Data from two to four overlapping groups, of the type that the bank takes."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.3, 3) if spread is None else spread
    group = rng.integers(rng.integers(2, 5), size=(n, 1))
    real = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 2)) + spread * group
    if "poisson" in bank:
        return rng.poisson(1 + spread * group, size=(n, 2)).astype(float)
    if bank == "categorical":
        return np.minimum(rng.poisson(0.3 + spread * group / 2, size=(n, 2)), 3).astype(float)
    return np.exp(real / 2) if bank == "gamma" else real


LABELS = np.where(np.arange(N) % 3 == 0, GROUP, -1)

MODELS = {name: Case(jaxem.Mixture(bank, k=K), x) for name, (bank, x) in BANKS.items()} | {
    "weights-map": Case(
        jaxem.Mixture(jaxem.Poisson(), k=K, prior=jaxem.DirichletPrior(3.0)), COUNTS
    ),
    "restricted": Case(
        jaxem.Restricted(
            jaxem.Mixture(jaxem.Normal("diagonal"), k=K),
            {"components.mean[:, 2]": 1.5},
            "components.covariance",
        ),
        REAL,
    ),
    "noise": Case(
        jaxem.Mixture(jaxem.Normal("diagonal"), k=K, noise=jaxem.UniformNoise(150.0)), REAL
    ),
    "labelled": Case(jaxem.Mixture(jaxem.Normal(), k=K), jaxem.Labelled(REAL, LABELS)),
}

MODELS["components"] = Case(
    jaxem.Mixture(
        jaxem.Components({"n": (jaxem.Poisson(), 1), "size": (jaxem.Normal("diagonal"), K - 1)}),
        k=K,
    ),
    COUNTS,
)
"""Their params have no common axis of components."""

REGRESSORS = np.random.default_rng(8).uniform(-1, 1, (N, 2))
REGRESSIONS = {
    f"regression-{name}": Case(
        jaxem.Mixture(jaxem.Regression(family, **options), k=K), jaxem.Data(REGRESSORS, y)
    )
    for name, family, options, y in (
        ("normal", "normal", {}, REAL[:, 0]),
        ("normal-map", "normal", {"prior": 2.0}, REAL[:, 0]),
        ("poisson-tied", "poisson", {"shared": (1,)}, COUNTS[:, 0]),
        ("binomial", "binomial", {}, ONES[:, 0]),
        ("gamma", "gamma", {}, POSITIVE[:, 0]),
        ("negative-binomial", "negative_binomial", {}, COUNTS[:, 0]),
    )
}
"""Models of `Data` with responses, for the laws: other tests take rows."""

SELDOM = [f"normal-{kind}-map" for kind in ("tied", "diagonal", "spherical")]
SELDOM += [f"{bank}-map" for bank in ("bernoulli", "categorical", "multinomial", "exponential")]
SELDOM += [
    "student-tied",
    "gamma-map",
    "student-df",
    "regression-binomial",
    "regression-normal-map",
]
SELDOM += ["regression-gamma"]
"""Variants whose family and whose prior are tested without each other."""


def usually(names):
    """The names as cases of a test, the seldom ones marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow if n in SELDOM else ()) for n in names]


def alternating(cases, law=0):
    """(case, dtype) pairs of a law: precision alternates over the cases, the other half is slow.

    With law=0 for some laws and law=1 for others, every case is seen in both precisions.
    """
    pairs = []
    for i, case in enumerate(cases):
        param = (
            case if hasattr(case, "marks") else pytest.param(case, id=getattr(case, "name", None))
        )
        for j, dtype in enumerate((np.float32, np.float64)):
            marks = [*param.marks, *[pytest.mark.slow] * ((i + j + law) % 2)]
            label = param.id or str(param.values[0])
            pairs.append(
                pytest.param(*param.values, dtype, marks=marks, id=f"{label}-{dtype.__name__}")
            )
    return pairs


def cast(data, dtype):
    """Float leaves of the data in another precision."""
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, data)
