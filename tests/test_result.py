"""What a result can be asked, printed and saved."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import BANKS, COUNTS, MODELS, REAL, K

import jaxem

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def result():
    return jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=K), REAL, key=0, restarts=4)


def test_criteria_follow_their_formulas(result):
    n, p = len(REAL), K * (3 + 6) + K - 1
    score = float(result.log_likelihood)
    r = np.asarray(result.predict_proba(REAL))
    entropy = -(r * np.log(np.where(r > 0, r, 1))).sum()
    assert result.n_parameters == p
    np.testing.assert_allclose(result.bic(REAL), -2 * score + p * np.log(n), rtol=1e-10)
    np.testing.assert_allclose(result.aic(REAL), -2 * score + 2 * p, rtol=1e-10)
    np.testing.assert_allclose(result.entropy(REAL), entropy, rtol=1e-8)
    np.testing.assert_allclose(result.icl(REAL), result.bic(REAL) + 2 * entropy, rtol=1e-10)
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-12)
    assert (np.asarray(result.predict(REAL)) == r.argmax(1)).all()


def test_print_is_three_lines(result):
    lines = str(result).splitlines()
    assert len(lines) == 3
    assert "Mixture" in lines[0] and "40 units" in lines[0]
    assert "CONVERGED" in lines[1] and f"{float(result.log_likelihood):.6g}" in lines[1]
    assert "restarts" in lines[2]
    prior = jaxem.NormalPrior(np.zeros(3), 0.01, 5.0, np.ones(3))
    model = jaxem.Mixture(jaxem.Normal(prior=prior), k=2)
    parts = result, result.restarts, result.data_shape, result.gradient_ok
    assert "mean=float64[3], kappa=0.01" in str(jaxem.Result.of(model, *parts))


def test_a_result_is_a_pytree(result):
    again = jax.jit(lambda r: r)(result)
    assert isinstance(again, jaxem.Result)
    assert again.model == result.model
    np.testing.assert_allclose(again.score_samples(REAL), result.score_samples(REAL))


def test_sample(result):
    draws = result.sample(0, 500)
    assert draws.shape == (500, 3)
    low, high = REAL.min(0) - 15, REAL.max(0) + 15
    assert ((draws > low) & (draws < high)).all()


@pytest.mark.parametrize("name", [n for n in BANKS if not n.startswith("each")])
def test_save_and_load(name, tmp_path):
    model, data = MODELS[name]
    result = jaxem.fit(model, data, key=0, max_iter=3, tol=0)
    path = tmp_path / "fit.npz"
    result.save(path)
    loaded = jaxem.load(path)
    assert repr(loaded) == repr(result)
    chex.assert_trees_all_equal(loaded.params, result.params)
    assert jax.tree.structure(loaded.restarts) == jax.tree.structure(result.restarts)
    np.testing.assert_array_equal(loaded.score_samples(data), result.score_samples(data))
    np.testing.assert_array_equal(loaded.predict(data), result.predict(data))


def test_a_users_model_is_given_at_loading(tmp_path):
    model, data = MODELS["each"]
    result = jaxem.fit(model, data, key=0, max_iter=3, tol=0)
    path = tmp_path / "fit.npz"
    result.save(path)
    with pytest.raises(ValueError, match="model="):
        jaxem.load(path)
    for wrong, words in (
        (3, "int is no model"),
        (jaxem.Mixture, "class"),
        (jaxem.Normal(), "bank"),
    ):
        with pytest.raises(TypeError, match=words):
            jaxem.load(path, model=wrong)
    loaded = jaxem.load(path, model=model)
    np.testing.assert_array_equal(loaded.predict(data), result.predict(data))


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "pickle", "structure", "depth"])
def test_a_damaged_file_is_refused(result, tmp_path, damage):
    path = tmp_path / "fit.npz"
    result.save(path)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
    elif damage == "text":
        content = b"weights,mean\n1,2\n"
    path.write_bytes(bytes(content))
    if damage == "pickle":
        with path.open("wb") as file:
            np.savez(file, structure=np.array([{1: 2}], dtype=object))
    elif damage == "depth":
        with path.open("wb") as file:
            np.savez(file, structure=np.array('{"list":[' * 10**5 + "1" + "]}" * 10**5))
    elif damage == "structure":
        with path.open("wb") as file:
            np.savez(file, structure=np.array(json.dumps({"format": 1, "params": {"type": "fit"}})))
    with pytest.raises(ValueError, match="damaged or not a jaxem result"):
        jaxem.load(path)
    assert not path.with_suffix(".tmp").exists()


def test_params_of_a_foreign_type_cannot_be_saved(tmp_path):
    fit = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), k=1), np.ones((4, 1)), key=0, tol=0, max_iter=1)
    with pytest.raises(ValueError, match="cannot save"):
        dataclasses.replace(fit, params=object()).save(tmp_path / "fit.npz")


def test_free_energy_needs_a_joint():
    with pytest.raises(NotImplementedError, match="log_joint"):
        jaxem.free_energy(jaxem.Model(), {}, REAL, jnp.ones((len(REAL), 2)) / 2)


SUPPORTS = ["normal-full", "student", "poisson", "bernoulli", "categorical", "multinomial"]
SUPPORTS += ["exponential", "gamma", "product", "bayes-poisson"]


@pytest.mark.parametrize("name", SUPPORTS)
def test_predictions_outside_the_support(name):
    model, data = MODELS.get(name) or (
        jaxem.BayesianMixture(jaxem.Poisson(jaxem.GammaPrior(1.0, 1.0)), k=K),
        COUNTS,
    )
    result = jaxem.fit(model, data, key=0, max_iter=3, tol=0)
    x = np.array(data[:4])
    x[0, -1], x[1, -1] = (np.inf if data is REAL else -3), np.nan
    scores, r = result.score_samples(x), result.predict_proba(x)
    assert scores[0] == -np.inf and np.isnan(scores[1]) and np.isfinite(scores[2:]).all()
    assert np.isnan(r[:2]).all()
    np.testing.assert_allclose(r[2:].sum(1), 1, rtol=1e-12)
    assert (result.predict(x)[:2] == -1).all() and (result.predict(x)[2:] >= 0).all()
    traced = jax.jit(lambda x: (result.score_samples(x), result.predict_proba(x)))(x)
    np.testing.assert_allclose(traced[0], scores, rtol=1e-10)  # two programs
    np.testing.assert_allclose(traced[1], r, rtol=1e-10)
    weights = np.array([0.0, 0, 1, 2])
    assert np.isfinite(result.entropy(x, weights))
    if name == "bayes-poisson":
        scores = model.log_predictive(result.params, x)
    else:
        scores = model.log_prob(result.params, x)
    if data is not REAL:  # the density itself, without a result
        assert scores[0] == -np.inf and np.isnan(scores[1]) and np.isfinite(scores[2:]).all()


@pytest.mark.parametrize("name", ["normal-full", "student", "multinomial"])
def test_far_units_have_probabilities(name):
    model, data = MODELS[name]
    result = jaxem.fit(model, data.astype("f4"), key=0, max_iter=3, tol=0)
    far = np.array([[1e20, 0, 0], [0, 1e38, 0], [1e30, 1e30, 1e30]], "f4")
    r = np.asarray(result.predict_proba(far))
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-6)
    assert (result.predict(far) == r.argmax(1)).all()
    if name == "normal-full":  # the smallest quadratic form decides
        precision = np.linalg.inv(np.asarray(result.params.components.covariance, float))
        distance = np.einsum("nd,kde,ne->nk", far / 1e20, precision, far / 1e20)
        assert (distance.argmin(1) == r.argmax(1)).all()


def test_criteria_of_the_fit_itself():
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=2)
    w = np.arange(len(REAL)) % 4.0
    weighted = jaxem.fit(model, REAL, key=0, weights=w)
    names = ("bic", "aic", "icl", "entropy")
    for name in names:
        ask = getattr(weighted, name)
        np.testing.assert_allclose(ask(), ask(REAL, w), rtol=1e-6, err_msg=name)
    assert weighted.total_weight == w.sum()
    assert not np.isclose(weighted.bic(), weighted.bic(REAL))  # without weights each row counts 1
    sets, weights = [REAL, REAL[:25]], [w, w[:25] + 1]
    batch = jaxem.fit(model, jaxem.Batch(sets), key=0, weights=weights)
    for name in names:
        each = [
            getattr(batch[i], name)(x, v)
            for i, (x, v) in enumerate(zip(sets, weights, strict=True))
        ]
        np.testing.assert_allclose(getattr(batch, name)(), each, rtol=1e-5, err_msg=name)
    assert batch.n_parameters == batch[0].n_parameters == weighted.n_parameters
    lanes = jax.vmap(lambda w: jaxem.fit(model, REAL, key=0, weights=w).bic())(np.stack([w, w + 1]))
    np.testing.assert_allclose(lanes[0], weighted.bic(), rtol=1e-9)
    with pytest.raises(TypeError, match="weights belong to data"):
        weighted.bic(weights=w)


class Factor(jaxem.Model):
    """One normal factor and unit noise: z is a number, not a class."""

    def init(self, key, x, weights):
        return {"mean": weights @ x / weights.sum()}

    def posterior(self, params, x):
        away = x - params["mean"]
        d = x.shape[1]
        mean = away.sum(1, keepdims=True) / (d + 1)
        square = (away**2).sum(1) - away.sum(1) ** 2 / (d + 1)
        return mean, -0.5 * (d * jnp.log(2 * jnp.pi) + jnp.log(d + 1.0) + square)

    def statistics(self, params, x, q, weights):
        return weights.sum(), weights @ (x - q)

    def maximize(self, params, stats):
        return {"mean": stats[1] / stats[0]}


class FactorMoments(Factor):
    """The same with a pair as its q."""

    def posterior(self, params, x):
        mean, evidence = super().posterior(params, x)
        return (mean, jnp.ones_like(mean)), evidence

    def statistics(self, params, x, q, weights):
        return super().statistics(params, x, q[0], weights)


def test_a_model_without_classes_has_none_to_predict():
    for model in (Factor(), FactorMoments()):
        fitted = jaxem.fit(model, REAL, key=0)
        for name in ("predict", "predict_proba", "entropy", "icl"):
            with pytest.raises(TypeError, match=r"Factor\w* has no classes.*score_samples"):
                getattr(fitted, name)(REAL)
        with pytest.raises(TypeError, match=r"Factor\w* has no classes"):
            fitted.entropy()
        np.testing.assert_allclose(fitted.bic(), fitted.bic(REAL), rtol=1e-12)
        traced = jax.jit(lambda x, fitted=fitted: fitted.predict_proba(x))
        if type(model) is Factor:
            assert np.isnan(traced(REAL)).all()
        else:
            with pytest.raises(TypeError, match="no classes"):
                traced(REAL)
