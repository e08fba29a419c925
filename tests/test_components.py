"""Components of different families on the same columns, and point masses."""

import jax
import numpy as np
import pytest
from oracles import published
from scipy import special, stats

import jaxem

ZERO = (jaxem.PointMass(0.0), 1)
INFLATED = jaxem.Components({"zero": ZERO, "counts": (jaxem.Poisson(), 1)})
HURDLE = jaxem.Components(
    {"zero": ZERO, "body": (jaxem.Gamma(), 1), "tail": (jaxem.LogNormal(), 1)}
)


def hurdle_data(n=200, seed=0):
    rng = np.random.default_rng(seed)
    body = rng.gamma(3, 2, (n, 1))
    far = np.exp(rng.normal(3.5, 0.2, (n, 1)))
    positive = np.where(np.arange(n)[:, None] % 2 == 0, body, far)
    return np.where(rng.uniform(size=(n, 1)) < 0.3, 0.0, positive)


def hurdle_density(p, x):
    """log p(x | k) (n, 3) by scipy, with respect to length and a point mass at 0."""
    body, tail = p["body"], p["tail"]
    positive = np.where(x > 0, x, 1)
    logs = [
        np.where(x == 0, 0, -np.inf),
        np.where(x > 0, stats.gamma.logpdf(positive, body.shape, scale=1 / body.rate), -np.inf),
        stats.lognorm.logpdf(positive, np.sqrt(tail.variance), scale=np.exp(tail.location)),
    ]
    logs[2] = np.where(x > 0, logs[2], -np.inf)
    return np.concatenate(logs, axis=1)


@pytest.mark.parametrize("name", ["zero-inflated-widows", "widows-errors"])
def test_zero_inflated_widows(name):
    case = published(name)
    x = np.asarray(case["inline"]["value"], float)[:, None]
    weights = np.asarray(case["inline"]["count"], float)
    result = jaxem.fit(jaxem.Mixture(INFLATED, k=2), x, key=0, weights=weights, tol=1e-12)
    assert result.converged and result.n_parameters == 2
    params, tol = result.params, case["params_tolerance"]
    assert abs(float(result.log_likelihood) - case["log_likelihood"]) < case["tolerance"]
    assert abs(float(params.weights[0]) - case["params"]["zero"]) < tol
    assert abs(float(params.components["counts"].rate[0, 0]) - case["params"]["rate"]) < tol
    assert params.components["zero"] == ()


def test_a_hurdle_has_the_evidence_of_scipy_in_the_units_of_the_data():
    """Every part has its own units: a change of those of the data moves the evidence of the
    continuous parts alone."""
    x = hurdle_data()
    model = jaxem.Mixture(HURDLE, k=3)
    result = jaxem.fit(model, x, key=0, restarts=2)
    assert result.converged and result.n_parameters == 2 + 4
    p = jax.tree.map(np.asarray, result.params)
    joint = hurdle_density(p.components, x) + np.log(p.weights)
    expected = special.logsumexp(joint, axis=1)
    np.testing.assert_allclose(result.score_samples(x), expected, rtol=1e-11)
    np.testing.assert_allclose(result.log_likelihood, expected.sum(), rtol=1e-12)
    r = np.asarray(result.predict_proba(x))
    np.testing.assert_allclose(r, special.softmax(joint, axis=1), atol=1e-11)
    np.testing.assert_array_equal(np.asarray(result.predict(x)) == 0, x[:, 0] == 0)
    np.testing.assert_allclose(p.weights[0], (x == 0).mean(), rtol=1e-7)
    scaled = jaxem.fit(model, 100 * x, key=0, restarts=2)
    change = (x > 0).sum() * np.log(100)
    np.testing.assert_allclose(scaled.log_likelihood, result.log_likelihood - change, rtol=1e-7)

    draws = np.asarray(result.sample(1, 4000))
    assert draws.shape == (4000, 1) and abs((draws == 0).mean() - p.weights[0]) < 0.03
    known = np.where(np.arange(len(x)) < 20, np.asarray(result.predict(x)), -1)
    assert jaxem.fit(model, jaxem.Labelled(x, known), key=0).converged


def test_gradients_have_no_nan():
    """Of zeros the density does not depend on x nearby, and no part has arithmetic at 0."""
    x = hurdle_data(60)
    model = jaxem.Mixture(HURDLE, k=3)
    params = jaxem.fit(model, x, key=0).params

    @jax.jit
    def slopes(params, x):
        of_params = jax.grad(lambda p: model.log_prob(p, x).sum())(params)
        return of_params, jax.grad(lambda a: model.log_prob(params, a).sum())(x)

    of_params, of_x = slopes(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((of_params, of_x)))
    np.testing.assert_array_equal(of_x[x[:, 0] == 0], 0)


@pytest.mark.slow
def test_the_gradient_of_a_fit_by_the_scale_of_the_data():
    """∂/∂s of the log-likelihood of a fit to s·x is −1/s for every positive unit."""
    x = hurdle_data(60)
    model = jaxem.Mixture(HURDLE, k=3)
    slope = jax.jit(jax.grad(lambda s: jaxem.fit(model, s * x, key=0).log_likelihood))(1.0)
    np.testing.assert_allclose(slope, -(x > 0).sum(), rtol=1e-3)  # it has stopped by its tol


def test_poisson_beside_a_normal():
    """Units outside the support of a part, here fractions, belong to the other."""
    rng = np.random.default_rng(1)
    x = np.r_[rng.poisson(3, 80), rng.normal(30, 2, 80)][:, None].astype(float)
    bank = jaxem.Components({"n": (jaxem.Poisson(), 1), "size": (jaxem.Normal(), 1)})
    result = jaxem.fit(jaxem.Mixture(bank, k=2), x, key=0)
    assert result.converged
    np.testing.assert_array_equal(result.predict(x), np.repeat([0, 1], 80))
    p = result.params.components
    np.testing.assert_allclose(p["n"].rate[0, 0], x[:80].mean(), rtol=1e-4)
    np.testing.assert_allclose(p["size"].mean[0, 0], x[80:].mean(), rtol=1e-4)


def test_a_summary_has_the_params_of_every_component():
    rng = np.random.default_rng(2)
    x = np.r_[rng.normal(0, 1, (40, 2)), rng.normal(9, 1, (40, 2)), 40 + rng.gumbel(size=(40, 2))]
    parts = {"one": (jaxem.Normal("spherical"), 1), "two": (jaxem.Normal("tied"), 2)}
    result = jaxem.fit(jaxem.Mixture(jaxem.Components(parts), k=3), x, key=0)
    lines = [line.split() for line in [*result.summary().split("\n"), ""]]

    def table(title):
        start = lines.index(title.split()) + 2
        return np.array(lines[start : lines.index([], start)])

    p = result.params.components
    np.testing.assert_allclose(table("components.one.mean")[0].astype(float)[0], 0)
    found = table("components.two.mean").astype(float)
    np.testing.assert_array_equal(found[:, 0], [1, 2])  # the numbers of the components
    np.testing.assert_allclose(found[:, 1:], p["two"].mean, rtol=1e-5)
    shared = table("components.two.covariance, the same for components 1 to 2").astype(float)
    np.testing.assert_allclose(shared[:, 1:], p["two"].covariance, rtol=1e-5)
    assert "the same for all components" not in result.summary()
    single = lines[lines.index(["components.one.covariance"]) + 1]
    np.testing.assert_allclose(float(single[1]), p["one"].covariance[0], rtol=1e-5)


def test_states_of_a_chain_are_of_different_families():
    x = hurdle_data(120)
    result = jaxem.fit(jaxem.HMM(HURDLE, k=3), jaxem.Sequences([x[:70], x[70:]]), key=0)
    assert np.isfinite(result.log_likelihood)
    paths = np.concatenate(result.predict(jaxem.Sequences([x[:70], x[70:]])))
    np.testing.assert_array_equal(paths == 0, x[:, 0] == 0)


def test_what_components_cannot_be_is_said():
    x = hurdle_data(40)
    with pytest.raises(ValueError, match="k is 2, and Components has 3 components"):
        jaxem.fit(jaxem.Mixture(HURDLE, k=2), x, key=0)
    with pytest.raises(ValueError, match="1 value outside the model's support"):
        jaxem.fit(jaxem.Mixture(HURDLE, k=3), np.where(np.arange(40)[:, None] == 3, -1.0, x), key=0)
    with pytest.raises(TypeError, match="pair of a bank of rows and the number"):
        jaxem.Components({"zero": jaxem.PointMass(0.0)})
    with pytest.raises(ValueError, match="the count of part 'zero' must be an int of 1 or more"):
        jaxem.Components({"zero": (jaxem.PointMass(0.0), 0)})
    with pytest.raises(ValueError, match="value must be finite"):
        jaxem.PointMass(np.inf)
    assert (
        jaxem.Components({"zero": ZERO, "body": (jaxem.Gamma(), 1), "tail": (jaxem.LogNormal(), 1)})
        == HURDLE
    )
    assert "PointMass" in repr(HURDLE)
