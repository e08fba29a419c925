"""Missing cells of families with independent columns: a cell that is NaN drops out."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import capabilities, domains, has

import jaxem

NAN = np.nan


def test_a_domain_takes_missing_cells_where_it_says_so():
    x = np.array([[1.0, NAN], [NAN, NAN], [-1.0, np.inf]])
    plain = domains.POSITIVE
    missing = dataclasses.replace(plain, missing=True)
    np.testing.assert_array_equal(plain.valid(x), [[True, False], [False, False], [False, False]])
    np.testing.assert_array_equal(missing.valid(x), [[True, True], [True, True], [False, False]])
    assert plain.is_observed(x) is None and plain.observations(x) is None
    np.testing.assert_array_equal(missing.is_observed(x), [True, False, True])
    np.testing.assert_array_equal(missing.observations(x[None]), [[True, False, True]])
    assert "NaN" in missing.accepted("", x[:1, :1])[0]


def test_a_column_without_an_observed_value_is_named():
    x = np.array([[1.0, NAN, NAN], [2.0, 3.0, NAN]])
    domain = dataclasses.replace(domains.POSITIVE, missing=True)
    with pytest.raises(ValueError, match="column 2 has no observed value"):
        domain.check_values(x, None)
    with pytest.raises(ValueError, match="columns 1, 2 have no observed value"):
        domain.check_values(x, np.array([1.0, 0.0]))
    domain.check_values(x[:, :2], None)
    domains.POSITIVE.check_values(x, None)


RNG = np.random.default_rng(3)
N = 60
GROUP = RNG.integers(2, size=(N, 1))
COUNTS = RNG.poisson((2 + 6 * GROUP) * RNG.gamma(4, 0.25, (N, 2))) * 1.0
POSITIVE = RNG.gamma(3, 1 + 5 * GROUP, (N, 2))
FAMILIES = {
    "poisson": (jaxem.Poisson(), COUNTS),
    "bernoulli": (jaxem.Bernoulli(), np.minimum(COUNTS // 3, 1)),
    "categorical": (jaxem.Categorical((3, 4)), np.minimum(COUNTS // 2, 2)),
    "exponential": (jaxem.Exponential(), POSITIVE),
    "gamma": (jaxem.Gamma(), POSITIVE),
    "log-normal": (jaxem.LogNormal(), POSITIVE),
    "weibull": (jaxem.Weibull(), POSITIVE),
    "beta": (jaxem.Beta(), POSITIVE / (3 + POSITIVE)),
    "negative-binomial": (jaxem.NegativeBinomial(), COUNTS),
}
MASK = np.random.default_rng(4).uniform(size=(N, 2)) < 0.75
MASK |= (MASK.sum(1, keepdims=True) == 0) & (np.arange(2) == 0)
MASK[5] = False
SELDOM = ("bernoulli", "exponential", "log-normal", "weibull", "beta", "negative-binomial")
every_family = pytest.mark.parametrize("name", FAMILIES)


def holes(name):
    """The family with missing=True, complete data, and data with holes; row 5 has no value."""
    bank, x = FAMILIES[name]
    return dataclasses.replace(bank, missing=True), x, np.where(MASK, x, NAN)


def close(a, b, **options):
    chex.assert_trees_all_close(*(jax.tree.map(np.asarray, tree) for tree in (a, b)), **options)


@every_family
def test_missing_cells_drop_out_of_density_and_sums(name):
    """Of complete data nothing changes; of others, what single columns of the plain family give.
    The linear form agrees with both."""
    plain, _ = FAMILIES[name]
    bank, x, gaps = holes(name)
    weights = RNG.dirichlet(np.ones(2), N)
    params = jax.jit(plain.init)(jax.random.key(0), x, weights)
    density = jax.jit(lambda bank, x: bank.posterior(params, x)[1])
    step = jax.jit(lambda b, x, w: b.maximize(params, b.statistics(params, x, None, w)))
    close(density(bank, x), density(plain, x), rtol=1e-12)
    close(step(bank, x, weights), step(plain, x, weights), rtol=1e-12)

    expected, moved = 0, step(bank, gaps, weights)
    for j in range(2):
        alone = np.where(np.arange(2) == j, x, x[:1])  # the other column is the same in all rows
        each = density(plain, alone) - density(plain, np.broadcast_to(x[:1], x.shape))
        at_first = density(bank, np.where(np.arange(2) == j, x[:1], NAN))
        expected = expected + np.where(MASK[:, j : j + 1], each + at_first, 0)
        of_column = step(plain, x, weights * MASK[:, j : j + 1])
        close(*(jax.tree.map(lambda leaf: leaf[:, j], p) for p in (moved, of_column)), rtol=1e-9)  # noqa: B023
    found = density(bank, gaps)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found[5], 0)

    form = bank.linear(gaps) if has(bank, capabilities.LinearBank) else None
    if form is not None:
        features = form.features(form.columns(jnp.asarray(gaps)))
        linear = form.coefficients(params, jnp.zeros(2)) @ features
        base = form.base(jnp.asarray(gaps))
        np.testing.assert_allclose((linear + (0 if base is None else base)).T, found, atol=1e-9)
        stats = form.statistics(params, features @ weights)
        close(stats, bank.statistics(params, gaps, None, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SELDOM)) for n in FAMILIES]
)
def test_a_fit_with_missing_cells(name):
    """The restarts and gradient are sound; rows without a value change nothing, and have no
    component; its evidence is that of the model."""
    bank, _, gaps = holes(name)
    model = jaxem.Mixture(bank, k=2)
    result = jaxem.fit(model, gaps, key=0, restarts=2, tol=1e-8)
    assert result.converged
    scores = np.asarray(result.score_samples(gaps))
    np.testing.assert_allclose(scores.sum(), result.log_likelihood, rtol=1e-10)
    assert scores[5] == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(np.asarray(result.predict(gaps)) == -1, np.arange(N) == 5)
    np.testing.assert_allclose(result.predict_proba(gaps)[5], result.params.weights, rtol=1e-12)
    np.testing.assert_allclose(result.bic(), result.bic(gaps), rtol=1e-12)
    assert result.total_weight == N - 1
    weights = np.where(np.arange(N) == 5, 0.0, 1.0)
    absent = jaxem.fit(model, gaps, init=result.params, weights=weights, tol=1e-8)
    close(absent.params, jaxem.fit(model, gaps, init=result.params, tol=1e-8).params, rtol=1e-12)


def test_what_missing_cells_cannot_be_is_said():
    x = FAMILIES["gamma"][1].copy()
    x[:, 1] = NAN
    with pytest.raises(ValueError, match="column 1 has no observed value"):
        jaxem.fit(jaxem.Mixture(jaxem.Gamma(missing=True), k=2), x, key=0)
    x[:, 1] = 1.0
    x[3, 0] = NAN
    with pytest.raises(ValueError, match="1 value outside the model's support"):
        jaxem.fit(jaxem.Mixture(jaxem.Gamma(), k=2), x, key=0)


def test_parts_of_a_product_miss_cells_independently():
    _, _, gaps = holes("poisson")
    x = np.c_[POSITIVE, gaps]
    parts = {"time": (jaxem.Gamma(), [0, 1]), "n": (jaxem.Poisson(missing=True), [2, 3])}
    result = jaxem.fit(jaxem.Mixture(jaxem.Product(parts), k=2), x, key=0)
    assert result.converged and np.all(np.asarray(result.predict(x)) >= 0)
    both = dict(parts, time=(jaxem.Gamma(missing=True), [0, 1]))
    x[5, :2] = NAN
    found = jaxem.fit(jaxem.Mixture(jaxem.Product(both), k=2), x, key=0)
    assert found.converged and found.predict(x)[5] == -1


def test_bayesian_mixtures_take_missing_cells():
    """A row without a value and cells of one column alone: ascent, and the bound of a posterior."""
    _, _, gaps = holes("poisson")
    model = jaxem.BayesianMixture(jaxem.Poisson(missing=True), k=2)
    result = jaxem.fit(model, gaps, key=0, tol=1e-9)
    assert result.converged
    kept = jaxem.fit(result.model, gaps[np.arange(N) != 5], init=result.params, tol=1e-9)
    close(kept.params.components, result.params.components, rtol=1e-5)


def test_gradients_through_missing_cells_are_finite():
    @jax.jit
    @jax.grad
    def slope(scale):
        gaps = jnp.where(MASK, POSITIVE * scale, NAN)
        bank = jaxem.Exponential(missing=True)
        return jaxem.fit(jaxem.Mixture(bank, k=1), gaps, key=0, tol=1e-10).log_likelihood

    np.testing.assert_allclose(slope(1.0), -MASK.sum(), rtol=1e-8)  # density scales by 1/scale
