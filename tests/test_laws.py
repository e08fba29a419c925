"""The laws of DESIGN that every model obeys: additivity, weights, free energy, monotonicity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import BANKS, MODELS, K, N, cast, usually

import jaxem


def close(a, b, tol=1e-9):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tol, atol=tol), a, b)


def rows(data, index):
    return jax.tree.map(lambda leaf: leaf[index], data)


@functools.cache
def start(name):
    """A model, its data, weights, and params off the optimum."""
    model, data = MODELS[name]
    weights = np.random.default_rng(1).uniform(0.2, 2.0, N)
    return model, data, weights, jax.jit(model.init)(jax.random.key(3), data, weights)


@pytest.fixture(params=usually(MODELS))
def case(request):
    return start(request.param)


@pytest.fixture(params=usually(name for name in MODELS if "tied" not in name))
def separate(request):
    """A case whose every leaf has a component axis."""
    return start(request.param)


def statistics(model, params, data, weights):
    q, _ = model.posterior(params, data)
    return model.statistics(params, data, q, weights)


def test_statistics_add_over_units(case):
    model, data, weights, params = case
    stats = jax.jit(statistics, static_argnums=0)
    whole = stats(model, params, data, weights)
    half = N // 2
    parts = [
        stats(model, params, rows(data, part), weights[part])
        for part in (slice(0, half), slice(half, N))
    ]
    close(whole, jax.tree.map(jnp.add, *parts))


def test_statistics_are_linear_in_weights(case):
    model, data, weights, params = case
    stats = jax.jit(statistics, static_argnums=0)
    other = np.random.default_rng(2).uniform(0.0, 1.0, N)
    mixed = stats(model, params, data, 2 * weights + 0.5 * other)
    one, two = stats(model, params, data, weights), stats(model, params, data, other)
    close(mixed, jax.tree.map(lambda a, b: 2 * a + 0.5 * b, one, two))


def test_weight_zero_is_absent_and_two_is_twice(case):
    model, data, _, params = case
    weights = np.ones(N)
    weights[0], weights[5], weights[6] = 0, 2, 2
    by_weight = statistics(model, params, data, weights)
    index = np.concatenate([np.arange(1, N), [5, 6]])
    by_rows = statistics(model, params, rows(data, index), np.ones(len(index)))
    close(by_weight, by_rows)


def test_one_step_climbs(case):
    model, data, weights, params = case
    step = jax.jit(lambda p: jaxem.EM().evaluate(model, p, data, weights))
    objective = -np.inf
    for _ in range(12):
        seen = step(params)
        assert seen.objective >= objective - 1e-12 * seen.magnitude
        params, objective = seen.proposal, seen.objective


def test_free_energy_is_the_evidence_at_the_posterior_and_less_elsewhere(case):
    model, data, weights, params = case
    q, evidence = model.posterior(params, data)
    best = (weights * evidence).sum()
    np.testing.assert_allclose(jaxem.free_energy(model, params, data, q, weights), best, rtol=1e-12)
    r = np.asarray(q.responsibilities)
    free = getattr(data, "labels", np.full(N, -1)) < 0
    for seed in range(5):
        other = np.random.default_rng(seed).dirichlet(np.ones(K), N)
        other = np.where(free[:, None], 0.9 * r + 0.1 * other, r)
        assert jaxem.free_energy(model, params, data, other, weights) < best


def test_fisher_identity(case):
    """∇ evidence = ∇ of the expected log joint at the posterior held fixed."""
    model, data, weights, params = case

    def evidence(p):
        return (weights * model.log_prob(p, data)).sum()

    q = model.posterior(params, data)[0].responsibilities
    here = q > 0

    def expected(p):
        joint = model.log_joint(p, data)
        return (weights[:, None] * jnp.where(here, q * jnp.where(here, joint, 0), 0)).sum()

    close(jax.jit(jax.grad(evidence))(params), jax.jit(jax.grad(expected))(params), 1e-7)


def test_components_permute(separate):
    model, data, weights, params = separate
    plain = jaxem.EM().evaluate(model, params, data, weights)
    order = np.array([2, 0, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order], params)
    if hasattr(data, "labels"):
        data = jaxem.Labelled(data.x, np.where(data.labels < 0, -1, np.argsort(order)[data.labels]))
    moved = jaxem.EM().evaluate(model, permuted, data, weights)
    close(plain.objective, moved.objective)
    close(jax.tree.map(lambda leaf: leaf[order], plain.proposal), moved.proposal)


@pytest.mark.filterwarnings("ignore:.*MAX_ITER.*:jaxem.FitWarning")  # one of them is that slow
@pytest.mark.parametrize("name", usually(BANKS))
def test_fit_in_both_precisions(name, dtype):
    """A whole fit from k-means++: sound, honest about its value, and the same in eager and jit."""
    model, data = MODELS[name]
    data = cast(data, dtype)
    result = jaxem.fit(model, data, key=0, restarts=3, tol=1e-4)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result.params))
    assert result.status in (jaxem.Status.CONVERGED, jaxem.Status.MAX_ITER)
    rtol = 5e-6 if dtype == np.float32 else 1e-11
    score = float(result.score_samples(data).sum())
    np.testing.assert_allclose(result.log_likelihood, score, rtol=rtol)
    np.testing.assert_allclose(
        result.objective, result.log_likelihood + model.log_prior(result.params), rtol=rtol
    )
    sound = result.restarts.status <= jaxem.Status.MAX_ITER
    assert result.objective == result.restarts.objective[sound].max()
    assert result.objective.dtype == dtype
