"""Restricted models: what is held stays, what is free is at its optimum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import coordinates, expectation, outward, responsibilities_of, standardized, suited
from jax.flatten_util import ravel_pytree
from zoo import COUNTS, MODELS, REAL, K

import jaxem

TIE = [("components.mean[0]", "components.mean[2]")]
PAIR = [("components[0]", "components[2]")]
SHAPE = np.full(3, 2.0)
CASES = {
    "weights fixed": ("normal-full", {"weights": [0.5, 0.3, 0.2]}, ()),
    "one weight fixed": ("poisson", {"weights[1]": 0.5}, ()),
    "weights tied": ("weights-map", {}, [("weights[0]", "weights[1]")]),
    "mean": ("normal-full", {"components.mean[1]": [3.0, -3.0, 1.5]}, ()),
    "mean of tied": ("normal-tied", {"components.mean[1]": [3.0, -3.0, 1.5]}, ()),
    "means equal of tied": ("normal-tied", {}, TIE),
    "feature": ("normal-diagonal", {"components.mean[:, 1]": -1.0}, ()),
    "feature, spherical": ("normal-spherical", {"components.mean[:2, 1]": [-1.0, 0.0]}, ()),
    "covariance": ("normal-full-map", {"components.covariance[0]": 2 * np.eye(3)}, ()),
    "one covariance": ("normal-full", {}, ["components.covariance"]),
    "one variance": ("normal-spherical", {}, "components.covariance"),
    "one mean and covariance": ("normal-diagonal", {}, [*TIE, "components.covariance"]),
    "equal components": ("normal-full-map", {}, PAIR),
    "component": ("normal-spherical", {"components[2]": jaxem.NormalParams([6, -6, 3], 1.0)}, ()),
    "rates": ("poisson-map", {}, [("components.rate[0]", "components.rate[1]")]),
    "columns": ("poisson", {"components.rate[0, 0]": 2.0}, ["components.rate[2]"]),
    "waiting": ("exponential", {}, [("components.rate[0, 1]", "components.rate[2, 1]")]),
    "answers": ("bernoulli-map", {"components.probs[0, 0]": 0.9}, "components.probs[:, 2]"),
    "codes": ("categorical", {"components.probs[0, :, 1]": 0.25}, "components.probs[1:, 2]"),
    "shares": ("multinomial", {"components.probs[0]": [0.2, 0.5, 0.3]}, ()),
    "gamma": ("gamma-map", {"components.shape": SHAPE}, ()),
    "product": (
        "product",
        {"components.size.mean": 0.0},
        [("components.count.rate[0]", "components.count.rate[1]")],
    ),
}


def restricted(case):
    name, fixed, tied = CASES[case]
    model, x = MODELS[name]
    return jaxem.Restricted(model, fixed, tied), x


SELDOM = ("mean of tied", "feature, spherical", "columns", "waiting", "shares", "product")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SELDOM)) for c in CASES]
)
def test_the_closed_form_is_the_conditional_maximum(case):
    """The gradient of the expected log joint by what is free vanishes after the M-step."""
    model, x = restricted(case)
    model.domain.check(x, type(model).__name__)
    assert model.closed(x)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, len(x)))
    view = standardized(model, jnp.asarray(x), weights)

    def slopes():
        before = view.model.init(jax.random.key(3), view.data, weights)
        q, _ = view.model.posterior(before, view.data)
        stats = view.model.statistics(before, view.data, q, weights)
        after = view.model.maximize(before, stats)

        def value(free, v):
            there = free.params(v)
            per_unit = expectation(responsibilities_of(q), view.model.log_joint(there, view.data))
            return weights @ per_unit + view.model.log_prior(there)

        found = [coordinates(view.model, p) for p in (before, after)]
        return after, *[jax.value_and_grad(value, 1)(c, c.origin) for c in found]

    after, (low, steep), (high, flat) = jax.tree.map(np.asarray, jax.jit(slopes)())
    assert float(high) > float(low)
    assert np.abs(steep).max() > 1e-2
    assert np.abs(flat).max() < 1e-7 * np.sum(weights)
    free = model.model.n_parameters(after) - model.n_parameters(after)
    assert 0 < free < ravel_pytree(after)[0].size


def test_moments_about_a_held_mean_and_rates_of_tied_components():
    x = np.random.default_rng(0).normal(size=(50, 2)) + 1e4
    held = jaxem.Restricted(jaxem.Mixture(jaxem.Normal(), k=1), {"components.mean": [1e4, 1e4 + 1]})
    r = jaxem.fit(held, x, key=0)
    away = x - [1e4, 1e4 + 1]
    assert np.allclose(r.params.components.covariance[0], away.T @ away / 50, rtol=1e-9)
    assert r.n_parameters == 3 and r.converged

    labels = np.arange(len(COUNTS)) % K
    model = jaxem.Mixture(jaxem.Poisson(), k=K)
    model = jaxem.Restricted(model, tied=[("components.rate[0]", "components.rate[1]")])
    r = jaxem.fit(model, jaxem.Labelled(COUNTS, labels), key=0)
    rates = np.asarray(r.params.components.rate)
    assert np.allclose(rates[0], COUNTS[labels < 2].mean(0)) and (rates[0] == rates[1]).all()
    assert np.allclose(rates[2], COUNTS[labels == 2].mean(0))
    assert r.n_parameters == 2 + 2 * COUNTS.shape[1]


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(np.float32, marks=pytest.mark.slow), np.float64],
    ids=["float32", "float64"],
)
def test_fixed_values_come_back_bit_for_bit(dtype):
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(60, 2)) + 3 * rng.integers(2, size=(60, 1)) + 1e3).astype(dtype)
    mean, cov = np.array([1000.1, 1000.7]), np.array([[1.3, 0.2], [0.2, 0.9]])
    model = jaxem.Mixture(jaxem.Normal(), k=2)
    fixed = {"components.mean[0]": mean, "components.covariance[1]": cov, "weights": [0.4, 0.6]}
    model = jaxem.Restricted(model, fixed)
    fit = functools.partial(jaxem.fit, model, key=0, restarts=3)
    one, many = fit(x), fit(jaxem.Batch(np.stack([x, x[::-1]])))
    mapped = jax.jit(jax.vmap(lambda x: fit(x)))(np.stack([x, x[::-1]]))
    assert one.converged and many.converged.all()
    start = fit(x, max_iter=0, tol=0)
    for p in (
        one.params,
        start.params,
        many[0].params,
        jax.tree.map(lambda a: a[1], mapped.params),
    ):
        assert p.components.mean.dtype == dtype
        assert (np.asarray(p.components.mean[0]) == mean.astype(dtype)).all()
        assert (np.asarray(p.components.covariance[1]) == cov.astype(dtype)).all()
        assert (np.asarray(p.weights) == np.array([0.4, 0.6], dtype)).all()
    for r in (many, mapped):
        assert np.allclose(r.log_likelihood[0], one.log_likelihood, rtol=1e-6)
        # Batches give their data sets keys of their own, so that starts differ.
    assert one.n_parameters == 2 + 3 and one.bic(x) < 1e6


def test_frozen_params_keep_their_start_and_ties_hold():
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=K)
    start = jaxem.fit(model, REAL, key=1, max_iter=0, tol=0).params
    frozen = jaxem.Restricted(model, "components.mean", tied="components.covariance")
    r = jaxem.fit(frozen, REAL, init=start)
    assert np.allclose(r.params.components.mean, start.components.mean, rtol=1e-14)
    cov = np.asarray(r.params.components.covariance)
    assert (cov == cov[:1]).all() and r.n_parameters == 2 + 3
    assert r.log_likelihood < jaxem.fit(model, REAL, init=start).log_likelihood
    rows = jaxem.select(REAL, {"free": model, "one": frozen}, key=0, restarts=2).table
    assert rows[1].n_parameters == 5 and rows[0].n_parameters == 2 + 18


def test_saved_and_loaded(tmp_path):
    model = jaxem.Restricted(
        jaxem.Mixture(jaxem.Poisson(), k=2), {"weights[0]": 0.25}, "components"
    )
    r = jaxem.fit(model, COUNTS, key=0)
    r.save(tmp_path / "fit.npz")
    again = jaxem.load(tmp_path / "fit.npz")
    assert again.n_parameters == r.n_parameters == 3
    assert again.model == r.model and hash(again.model) == hash(r.model)
    assert np.allclose(again.score_samples(COUNTS), r.score_samples(COUNTS))


GRADIENT = {
    "means equal": ("normal-diagonal", {}, "components.mean"),
    "part of a mean": ("normal-full", {"components.mean[0, 0]": 0.0}, ()),
    "rate of a gamma": ("gamma", {"components.rate[0]": 1.0}, ()),
    "part of a row": ("categorical-map", {"components.probs[0, 0, 0]": 0.5}, ()),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c == "part of a mean")) for c in GRADIENT]
)
def test_without_a_closed_form_gradients_climb(case):
    name, fixed, tied = GRADIENT[case]
    inner, x = MODELS[name]
    model = jaxem.Restricted(inner, fixed, tied)
    closed = case == "part of a row"
    assert model.closed(x) == closed
    method = suited(jaxem.EM(), model, x)
    assert method.plain == closed
    weights = jnp.ones(len(x))
    view = standardized(model, jnp.asarray(x), weights)
    params = jax.jit(lambda: view.model.init(jax.random.key(2), view.data, weights))()

    def body(carry, _):
        seen = method.evaluate(view.model, carry[0], view.data, weights, carry[1])
        return (seen.proposal, seen.memory), (seen.objective, seen.noise)

    start = (params, method.start(view.model, params, view.data, weights))
    (last, _), (objective, noise) = jax.jit(lambda: jax.lax.scan(body, start, None, length=25))()
    assert (np.diff(objective) >= -noise[1:]).all() and objective[-1] > objective[0] + 0.1
    user = outward(model, view.units, last)
    plan = model._plan(user)
    flat = np.asarray(ravel_pytree(user)[0])
    assert (flat[plan.given] == np.asarray(model._given(plan, flat.dtype))[plan.given]).all()
    assert (flat == flat[plan.group]).all()


@pytest.mark.parametrize("accelerator", [jaxem.SQUAREM(), jaxem.Anderson()], ids=["sq", "anderson"])
def test_accelerated_to_the_same_optimum(accelerator):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 2)) + 1.5 * rng.integers(2, size=(300, 1)) + 50
    model = jaxem.Mixture(jaxem.Normal(), k=2)
    model = jaxem.Restricted(model, {"weights": [0.5, 0.5]}, "components.covariance")
    start = jaxem.fit(model, x, key=3, max_iter=0, tol=0).params
    fit = functools.partial(jaxem.fit, model, x, init=start, tol=1e-8, max_iter=20_000)
    plain, fast = (fit(method=jaxem.EM(accelerator=a)) for a in (None, accelerator))
    assert plain.converged and fast.converged and fast.n_iter < plain.n_iter / 2
    assert abs(float(fast.log_likelihood - plain.log_likelihood)) < 1e-7 * len(x)
    assert (np.asarray(fast.params.weights) == 0.5).all()
    cov = np.asarray(fast.params.components.covariance)
    assert (cov[0] == cov[1]).all()


def test_the_gradient_by_a_fixed_value():
    """The free mean's derivative by the held one, and the objective's, by finite differences."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(80, 1)) + 4 * rng.integers(2, size=(80, 1))
    inner = jaxem.Mixture(jaxem.Normal("spherical"), k=2)
    start = jaxem.fit(inner, x, init=jaxem.Labels((x[:, 0] > 2).astype(int))).params

    def found(value):
        model = jaxem.Restricted(inner, {"components.mean[0]": value}, "components.covariance")
        r = jaxem.fit(model, x, init=start, tol=1e-12)
        return r.params.components.mean[1, 0], r.objective, r.params.components.mean[0, 0]

    slopes = jax.jacrev(lambda v: jnp.stack(found(v)))(0.3)
    low, high = (np.array(found(v), float) for v in (0.3 - 1e-4, 0.3 + 1e-4))
    assert np.allclose(slopes, (high - low) / 2e-4, rtol=1e-4) and abs(slopes[0]) > 1e-3
    assert slopes[2] == 1


@pytest.mark.slow
def test_a_student_with_known_means_and_many_rows():
    x = MODELS["student"].data
    model = jaxem.Mixture(jaxem.StudentT(df=5.0), k=2)
    held = jaxem.Restricted(model, {"components.mean": [[0, 0, 0], [5, -5, 2.0]]})
    assert held.closed(x)
    r = jaxem.fit(held, x, key=0, tol=1e-12)

    def value(scale):
        components = dataclasses.replace(r.params.components, scale=scale)
        return model.log_prob(dataclasses.replace(r.params, components=components), x).sum()

    slope = jax.grad(value)(r.params.components.scale)
    assert r.converged and jnp.abs(slope).max() < 1e-3
    rows = np.random.default_rng(0).normal(size=(2**18, 2)) + np.array([0, 3])
    model = jaxem.Restricted(
        jaxem.Mixture(jaxem.Normal("diagonal"), k=2), {"components.mean[0]": 1.0}
    )
    r = jaxem.fit(model, rows, key=0, max_iter=3, tol=0)
    assert (np.asarray(r.params.components.mean[0]) == 1.0).all()
    assert np.isclose(r.log_likelihood, model.log_prob(r.params, rows).sum(), rtol=1e-9)


WRONG = {
    "names no entry": ("normal-full", {"means": 0.0}, ()),
    "is no path": ("normal-full", {"weights]": 0.0}, ()),
    "must broadcast": ("normal-full", {"components.mean": [1.0, 2.0]}, ()),
    "sum to 1": ("poisson", {"weights": [0.5, 0.5, 0.5]}, ()),
    r"finite and in \[0": ("poisson", {"components.rate": -1.0}, ()),
    "both fixed and tied": ("poisson", {"weights[0]": 0.2}, "weights"),
    "not a part": ("normal-full", {"components.covariance[0, 0, 0]": 1.0}, ()),
    "positive definite": ("normal-full", {"components.covariance": -np.eye(3)}, ()),
    "another column": ("normal-full", {}, "components.mean[0]"),
    "same shapes": ("normal-full", {}, [("components.mean[0]", "weights[0]")]),
    "another path fixes": ("poisson", {"weights": [0.2, 0.3, 0.5], "weights[0]": 0.2}, ()),
    "arrays, one a leaf": ("normal-full", {"components[0]": 0.0}, ()),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_held_is_named(what):
    name, fixed, tied = WRONG[what]
    model, x = MODELS[name]
    with pytest.raises(ValueError, match=what):
        jaxem.fit(jaxem.Restricted(model, fixed, tied), x, key=0)


def test_restrictions_of_no_model_and_without_a_closed_form_are_refused_where_it_is_needed():
    with pytest.raises(TypeError, match="an instance"):
        jaxem.Restricted(jaxem.Mixture)
    inner, x = MODELS["normal-diagonal"]
    equal = jaxem.Restricted(inner, tied="components.mean")
    with pytest.raises(TypeError, match="needs the exact M-step"):
        jaxem.fit(equal, x, key=0, method=jaxem.EM(e_step=jaxem.Incremental()))
    params = equal.init(jax.random.key(0), jnp.asarray(x), jnp.ones(len(x)))
    with pytest.raises(TypeError, match="no M-step in closed form"):
        equal.maximize(params, None)


COUNTED = [
    ("bernoulli", "components.probs[0]", (), K * 3 + K - 1 - 3),
    ("categorical", "components.probs[0, 0]", (), K * 3 * 2 + K - 1 - 2),
    ("categorical", "components.probs[0, 0, 0]", (), K * 3 * 2 + K - 1 - 1),
    ("normal-full", "components.covariance[1]", (), K * 9 + K - 1 - 6),
    ("normal-full", None, "components.covariance", K * 3 + 6 + K - 1),
    ("normal-full", "weights[0]", (), K * 9 + K - 2),
]


def test_a_restriction_of_a_restriction_is_one():
    one = jaxem.Restricted(jaxem.Mixture(jaxem.Poisson(), k=3), {"weights": [0.2, 0.3, 0.5]})
    two = jaxem.Restricted(one, ["weights", "components.rate[0]"], "components.rate[1:]")
    assert isinstance(two.model, jaxem.Mixture) and two.fixed["weights"][0][2] == 0.5
    assert two.tied == ("components.rate[1:]",) and two.fixed["components.rate[0]"] is None


def test_free_parameters_are_counted():
    for name, fixed, tied, many in COUNTED:
        model, x = MODELS[name]
        model = jaxem.Restricted(model, fixed, tied)
        params = jax.jit(model.init)(jax.random.key(0), x, np.ones(len(x)))
        assert model.n_parameters(params) == many, (name, fixed, tied)


@pytest.mark.parametrize(
    ("bank", "name", "value"),
    [
        (jaxem.Poisson(), "rate", 4.0),
        (jaxem.Exponential(), "rate", 0.8),
        (jaxem.Normal("spherical"), "mean", 4.0),
    ],
    ids=["poisson", "exponential", "normal"],
)
def test_the_slope_by_a_fixed_value(bank, name, value):
    """In families with and without units of their own."""
    rng, mean = np.random.default_rng(0), np.repeat([2.0, 12.0], 60)[:, None]
    x = rng.exponential(mean) if value < 1 else rng.poisson(mean) + 1.0

    def score(value):
        fixed = {f"components.{name}[0]": value}
        model = jaxem.Restricted(jaxem.Mixture(bank, k=2), fixed=fixed)
        return jaxem.fit(model, x, key=0, tol=1e-13, max_iter=20_000).objective

    at, step = jnp.asarray(value), 1e-4
    difference = (score(at + step) - score(at - step)) / (2 * step)
    assert abs(difference) > 0.1
    np.testing.assert_allclose(jax.grad(score)(at), difference, rtol=1e-5)
