"""What a result can be asked, printed and saved."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import BANKS, MODELS, REAL, K

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
    loaded = jaxem.load(path, model=model)
    np.testing.assert_array_equal(loaded.predict(data), result.predict(data))


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "pickle", "structure"])
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
