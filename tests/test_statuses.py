"""How a fit ends: faulty models, failed restarts and lanes, and what a result then answers."""

import copy
import dataclasses
import pickle
import re
import threading
import warnings

import jax
import numpy as np
import pytest
from compare import equal, with_value

import jaxem
from jaxem import Status

N, K = 40, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)) + np.repeat([[0.0, 0.0], [6.0, 6.0]], N // 2, axis=0)
COUNTS = RNG.poisson(3, (N, 2)).astype(float)
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), K)


def fit(x=X, model=MODEL, key=0, **options):
    return jaxem.fit(model, x, key=key, **options)


@dataclasses.dataclass(frozen=True)
class Own(jaxem.Model):
    """Two unit-variance normal components in the first feature, with a fault of choice."""

    fault: str = ""

    def init(self, key, x, weights):
        return {"mean": x[:2, 0]}

    def log_joint(self, params, x):
        joint = -0.5 * (x[:, :1] - params["mean"]) ** 2
        return joint[:, 0] if self.fault == "joint" else joint

    def posterior(self, params, x):
        q, evidence = super().posterior(params, x)
        return q, {"column": evidence[:, None], "sum": evidence.sum()}.get(self.fault, evidence)

    def log_prior(self, params):
        return params["mean"] * 0 if self.fault == "prior" else 0.0

    def statistics(self, params, x, q, weights):
        r = q * weights[:, None]
        return r.sum(0), (r * x[:, :1]).sum(0)

    def maximize(self, params, stats):
        mean = stats[1] / stats[0]
        if self.fault == "tree":
            return {"mu": mean}
        if self.fault == "worse":
            return {"mean": params["mean"] + 1}
        return {"mean": {"shape": mean[:1], "dtype": mean.astype("f4")}.get(self.fault, mean)}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("tree", r"Own.maximize must return params like dict.*\['mean'\] \(2,\).*\['mu'\]"),
        ("shape", r"Own.maximize returned params\['mean'\] with shape \(1,\).*\(2,\)"),
        ("dtype", r"params\['mean'\].*float32.*keep.*float64"),
        ("joint", r"Own.log_joint must return shape \(n, k\) with n = \d+, got \(\d+,\)"),
        ("column", r"Own.posterior must return evidence of shape \(\d+,\).*got \(\d+, 1\)"),
        ("sum", r"Own.posterior must return evidence of shape \(\d+,\).*got \(\)"),
        ("prior", r"Own.log_prior must return a scalar, got shape \(2,\)"),
    ],
)
def test_a_user_model_that_returns_the_wrong_thing(fault, words):
    model = Own(fault)
    drivers = {
        "eager": lambda: fit(model=model),
        "traced": lambda: jax.jit(lambda x: fit(x, model).status)(X),
        "vmap": lambda: jax.vmap(lambda x: fit(x, model).status)(np.stack([X, X])),
        "restarts": lambda: fit(model=model, restarts=3),
        "screened": lambda: fit(model=model, restarts=jaxem.Restarts(3, 2)),
        "batch": lambda: fit(jaxem.Batch(np.stack([X, X])), model),
        "unrolled": lambda: fit(model=model, gradient="unrolled", max_iter=2),
        "long": lambda: fit(np.repeat(X, 500, 0), model, max_iter=2**31 - 1),
        "SQUAREM": lambda: fit(model=model, method=jaxem.EM(accelerator=jaxem.SQUAREM())),
        "Anderson": lambda: fit(model=model, method=jaxem.EM(accelerator=jaxem.Anderson())),
        "online": lambda: fit(model=model, method=jaxem.OnlineEM(batch=20)),
        "incremental": lambda: fit(model=model, method=jaxem.EM(jaxem.Incremental(2))),
    }
    for name, call in drivers.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert re.search(words, str(raised.value)), (name, raised.value)


def test_a_user_model_whose_m_step_is_wrong():
    assert fit(model=Own()).converged
    with pytest.warns(jaxem.FitWarning, match="DECREASED.*M-step.*best iterate was kept"):
        result = fit(model=Own("worse"))
    assert result.status == Status.DECREASED and not result.converged
    assert np.isclose(result.objective, np.sum(Own().log_prob(result.params, X)))
    assert result.objective >= np.sum(Own().log_prob(Own().init(None, X, None), X))
    assert jax.jit(lambda x: fit(x, Own("worse")).status)(X) == Status.DECREASED
    with pytest.raises(jaxem.FitError, match="DECREASED"):
        result.raise_if_failed()


def test_an_impossible_unit_is_named():
    model = jaxem.Mixture(jaxem.Categorical(3), K)
    x = with_value(COUNTS % 2, 2)
    start = model.init(jax.random.key(0), COUNTS % 2, np.ones(N))
    with pytest.warns(jaxem.FitWarning, match=r"NONFINITE.*1 have probability zero.*index 7\)"):
        result = fit(x, model, init=start)
    assert result.status == Status.NONFINITE
    assert not np.isnan(result.log_likelihood) and equal(result.params, start)


def test_all_that_failed_is_told_in_one_warning():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = fit(np.ones((N, 2)), restarts=4)
    assert len(seen) == 1 and "the best of 4 restarts did not converge" in str(seen[0].message)
    assert (result.restarts.status == Status.DEGENERATE).all() and not result.converged
    assert fit().raise_if_failed().converged


@pytest.mark.parametrize(
    ("family", "x", "value"),
    [
        (jaxem.Poisson(), COUNTS, 1.5),
        (jaxem.Categorical(3), COUNTS % 3, 3),
        (jaxem.Gamma(), COUNTS + 1, 0),
    ],
)
def test_a_bad_lane_leaves_the_others_alone(family, x, value):
    model = jaxem.Mixture(family, K)
    lanes = jax.jit(jax.vmap(lambda x, w: fit(x, model, weights=w)))
    data, ones = np.stack([x] * 4), np.ones((4, N))
    bad, weights = data.copy(), ones.copy()
    bad[1, 7, 1], weights[2, 3], weights[3] = value, -1, 0
    good, seen = lanes(data, ones), lanes(bad, weights)
    kinds = [Status.BAD_INPUT, Status.BAD_INPUT, Status.EMPTY]
    assert seen.status[1:].tolist() == kinds and not (good.status == Status.BAD_INPUT).any()
    first = [jax.tree.map(lambda a: a[0], r) for r in (good, seen)]
    assert equal(*first)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(seen))


def test_nan_under_weight_0_is_the_same_as_zero():
    w = with_value(np.ones(N), 0, 7)
    hidden = [fit(with_value(X, v), weights=w) for v in (np.nan, 0.0)]
    assert equal(hidden[0], hidden[1]) and hidden[0].converged


def test_equal_fields_are_not_equal_types():
    """A fit of one family must not be answered by the program compiled for another."""
    empty = [jaxem.Poisson(), jaxem.Gamma(), jaxem.Bernoulli()]
    filled = [jaxem.PoissonParams(1.0), jaxem.ExponentialParams(1.0), jaxem.BernoulliParams(1.0)]
    for a, b, c in (empty, filled):
        trees = [jax.tree.structure(jaxem.MixtureParams(1.0, p)) for p in (a, b, c)]
        assert len({*trees}) == 3 and trees[0] != trees[1] and trees[1] != trees[2]


def test_copies_threads_and_modes_give_the_same_result():
    plain = fit()
    for clone in (pickle.loads(pickle.dumps(plain)), copy.deepcopy(plain)):
        assert equal(clone, plain) and np.array_equal(clone.predict(X), plain.predict(X))
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: fit()})) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert equal(results[0], plain) and equal(results[1], plain)
    with jax.debug_nans(True):
        assert equal(fit(), plain)
    with jax.disable_jit():
        slow = fit(max_iter=2, tol=0)
    assert np.isclose(slow.log_likelihood, fit(max_iter=2, tol=0).log_likelihood)


def test_data_that_are_constants_of_a_jitted_function():
    assert jax.jit(lambda: fit().gradient_ok)() and jax.jit(lambda: fit().bic())() == fit().bic()

    def onward(result, _):
        return fit(init=result.params), None

    chained = jax.jit(lambda: jax.lax.scan(onward, fit(init=fit().params), length=2)[0])()
    assert chained.status == Status.CONVERGED


def test_200_fits_hold_no_memory():
    fit()
    before = len(jax.live_arrays())
    for _ in range(200):
        fit()
    assert len(jax.live_arrays()) <= before


def test_questions_to_a_result():
    result = fit()
    with pytest.raises(ValueError, match=r"X has 1 features, but .* fitted with 2 features"):
        result.predict(X[:, :1])
    with pytest.raises(ValueError, match=r"x\[:, None\]"):
        result.score_samples(X[:, 0])
    with pytest.raises(TypeError, match=r"n must be an int of 1 or more, got 2\.5"):
        result.sample(0, 2.5)
    holed = result.predict(with_value(X, np.nan))
    assert holed[7] == -1 and np.array_equal(np.delete(holed, 7), np.delete(result.predict(X), 7))
    w = with_value(np.ones(N), 0, 7)
    for question in (result.bic, result.icl):
        assert question(with_value(X, np.nan), w) == question(with_value(X, 0), w)
