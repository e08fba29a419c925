"""`EM(accelerator="auto")`: plain EM where it is quick, SQUAREM where it is slow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import tuning

import jaxem

MODEL = jaxem.Mixture(jaxem.Normal(), k=3)
PLAIN, AUTO = jaxem.EM(accelerator=None), jaxem.EM(accelerator="auto")
RNG = np.random.default_rng(0)
SLOW = RNG.normal(size=(300, 2))
QUICK = np.concatenate([RNG.normal(size=(100, 2)) + 6 * i for i in range(3)])
OPTIONS = {"key": 3, "init": "random_rows"}


def ends(result):
    return (result.params, result.objective, result.n_iter, result.status)


def same(a, b):
    for one, other in zip(jax.tree.leaves(ends(a)), jax.tree.leaves(ends(b)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def slow():
    """(by plain EM, by "auto") of one slow climb."""
    return [jaxem.fit(MODEL, SLOW, method=method, **OPTIONS) for method in (PLAIN, AUTO)]


def test_a_slow_climb_takes_fewer_evaluations_to_the_same_end(slow):
    plain, auto = slow
    assert plain.converged and auto.converged
    assert 12 < auto.n_iter < 0.5 * plain.n_iter
    assert abs(auto.log_likelihood - plain.log_likelihood) < 1e-6 * len(SLOW)
    np.testing.assert_allclose(auto.score_samples(SLOW).sum(), auto.log_likelihood, rtol=1e-12)


def test_a_quick_climb_is_plain_em():
    plain, auto = (jaxem.fit(MODEL, QUICK, key=0, method=m) for m in (PLAIN, AUTO))
    assert auto.converged and auto.n_iter < 40
    same(plain, auto)


@pytest.mark.parametrize("options", [{"tol": 0, "max_iter": 60}, {"criterion": "change"}])
def test_comparisons_with_other_libraries_are_plain_em(options):
    same(*(jaxem.fit(MODEL, SLOW, method=m, **OPTIONS, **options) for m in (PLAIN, AUTO)))


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
def test_the_limit_counts_all_evaluations(slow):
    most = int(slow[1].n_iter) - 5
    stopped = jaxem.fit(MODEL, SLOW, method=AUTO, max_iter=most, **OPTIONS)
    assert stopped.status == jaxem.Status.MAX_ITER and stopped.n_iter == most


def test_fleets_restarts_and_traced_fits_are_the_single_ones(slow):
    auto = slow[1]
    fleet = jaxem.Batch(np.stack([SLOW, QUICK]))
    init = [jaxem.fit(MODEL, x, max_iter=0, tol=0, **OPTIONS).params for x in (SLOW, QUICK)]
    init = jax.tree.map(lambda *a: np.stack(a), *init)
    batch = jaxem.fit(MODEL, fleet, init=init, method=AUTO)
    same(batch[0], auto)
    quick = jaxem.fit(MODEL, QUICK, init=jax.tree.map(lambda a: a[1], init), method=AUTO)
    same(batch[1], quick)
    traced = jax.jit(lambda x: ends(jaxem.fit(MODEL, x, method=AUTO, **OPTIONS)))(SLOW)
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(ends(auto)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    many = jaxem.fit(MODEL, SLOW, method=AUTO, restarts=4, **OPTIONS)
    same(many.restarts[0] if hasattr(many.restarts, "__getitem__") else many, auto)


def test_slices_of_a_long_climb_change_nothing(slow, monkeypatch):
    monkeypatch.setattr(tuning, "STEP_SECONDS", 1e-4)
    same(jaxem.fit(MODEL, SLOW, method=AUTO, **OPTIONS), slow[1])
    fleet = jaxem.Batch(np.stack([SLOW, QUICK]))
    sliced = jaxem.fit(MODEL, fleet, method=AUTO, **OPTIONS)
    monkeypatch.undo()
    same(sliced, jaxem.fit(MODEL, fleet, method=AUTO, **OPTIONS))


def test_the_gradient_is_that_of_the_optimum():
    def share(x, method, **options):
        r = jaxem.fit(MODEL, x, method=method, **OPTIONS, **options)
        return r.params.weights[0], r.gradient_ok

    slopes = [
        jax.jit(jax.grad(lambda x, m=method: share(x, m, tol=1e-10, max_iter=20_000), has_aux=True))
        for method in (PLAIN, AUTO)
    ]
    (plain, _), (auto, ok) = (slope(jnp.asarray(SLOW)) for slope in slopes)
    assert ok
    np.testing.assert_allclose(auto, plain, rtol=1e-3, atol=1e-4 * abs(plain).max())


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize("rule", [jaxem.Tempered(), jaxem.Stochastic()])
def test_rules_that_change_stay_plain(rule):
    method = jaxem.EM(e_step=rule, accelerator="auto")
    assert method.later is None
    methods = method, jaxem.EM(rule, accelerator=None)
    same(*(jaxem.fit(MODEL, QUICK, key=0, method=m, max_iter=30) for m in methods))


def test_topics_stay_plain():
    counts = RNG.poisson(1.0, size=(20, 12))
    model = jaxem.LDA(2)
    same(*(jaxem.fit(model, jaxem.Documents(counts), key=0, method=m) for m in (PLAIN, AUTO)))


def test_other_names_are_refused():
    with pytest.raises(TypeError, match='accelerator must be "auto", None'):
        jaxem.EM(accelerator="fast")


class Undeclared:
    """Two normals of variance 1 with shares, means and a count of M-steps, and no `spaces`."""

    def init(self, key, x, weights):
        shares, means = jnp.array([0.5, 0.5], x.dtype), jnp.array([-0.1, 0.3], x.dtype)
        return {"shares": shares, "means": means, "steps": jnp.zeros((), jnp.int32)}

    def log_joint(self, params, x):
        return jnp.log(params["shares"]) - 0.5 * jnp.square(x - params["means"])

    def statistics(self, params, x, q, weights):
        r = q * weights[:, None]
        return r.sum(0), (r * x).sum(0), 0 * params["steps"] * weights.sum()

    def maximize(self, params, stats):
        count, total, _ = stats
        steps = params["steps"] + 1
        return {"shares": count / count.sum(), "means": total / count, "steps": steps}


@pytest.mark.parametrize("accelerator", ["auto", jaxem.SQUAREM()])
def test_params_with_unstated_relations_are_never_those_of_an_extrapolation(accelerator):
    """In float32 extrapolated shares do not sum to 1, which raises the log-likelihood; integers
    are no coordinates of an extrapolation."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1)) + np.where(np.arange(400) % 3 == 0, 1.5, 0)[:, None]
    fast = jaxem.fit(
        Undeclared(), x.astype(np.float32), key=0, method=jaxem.EM(accelerator=accelerator)
    )
    exact = jaxem.fit(Undeclared(), x, key=0, method=jaxem.EM(accelerator=None), tol=1e-10)
    assert fast.converged and exact.converged and fast.n_iter < exact.n_iter / 3
    assert abs(fast.params["shares"].sum() - 1) < 1e-6
    assert abs(fast.log_likelihood - exact.log_likelihood) < 1e-6 * len(x)
    assert 0 < fast.params["steps"] <= fast.n_iter
