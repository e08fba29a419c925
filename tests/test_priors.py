"""Priors against scipy: log densities, and maximum a posteriori M-steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    BERNOULLI,
    CATEGORICAL,
    EXPONENTIAL,
    GAMMA,
    LEVELS,
    MULTINOMIAL,
    NORMALS,
    PADDED_CATEGORICAL,
    POISSON,
    STUDENT,
    D,
    float64,
    moved,
)
from scipy import special, stats
from steps import assert_maximum, cast, setting, step
from zoo import alternating

import jaxem

MEAN = np.array([0.5, -1.0, 2.0])
SCALE = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.5]])
KAPPA, DF = 0.7, 6.0


def normal_log_prior(p):
    means, cov = p.mean, p.covariance
    if cov.ndim == 3 or cov.shape == (D, D):
        scatter = sum(stats.invwishart.logpdf(s, DF, SCALE) for s in cov.reshape(-1, D, D))
        full = np.broadcast_to(cov, (len(means), D, D))
    else:
        diagonal = cov.ndim == 2
        scale = np.diag(SCALE) if diagonal else SCALE[0, 0]
        scatter = stats.invgamma.logpdf(cov, DF / 2, scale=scale / 2).sum()
        full = (cov if diagonal else cov[:, None])[..., None] * np.eye(D)
    pairs = zip(means, full, strict=True)
    return scatter + sum(stats.multivariate_normal.logpdf(m, MEAN, s / KAPPA) for m, s in pairs)


def dirichlet(alpha, vectors, levels=None):
    rows = vectors.reshape(-1, vectors.shape[-1])
    levels = np.resize(levels or rows.shape[1], len(rows))
    parts = [row[:v] / row[:v].sum() for row, v in zip(rows, levels, strict=True)]
    return sum(stats.dirichlet.logpdf(p, np.full(len(p), alpha)) for p in parts)


def student_complete(p, x, before):
    """E[log p(x, τ | params)], τ the hidden precision, at the posterior that `before` fixes."""
    out = np.empty((len(x), len(p.df)))
    for k, v in enumerate(before.df):
        away = x - before.mean[k]
        distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(before.scale[k]), away)
        a, b = (v + D) / 2, (v + distance) / 2
        u, log_u = a / b, special.digamma(a) - np.log(b)
        away, half = x - p.mean[k], p.df[k] / 2
        distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(p.scale[k]), away)
        normal = D / 2 * log_u - np.linalg.slogdet(p.scale[k])[1] / 2 - u * distance / 2
        out[:, k] = normal + half * np.log(half) - special.gammaln(half) + half * (log_u - u)
    return out


def normal_prior(structure):
    scale = {"diagonal": np.diag(SCALE), "spherical": SCALE[0, 0]}.get(structure, SCALE)
    return jaxem.NormalPrior(MEAN, KAPPA, DF, scale)


def with_prior(case, prior, log_prior):
    bank = dataclasses.replace(case.bank, prior=prior)
    return case._replace(bank=bank, log_prior=log_prior)


def gamma_conjugate(p):
    each = p.shape * np.log(p.rate) - special.gammaln(p.shape) + 0.1 * (p.shape - 1) - 1.6 * p.rate
    return 3.5 * each.sum()


A, B = np.array([1.5, 2.0, 4.0]), np.array([0.5, 1.0, 3.0])
CASES = [
    *(with_prior(c, normal_prior(s), normal_log_prior) for s, c in NORMALS.items()),
    with_prior(
        STUDENT,
        normal_prior("full"),
        lambda p: normal_log_prior(jaxem.NormalParams(p.mean, p.scale)),
    ),
    with_prior(POISSON, jaxem.GammaPrior(A, B),
               lambda p: stats.gamma.logpdf(p.rate, A, scale=1 / B).sum()),
    with_prior(EXPONENTIAL, jaxem.GammaPrior(1.5, 0.5),
               lambda p: stats.gamma.logpdf(p.rate, 1.5, scale=2).sum()),
    with_prior(BERNOULLI, jaxem.BetaPrior(A, B),
               lambda p: stats.beta.logpdf(p.probs, A, B).sum()),
    with_prior(CATEGORICAL, jaxem.DirichletPrior(1.3), lambda p: dirichlet(1.3, p.probs)),
    with_prior(PADDED_CATEGORICAL, jaxem.DirichletPrior(2.5),
               lambda p: dirichlet(2.5, p.probs, LEVELS)),
    with_prior(MULTINOMIAL, jaxem.DirichletPrior(0.8), lambda p: dirichlet(0.8, p.probs)),
    with_prior(GAMMA, jaxem.GammaConjugatePrior(3.5, 1.6, 0.1), gamma_conjugate),
]  # fmt: skip
log_prior = jax.jit(lambda bank, params: bank.log_prior(params))


def both(cases, law):
    return pytest.mark.parametrize(("case", "dtype"), alternating(cases, law))


@both(CASES, 0)
def test_log_prior(case, dtype):
    (params, _, _), (p, _, _) = setting(case, dtype)
    bank = cast(case.bank, dtype)
    got = log_prior(bank, params)
    assert got.dtype == dtype
    tol = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(got, case.log_prior(p), rtol=tol, atol=tol)


@both(CASES, 1)
def test_m_step_is_the_mode(case, dtype):
    _, (before, x, weights) = setting(case, dtype)
    best = float64(step(case, dtype))
    complete = lambda p: case.log_density(p, x)  # noqa: E731
    if "student" in case.name:  # whose degrees of freedom have a step of their own
        best = dataclasses.replace(best, df=before.df)
        complete = lambda p: student_complete(dataclasses.replace(p, df=before.df), x, before)  # noqa: E731

    def objective(p):
        return (weights * complete(p)).sum() + case.log_prior(p)

    assert_maximum(objective, case.kinds, best, dtype)


@both(CASES, 1)
def test_m_step_without_units_is_finite(case, dtype):
    for situation in ("no unit", "a bit of one unit", "one unit"):
        new = step(case, dtype, situation)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


@both(CASES[: len(NORMALS)], 1)
def test_empty_normal_component_goes_to_the_mode_of_its_prior(case, dtype):
    new = float64(step(case, dtype, "no unit"))
    np.testing.assert_array_equal(new.mean, np.broadcast_to(MEAN, new.mean.shape))
    top = case.log_prior(new)
    assert all(case.log_prior(moved(case.kinds, new, seed, 0.1)) < top for seed in range(4))


@pytest.mark.parametrize(
    "bank, params, prior",
    [
        (jaxem.Bernoulli(), jaxem.BernoulliParams, jaxem.BetaPrior(0.5, 0.5)),
        (jaxem.Categorical(2), jaxem.CategoricalParams, jaxem.DirichletPrior(0.5)),
        (jaxem.Multinomial(), jaxem.MultinomialParams, jaxem.DirichletPrior(0.5)),
    ],
    ids=["bernoulli", "categorical", "multinomial"],
)
def test_a_sparse_prior_that_outweighs_the_data_gives_no_nan(bank, params, prior, dtype):
    bank = cast(dataclasses.replace(bank, prior=prior), dtype)
    x = np.asarray([[0.0, 1.0]], dtype)
    shape = (1, 2, 2) if isinstance(bank, jaxem.Categorical) else (1, 2)
    start = params(np.full(shape, 0.5, dtype))

    @jax.jit
    def step(x, weights):
        return bank.maximize(start, bank.statistics(None, x, None, weights)).probs

    probs = np.asarray(step(x, np.full((1, 1), 0.3, dtype)))
    assert np.isfinite(probs).all() and (probs >= 0).all()


def test_dirichlet_prior_at_the_edge():
    edge = jnp.asarray([[0.0, 1.0]])
    assert abs(float(jaxem.DirichletPrior(1.0).log_density(edge))) < 4e-15  # log Γ(2)
    assert jaxem.DirichletPrior(2.0).log_density(edge) == -np.inf
    with pytest.raises(ValueError, match="concentration must be one number"):
        jaxem.DirichletPrior(jnp.ones(2)).log_density(edge)


@pytest.mark.parametrize(("structure", "dtype"), alternating(NORMALS))
def test_default_prior_of_fraley_and_raftery(structure, dtype):
    x = np.random.default_rng(0).normal(size=(200, 2)) * [1, 4] + 7
    prior = jaxem.NormalPrior.from_data(x.astype(dtype), 3, structure)
    scale = np.cov(x.T, bias=True) / 3
    expected = {"diagonal": np.diag(scale), "spherical": np.trace(scale) / 2}.get(structure, scale)
    np.testing.assert_allclose(prior.scale, expected, rtol=1e-4 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(prior.mean, x.mean(0), rtol=1e-5)
    assert (prior.kappa, prior.df) == (0.01, 4.0) and prior.scale.dtype == dtype


@both([CASES[0], CASES[5], CASES[11]], 0)
def test_map_fit_reports_the_prior_in_the_units_of_the_data(case, dtype):
    x = case.data(np.random.default_rng(1))
    x = (100 * x if case is CASES[0] else x).astype(dtype)
    result = jaxem.fit(jaxem.Mixture(case.bank, k=2), x, key=0)
    p = float64(result.params)
    density = case.log_density(p.components, x.astype(float))
    tol = 1e-10 if dtype == np.float64 else 1e-4
    evidence = special.logsumexp(density + np.log(p.weights), axis=1).sum()
    np.testing.assert_allclose(result.log_likelihood, evidence, rtol=tol)
    total = evidence + case.log_prior(p.components)
    np.testing.assert_allclose(result.objective, total, rtol=tol)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: jaxem.NormalPrior(0.0, 0.0, 4.0, 1.0), "NormalPrior needs kappa above 0"),
        (lambda: jaxem.NormalPrior(0.0, 1.0, np.nan, 1.0), "needs df above 0 and finite, got nan"),
        (lambda: jaxem.NormalWishartPrior(0.0, -1.0, 4.0, 1.0), "NormalWishartPrior needs kappa"),
        (lambda: jaxem.GammaPrior(-1.0, 2.0), "GammaPrior needs shape above 0"),
        (lambda: jaxem.GammaPrior(1.0, "2"), r"GammaPrior needs rate above 0 .* got '2'"),
        (lambda: jaxem.BetaPrior(1.0, np.array([1.0, 0.0])), "BetaPrior needs b above 0"),
        (lambda: jaxem.DirichletPrior(np.inf), "DirichletPrior needs concentration above 0"),
        (lambda: jaxem.GammaConjugatePrior(2.0, 1.0, 0.5), "mean_log below log"),
    ],
)
def test_a_prior_that_is_none_is_refused_where_it_is_written(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong()


@pytest.mark.parametrize("family", [jaxem.Normal, jaxem.StudentT], ids=lambda f: f.__name__)
def test_a_normal_s_prior_must_be_proper_in_the_dimensions_of_the_data(family):
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    few = jaxem.Mixture(family(prior=jaxem.NormalPrior(0.0, 1.0, 2.0, 1.0)), k=2)
    with pytest.raises(ValueError, match=r"NormalPrior needs df > 2, got 2\.0"):
        jaxem.fit(few, x, key=0)
    flat = jaxem.Mixture(family(prior=jaxem.NormalPrior(0.0, 1.0, 6.0, np.ones((3, 3)))), k=2)
    with pytest.raises(ValueError, match="scale of NormalPrior must be positive definite"):
        jaxem.fit(flat, x, key=0)
