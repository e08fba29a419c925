"""Log-normal, Weibull, beta and negative binomial components: maxima, ascent, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import BETA, LOG_NORMAL, NEGATIVE_BINOMIAL, WEIBULL, float64
from scipy import optimize

import jaxem

CASES = {case.name: case for case in (LOG_NORMAL, WEIBULL, BETA, NEGATIVE_BINOMIAL)}
every_family = pytest.mark.parametrize("name", CASES)
PROBLEMS, ROWS = 300, 30


@every_family
def test_one_component_is_the_weighted_maximum(name):
    """Against scipy's optimum in the logarithms of the params."""
    case = CASES[name]
    rng = np.random.default_rng(5)
    x, weights = case.data(rng)[:, :1], rng.uniform(0.2, 3, 60)
    model = jaxem.Mixture(case.bank, k=1)
    result = jaxem.fit(model, x, key=0, weights=weights, tol=1e-14)
    assert result.converged
    tree = jax.tree.structure(case.kinds)
    is_real = [kind == "real" for kind in jax.tree.leaves(case.kinds)]

    def loss(free):
        leaves = [
            np.reshape(f if r else np.exp(f), (1, 1)) for f, r in zip(free, is_real, strict=True)
        ]
        return -(weights @ case.log_density(jax.tree.unflatten(tree, leaves), x)[:, 0])

    found = [float(leaf[0, 0]) for leaf in jax.tree.leaves(result.params.components)]
    start = [f if r else np.log(f) for f, r in zip(found, is_real, strict=True)]
    best = optimize.minimize(
        loss, np.add(start, [0.2, -0.2]), method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-13, "maxiter": 4000},
    )  # fmt: skip
    np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-11)
    np.testing.assert_allclose(start, best.x, rtol=1e-5, atol=1e-5)  # flat within √(rounding)
    slopes = optimize.approx_fprime(start, loss, 1e-6)
    assert np.abs(slopes).max() < 1e-3


def scattered(name, rng):
    """Params and data of random problems, without any relation between the two."""
    k, d, shape = 2, 2, (PROBLEMS, 2, 2)
    wide = np.exp(rng.normal(size=(2, *shape)) * 1.5)
    spread = np.exp(rng.normal(size=(PROBLEMS, 1, 1)))
    data = np.exp(spread * rng.normal(size=(PROBLEMS, ROWS, d)) + rng.normal(size=spread.shape))
    if name == "beta":
        data = np.clip(data / (1 + data), 1e-12, 1 - 1e-12)
    if name == "negative-binomial":
        data, wide[1] = np.floor(np.minimum(2 * data, 1e6)), np.clip(wide[1] ** 2, 1e-6, 1e6)
    if name == "log-normal":
        wide[0] = np.log(wide[0])
    params = type(CASES[name].kinds)(*wide)
    weights = rng.dirichlet(np.ones(k), PROBLEMS)
    return params, data, weights, rng.uniform(0.1, 2, (PROBLEMS, ROWS))


@every_family
def test_no_step_from_random_params_lowers_the_likelihood(name):
    bank = CASES[name].bank
    model = jaxem.Mixture(bank, k=2)
    params, data, shares, weights = scattered(name, np.random.default_rng(6))

    def climb(params, shares, x, weights):
        def step(params, _):
            q, evidence = model.posterior(params, x)
            size = jnp.abs(weights * evidence).sum()
            new = model.maximize(params, model.statistics(params, x, q, weights))
            return new, ((weights * evidence).sum(), size)

        return jax.lax.scan(step, jaxem.MixtureParams(shares, params), length=40)[1]

    values, sizes = map(np.asarray, jax.jit(jax.vmap(climb))(params, shares, data, weights))
    assert np.isfinite(values).all()
    gains = np.diff(values, axis=1)
    assert (gains >= -64 * np.finfo(float).eps * (sizes[:, 1:] + ROWS)).all(), gains.min()
    assert (gains[:, 0] > 1e-6).mean() > 0.95  # the steps are steps


@every_family
def test_many_rows_in_float32(name):
    """100,000 rows: the sums of float32 keep the digits of the estimates."""
    case = CASES[name]
    rng = np.random.default_rng(7)
    x = np.tile(case.data(rng)[:, :1], (1667, 1)).astype(np.float32)
    few = float64(x[:60])
    model = jaxem.Mixture(case.bank, k=1)
    many = jaxem.fit(model, x, key=0)
    exact = jaxem.fit(model, few, key=0, tol=1e-12)
    assert many.converged
    score = case.log_density(float64(many.params.components), few).mean()
    best = exact.log_likelihood / 60
    assert best - 3e-6 < score <= best + 1e-12
    np.testing.assert_allclose(many.log_likelihood / len(x), best, rtol=1e-5)


def test_log_normal_is_the_normal_of_logarithms():
    rng = np.random.default_rng(8)
    y = rng.normal(size=(90, 2)) + 4 * rng.integers(2, size=(90, 1))
    start = jaxem.fit(jaxem.Mixture(jaxem.Normal("diagonal"), k=2), y, key=0, tol=1e-12)
    p = start.params
    init = jaxem.MixtureParams(p.weights, jaxem.LogNormalParams(*p.components.__dict__.values()))
    found = jaxem.fit(jaxem.Mixture(jaxem.LogNormal(), k=2), np.exp(y), init=init, tol=1e-12)
    np.testing.assert_allclose(found.log_likelihood, start.log_likelihood - y.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.params.components.location, p.components.mean, rtol=1e-7)
    np.testing.assert_allclose(found.params.components.variance, p.components.covariance, rtol=1e-6)


@pytest.mark.parametrize("x", [np.full(40, 3.0), np.repeat([1.0, 2, 3, 4], 10), np.zeros(40)])
def test_counts_without_overdispersion_end_at_the_poisson_limit(x):
    model = jaxem.Mixture(jaxem.NegativeBinomial(), k=1)
    result = jaxem.fit(model, x[:, None], key=0, tol=1e-9)
    poisson = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), k=1), x[:, None], key=0)
    assert result.converged
    np.testing.assert_allclose(result.log_likelihood, poisson.log_likelihood, atol=1e-5)
    np.testing.assert_allclose(result.params.components.mean, poisson.params.components.rate)


def test_large_counts_keep_their_digits_in_float32():
    rng = np.random.default_rng(9)
    x = rng.poisson(40_000 * rng.gamma(50, 0.02, (60, 3))).astype(np.float32)
    params = jaxem.NegativeBinomialParams(
        np.float32([[38_100, 41_000, 40_000]]), np.float32([[0.02, 1e-5, 1e-7]])
    )
    found = NEGATIVE_BINOMIAL.bank.posterior(params, x)[1]
    expected = NEGATIVE_BINOMIAL.log_density(float64(params), float64(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.02)


@pytest.mark.filterwarnings("ignore:.*DEGENERATE:jaxem.FitWarning")
@pytest.mark.parametrize("bank", [jaxem.LogNormal(), jaxem.Weibull(), jaxem.Beta()])
def test_components_of_equal_values_are_degenerate(bank):
    x = np.repeat([[0.25, 0.5], [0.5, 0.25]], 20, axis=0)
    result = jaxem.fit(jaxem.Mixture(bank, k=2), x, key=0)
    assert result.status == jaxem.Status.DEGENERATE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_what_a_family_does_not_take_is_said():
    def fit(bank, x):
        jaxem.fit(jaxem.Mixture(bank, k=1), np.asarray(x)[:, None], key=0)

    shares = np.array([0.0, 0.2, 0.5, 0.9, 1.0, 0.4])
    with pytest.raises(ValueError, match="move values of exactly 0 and 1 inward"):
        fit(jaxem.Beta(), shares)
    with pytest.raises(ValueError, match="divide percentages by 100"):
        fit(jaxem.Beta(), 100 * shares)
    for bank in (jaxem.LogNormal(), jaxem.Weibull()):
        with pytest.raises(ValueError, match="finite positive numbers"):
            fit(bank, shares)
    with pytest.raises(ValueError, match="counts 0, 1, 2"):
        fit(jaxem.NegativeBinomial(), shares)
    with pytest.raises(TypeError, match="missing must be True or False"):
        jaxem.Beta(missing="yes")
