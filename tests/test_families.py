"""Every family against scipy: densities, exact M-steps, draws, empties and collapse."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import tuning
from oracles import (
    CASES,
    MULTINOMIAL,
    NEGATIVE_BINOMIAL,
    POISSON,
    STUDENT,
    WEIBULL,
    float64,
    moved,
    normal_case,
)
from scipy import special, stats
from steps import DIRECTIONS, assert_maximum, cast, density, setting, step
from zoo import alternating

import jaxem


def table(cases):
    return pytest.mark.parametrize("case", cases, ids=[c.name for c in cases])


def both(cases, law):
    return pytest.mark.parametrize(("case", "dtype"), alternating(cases, law))


@both([*CASES, normal_case("full", 10, 195), normal_case("tied", 10, 85)], 0)
def test_density(case, dtype):
    (params, x, _), (p, points, _) = setting(case, dtype)
    got = density(case.bank, params, x)
    assert got.dtype == dtype
    tol = 1e-12 if dtype == np.float64 else 3e-5
    np.testing.assert_allclose(got, case.log_density(p, points), rtol=tol, atol=10 * tol)


def test_multinomial_density_agrees_with_scipy_for_rows_of_any_total():
    x = np.array([[0, 0, 0], [3, 0, 1], [0, 9, 2]])
    p = np.array([[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]])
    got = density(jaxem.Multinomial(), jaxem.MultinomialParams(p), x * 1.0)
    expected = stats.multinomial.logpmf(x[:, None], x.sum(1)[:, None], p)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


NEVER = -np.inf
EDGES = {  # bank, params, x (n, 1), log density (n, k): −inf for what cannot be, and never NaN
    "poisson": (jaxem.Poisson(), jaxem.PoissonParams, [[[0], [2]]], [0, 3],
                [[0, -2], [NEVER, np.log(8 / 6) - 2]]),
    "bernoulli": (jaxem.Bernoulli(), jaxem.BernoulliParams, [[[0], [1]]], [0, 1],
                  [[0, NEVER], [NEVER, 0]]),
    "categorical": (jaxem.Categorical(3), jaxem.CategoricalParams,
                    [[[[1, 0, 0]], [[0, 0.5, 0.5]]]], [0, 1, 3, -1, 0.5, np.nan],
                    [[0, NEVER], [NEVER, np.log(0.5)], *[[NEVER, NEVER]] * 3, [np.nan, np.nan]]),
    "exponential": (jaxem.Exponential(), jaxem.ExponentialParams, [[[0], [2]]], [0, 1, -1],
                    [[NEVER, np.log(2)], [NEVER, np.log(2) - 2], [NEVER, NEVER]]),
    "gamma": (jaxem.Gamma(), jaxem.GammaParams, [[[1], [0.5], [3]], [[2], [2], [2]]], [1, 0, -1],
              [stats.gamma.logpdf(1, [1, 0.5, 3], scale=0.5), [NEVER] * 3, [NEVER] * 3]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), alternating(EDGES, 1))
def test_density_at_the_edges(name, dtype):
    bank, params, leaves, x, expected = EDGES[name]
    params = params(*(np.asarray(leaf, dtype) for leaf in leaves))
    got = density(bank, params, np.asarray(x, dtype)[:, None])
    tol = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(got, expected, rtol=tol, atol=tol)


STEPWISE = (STUDENT, WEIBULL, NEGATIVE_BINOMIAL)
"""Their M-steps are safe steps towards the maximum."""


@both([c for c in CASES if c not in STEPWISE], 1)
def test_m_step_is_exact(case, dtype):
    _, (_, x, weights) = setting(case, dtype)
    best = float64(step(case, dtype))
    assert_maximum(lambda p: (weights * case.log_density(p, x)).sum(), case.kinds, best, dtype)


@both(CASES, 1)
def test_empty_component_keeps_its_params(case, dtype):
    (params, _, weights), _ = setting(case, dtype)
    new = step(case, dtype, "component 1 empty")
    for old, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        assert leaf.dtype == dtype and np.isfinite(leaf).all()
        if leaf.shape[0] == weights.shape[1]:
            np.testing.assert_array_equal(leaf[1], old[1])
            assert np.any(leaf[0] != old[0])
    chex.assert_trees_all_equal(step(case, dtype, "no unit"), params)


@both(CASES, 1)
def test_one_unit_or_none_to_learn_from_is_never_nan(case, dtype):
    for situation in ("one unit", "next to nothing of one unit"):
        new = step(case, dtype, situation)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(new))


def joint(case, params, x):
    """log p(x, z) by the oracle, (n, k)."""
    return case.log_density(params.components, x) + np.log(params.weights)


def mixed(case, params):
    k = setting(case, float)[1][2].shape[1]
    kinds = jaxem.MixtureParams("simplex", case.kinds)
    weights = np.arange(1.0, k + 1) / np.arange(1, k + 1).sum()
    return jaxem.Mixture(case.bank, k=k), jaxem.MixtureParams(weights, params), kinds


@jax.jit
def score(model, params, x):
    return jax.grad(lambda p: model.log_prob(p, x).sum())(params)


@table(CASES)
def test_fishers_identity(case):
    _, (params, x, _) = setting(case, np.float64)
    model, params, kinds = mixed(case, params)
    gradient = float64(score(model, params, x))
    q = special.softmax(joint(case, params, x), axis=1)
    for seed in DIRECTIONS:
        ends = [moved(kinds, params, seed, h) for h in (-1e-5, 1e-5)]
        slope = np.subtract(*((q * joint(case, p, x)).sum() for p in ends[::-1]))
        products = jax.tree.map(lambda g, a, b: (g * (b - a)).sum(), gradient, *ends)
        along = sum(jax.tree.leaves(products))
        assert abs(along) > 1e-6
        np.testing.assert_allclose(along, slope, rtol=1e-5, atol=1e-9)


@table(CASES)
def test_draws_have_the_mean_and_the_score_of_the_model(case):
    n = 20_000
    params = case.params(np.random.default_rng(1))
    model, params, kinds = mixed(case, params)
    for dtype in (np.float32, np.float64):
        like = jax.eval_shape(lambda p: model.sample(jax.random.key(0), p, 5), cast(params, dtype))
        assert like.dtype == dtype
    draw = jax.jit(lambda p: model.sample(jax.random.key(2), p, n))
    x = np.asarray(draw(cast(params, np.float32)), float)
    assert x.shape == (n, case.mean(params.components).shape[1]) and np.isfinite(x).all()
    error = 5 * x.std(0) / np.sqrt(n)
    assert np.all(np.abs(x.mean(0) - params.weights @ case.mean(params.components)) < error)
    for seed in DIRECTIONS[
        :2
    ]:  # E[d log p(x)/dθ] = 0 sees the second moments and the tails as well
        low, high = (
            special.logsumexp(joint(case, moved(kinds, params, seed, h), x), axis=1)
            for h in (-1e-4, 1e-4)
        )
        slopes = (high - low) / 2e-4
        assert abs(slopes.mean()) < 5 * slopes.std() / np.sqrt(n)


@table(CASES)
def test_n_parameters(case):
    params = case.params(np.random.default_rng(0))
    assert case.bank.n_parameters(params) == case.free
    jax.eval_shape(lambda p: jnp.zeros(case.bank.n_parameters(p)), params)  # an int, traced as well


def test_n_parameters_of_a_fixed_df():
    params = STUDENT.params(np.random.default_rng(0))
    assert dataclasses.replace(STUDENT.bank, df=4.0).n_parameters(params) == STUDENT.free - 2


# StudentT: parameter-expanded EM.


@jax.jit
def climb(model, params, x):
    """60 EM steps: the objective at every one, and the params they lead to."""

    def one(p, _):
        seen = jaxem.EM().evaluate(model, p, x, jnp.ones(x.shape[0], x.dtype))
        return seen.proposal, seen.objective

    return jax.lax.scan(one, params, length=60)


STUDENTS = {
    "expanded": jaxem.StudentT(),
    "fixed-df": jaxem.StudentT(df=6.0),
    "map": jaxem.StudentT(prior=jaxem.NormalPrior(0.5, 2.0, 6.0, 1.5)),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_student_never_falls_and_ends_at_a_stationary_point(name):
    rng = np.random.default_rng(3)
    x = rng.standard_t(3, size=(300, 3)) * [1, 2, 3] + 5 * rng.integers(0, 2, (300, 1))
    start = setting(STUDENT, np.float64)[0][0]
    model, start, kinds = mixed(STUDENT._replace(bank=STUDENTS[name]), float64(start))
    end, seen = climb(model, cast(start, np.float64), x)
    assert np.diff(seen).min() > -1e-9 and seen[-1] > seen[0] + 1
    for _ in range(40):
        end, _ = climb(model, end, x)
    log_prior = model.log_prior

    def objective(p):
        return (model.log_prob(p, x).sum() + log_prior(p)) / 300

    value, gradient = jax.jit(jax.value_and_grad(objective))(end)
    assert np.isfinite(value)
    end, gradient = float64(end), float64(gradient)
    if name == "fixed-df":
        np.testing.assert_array_equal(end.components.df, [6.0, 6.0])  # the model's, not the start's
        gradient = dataclasses.replace(
            gradient, components=dataclasses.replace(gradient.components, df=np.zeros(2))
        )
    for seed in DIRECTIONS:
        ends = [moved(kinds, end, seed, h) for h in (-1e-5, 1e-5)]
        slopes = jax.tree.map(lambda g, a, b: (g * (b - a)).sum() / 2e-5, gradient, *ends)
        assert abs(sum(jax.tree.leaves(slopes))) < 1e-6


@pytest.mark.parametrize("df", [2.0, 5.0])
def test_student_recovers_df(df):
    x = np.random.default_rng(4).standard_t(df, size=(20_000, 1)) * 3 + 1
    result = jaxem.fit(jaxem.Mixture(jaxem.StudentT(), k=1), x, key=0)
    p = float64(result.params.components)

    def log_likelihood(df):
        return stats.t.logpdf(x, df, p.mean[0], np.sqrt(p.scale[0])).sum()

    np.testing.assert_allclose(result.log_likelihood, log_likelihood(p.df[0]), rtol=1e-12)
    assert all(log_likelihood(p.df[0] * r) < result.log_likelihood for r in (0.97, 1.03))
    assert abs(p.df[0] / df - 1) < 0.1


def test_student_refuses_a_df_that_is_no_df():
    for df in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="df must be finite and above 0"):
            jaxem.StudentT(df=df)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_moments_of_many_rows_go_in_blocks(covariance):
    """Rows enough for two blocks and a rest; the sums are those of all rows at once."""
    rng = np.random.default_rng(0)
    n, d, k = 18_000, 5, 3
    assert n > 2 * tuning.CACHED // (k * d)
    x, weights, mean = rng.normal(size=(n, d)), rng.uniform(size=(n, k)), rng.normal(size=(k, d))
    bank = jaxem.Normal(covariance)
    params = jaxem.NormalParams(mean, bank.structure.unit(k, d, float))
    found = jax.jit(bank.statistics)(params, x, None, weights)
    centred = x - mean[:, None]
    second = np.einsum("nk,kni,knj->kij", weights, centred, centred, optimize=True)
    np.testing.assert_allclose(found.count, weights.sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.first, np.einsum("nk,kni->ki", weights, centred), rtol=1e-9)
    np.testing.assert_allclose(
        found.second, second.sum(0) if covariance == "tied" else second, rtol=1e-11
    )


def test_large_counts_lose_no_digits_in_float32():
    rng = np.random.default_rng(0)
    x = rng.poisson((38_000, 300, 0.1), (50, 3)).astype(np.float32)
    rate = np.float32([[38_100, 290, 0.2], [37_900, 310, 0]])
    for case, params in [
        (POISSON, jaxem.PoissonParams(rate)),
        (MULTINOMIAL, jaxem.MultinomialParams(rate / rate.sum(1, keepdims=True))),
    ]:
        got = np.asarray(case.bank.posterior(params, x)[1])
        expected = case.log_density(float64(params), x.astype(float))
        assert got.dtype == np.float32
        assert np.allclose(got, expected, rtol=1e-4, atol=0.01)
