"""Many fits at once: `Batch`, `vmap`, ragged, restarted, and next to bad neighbours."""

import pickle
import sys
import types
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close, lane, same_ends
from internals import as_blocks, as_data, lanes, padded_length, tuning

import jaxem

K, N, D = 2, 60, 2
TOL = 1e-6  # the default of fit
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
X1 = np.random.default_rng(0).normal(size=(6, 2))


def draw(b, n=N, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(K, size=(b, n, 1))
    return rng.normal(size=(b, n, D)) * rng.uniform(0.5, 2, (b, 1, D)) + 4 * group


def starts(x):
    """The same simple start for every data set, with a leading axis."""
    spread = x.std(1)
    mean = np.stack([x.mean(1) - spread, x.mean(1) + spread], axis=1)
    variance = spread[:, None, :, None] * spread[:, None, None, :] * np.eye(D)
    covariance = np.broadcast_to(variance, (len(x), K, D, D))
    weights = np.full((len(x), K), 1 / K)
    return jaxem.MixtureParams(weights, jaxem.NormalParams(mean, covariance))


@pytest.fixture(scope="module")
def fleet():
    """More data sets than lanes, so that lanes are refilled."""
    x = draw(150)
    assert jaxem.Lanes().width_for(150, K * N * D) < 150
    return x, jaxem.fit(MODEL, jaxem.Batch(x), init=starts(x))


@pytest.mark.parametrize("lanes", [1, 7, jaxem.Lanes(200, steps=1), jaxem.Lanes(steps=9)])
def test_the_lanes_do_not_matter(fleet, lanes):
    x, batch = fleet
    other = jaxem.fit(MODEL, jaxem.Batch(x[:20]), init=lane(starts(x), np.s_[:20]), lanes=lanes)
    same_ends(other, lane(batch, np.s_[:20]), N, TOL)


@pytest.mark.parametrize("sliced", [False, True])
def test_an_accelerator_has_fewer_lanes_for_the_last_fits(fleet, sliced, monkeypatch):
    x, batch = fleet
    monkeypatch.setattr(tuning, "platform", lambda: "gpu")
    if sliced:
        monkeypatch.setattr(tuning, "LAUNCH_SECONDS", 1.0)
    widths, run = [], lanes.run_lanes
    monkeypatch.setattr(
        lanes, "run_lanes", lambda *args, **o: widths.append(o["width"]) or run(*args, **o)
    )
    other = jaxem.fit(MODEL, jaxem.Batch(x), init=starts(x))
    assert widths == [64, 8]
    same_ends(other, batch, N, TOL)


def test_the_lanes_are_a_fraction_of_the_fits(monkeypatch):
    assert [jaxem.Lanes().width_for(n, 1000) for n in (8, 150, 1024, 10**6)] == [8, 16, 32, 64]
    assert jaxem.Lanes().width_for(1024, 10**9) == 4
    monkeypatch.setattr(tuning, "platform", lambda: "gpu")
    assert [jaxem.Lanes().width_for(n, 1000) for n in (8, 512, 4096, 10**6)] == [8, 128, 1024, 8192]
    assert jaxem.Lanes().width_for(4096, 20000 * 8 * 8) == 26


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "wide"])
def test_lanes_that_cannot_be(wrong):
    with pytest.raises((TypeError, ValueError), match=r"lanes must be"):
        jaxem.fit(MODEL, np.zeros((9, D)), key=0, lanes=wrong)
    with pytest.raises((TypeError, ValueError), match=r"steps must be"):
        jaxem.Lanes(steps=wrong)


def test_a_batch_is_a_loop_of_fits(fleet):
    x, batch = fleet
    assert batch.status.shape == batch.n_iter.shape == (150,)
    assert batch.params.components.covariance.shape == (150, K, D, D)
    init = starts(x)
    assert len(np.unique(batch.n_iter)) > 5
    places = [0, 1, 63, 64, 149]
    alone = [jaxem.fit(MODEL, x[i], init=lane(init, i)) for i in places]
    same_ends(lane(batch, np.array(places)), alone, N, TOL)
    scores = alone[3].score_samples(x[64])
    np.testing.assert_allclose(batch[64].score_samples(x[64]), scores, rtol=1e-5)


def test_vmap_is_a_batch(fleet):
    x, batch = fleet
    mapped = jax.jit(jax.vmap(lambda x, start: jaxem.fit(MODEL, x, init=start)))(x, starts(x))
    same_ends(mapped, batch, N, TOL)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_nested_vmap(axes):
    x, init = draw(4), starts(draw(4))

    def go(x, start):
        return jaxem.fit(MODEL, x, init=start, max_iter=20, tol=0).log_likelihood

    inner = {(0, None): (None, 0), (None, 0): (0, None), (0, 0): (0, 0)}[axes]
    if axes == (0, 0):
        fold = lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:])  # noqa: E731
        got = jax.vmap(jax.vmap(go))(fold(x), jax.tree.map(fold, init))
        wanted = [[go(x[2 * a + b], lane(init, 2 * a + b)) for b in (0, 1)] for a in (0, 1)]
    else:
        got = jax.vmap(jax.vmap(go, inner), axes)(x, init)
        wanted = [[go(x[i], lane(init, j)) for j in range(4)] for i in range(4)]
        wanted = wanted if axes == (0, None) else np.transpose(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_a_bad_neighbour_changes_no_bit(fleet):
    x, batch = fleet
    broken = x.copy()
    broken[:70] = np.nan  # every lane that starts, and some that wait
    broken[100, 3, 1] = np.inf
    with pytest.warns(jaxem.FitWarning, match=r"71 of 150 fits.*BAD_INPUT"):
        result = jaxem.fit(MODEL, jaxem.Batch(broken), init=starts(x))
    bad = np.isin(np.arange(150), [*range(70), 100])
    assert (result.status[bad] == jaxem.Status.BAD_INPUT).all()
    assert (result.status[~bad] == batch.status[~bad]).all()
    keep = np.flatnonzero(~bad)
    chex.assert_trees_all_equal(*(lane(r.params, keep) for r in (result, batch)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_ragged_data_sets_in_the_order_given():
    rng = np.random.default_rng(1)
    sets = [draw(1, n, seed)[0] for seed, n in enumerate(rng.integers(20, 200, 9))]
    init = [lane(starts(x[None]), 0) for x in sets]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *init)
    batch = jaxem.fit(MODEL, jaxem.Batch(sets), init=stacked)
    assert batch.log_likelihood.shape == (9,)
    for i in (0, 4, 8):
        alone = jaxem.fit(MODEL, sets[i], init=init[i])
        np.testing.assert_allclose(batch.log_likelihood[i], alone.log_likelihood, rtol=1e-10)
        close(lane(batch.params, i), alone.params, 1e-7)


def test_ragged_weights_and_lengths():
    sets = [draw(1, 30)[0], draw(1, 50, 1)[0]]
    weights = [np.arange(30) % 3.0, np.ones(50)]
    init = jax.tree.map(lambda *a: np.stack(a), *(lane(starts(x[None]), 0) for x in sets))
    batch = jaxem.fit(MODEL, jaxem.Batch(sets), init=init, weights=weights)
    alone = jaxem.fit(MODEL, sets[0], init=lane(init, 0), weights=weights[0])
    np.testing.assert_allclose(batch.log_likelihood[0], alone.log_likelihood, rtol=1e-10)
    assert [padded_length(n) for n in (1, 8, 9, 13, 1000)] == [8, 8, 12, 18, 1065]
    sets = [np.zeros((n, 1), np.float32) for n in (5, 9, 9, 20, 60, 61, 100, 300, 9)]
    with tuning.on_platform("gpu"):  # a program for every length: at most four
        blocks = as_blocks(jaxem.Batch(sets), None)
    assert [block.x.shape[1] for block in blocks] == [12, 62, 140, 300]
    assert [block.index.tolist() for block in blocks] == [[0, 1, 2, 8], [3, 4, 5], [6], [7]]


def test_restarts_of_a_batch_and_keys_by_place():
    x = draw(6)
    few = jaxem.fit(MODEL, jaxem.Batch(x[:4]), key=3, restarts=3)
    many = jaxem.fit(MODEL, jaxem.Batch(x), key=3, restarts=5)
    assert many.restarts.status.shape == (6, 5)
    close(few.restarts.log_likelihood, many.restarts.log_likelihood[:4, :3])
    sound = np.where(many.restarts.status == 1, many.restarts.objective, -np.inf)
    np.testing.assert_allclose(many.objective, sound.max(1), rtol=1e-14)


def test_restarts_share_the_data_and_end_apart():
    x = draw(1)[0]
    fits = jaxem.fit(MODEL, x, key=0, restarts=100).restarts
    alone = [jaxem.fit(MODEL, x, init=lane(fits.params, i)) for i in (0, 50, 99)]
    for i, fit in zip((0, 50, 99), alone, strict=True):
        assert fit.log_likelihood - fits.log_likelihood[i] < 1e-6 * len(x)
    assert len(np.unique(fits.n_iter)) > 1


def test_a_batch_of_lane():
    x = draw(1)
    batch = jaxem.fit(MODEL, jaxem.Batch(x), init=starts(x))
    alone = jaxem.fit(MODEL, x[0], init=lane(starts(x), 0))
    close(lane(batch.params, 0), alone.params)


def test_what_cannot_be_a_batch():
    with pytest.raises(ValueError, match=r"\(b, n, d\).*\(60, 2\)"):
        jaxem.fit(MODEL, jaxem.Batch(draw(1)[0]), key=0)
    with pytest.raises(ValueError, match=r"data\[1\].*width"):
        jaxem.fit(MODEL, jaxem.Batch([np.ones((5, 2)), np.ones((5, 3))]), key=0)
    with pytest.raises(TypeError, match="list of arrays"):
        jaxem.fit(MODEL, jaxem.Batch([]), key=0)
    with pytest.raises(ValueError, match=r"weights must have shape \(3, 60\)"):
        jaxem.fit(MODEL, jaxem.Batch(draw(3)), key=0, weights=np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        jaxem.fit(MODEL, jaxem.Batch(draw(3)), init=starts(draw(2)))
    batch = jaxem.fit(MODEL, jaxem.Batch(draw(3)), key=0, max_iter=1, tol=0)
    with pytest.raises(ValueError, match=r"x has 2 data sets and the batch 3 fits"):
        batch.predict(draw(2))
    with pytest.raises(ValueError, match=r"one data set of shape \(60, 2\).*result\[i\]"):
        batch.predict(draw(1)[0])
    with pytest.raises(ValueError, match=r"X has 1 features, but the model was fitted with 2"):
        batch.score_samples(draw(3)[..., :1])
    with pytest.raises(ValueError, match=r"data set 1: weights hold 60 negative"):
        batch.bic(draw(3), np.ones((3, 60)) * [[1], [-1], [1]])
    with pytest.raises(TypeError, match=r"result\[i\]\.sample"):
        batch.sample(0, 3)
    for ask in (len, iter, lambda one: one[0]):
        with pytest.raises(TypeError, match="one fit, not a batch"):
            ask(batch[0])
    with pytest.raises(IndexError):
        batch[3]


TREES = {
    "another structure": ([{"x": X1}, {"y": X1}], ValueError, r"data\[1\].*'y'.*data\[0\].*'x'"),
    "an array among trees": ([{"x": X1}, X1], ValueError, r"data\[1\] is an array"),
    "another width": ([{"x": X1}, {"x": X1[:, :1]}], ValueError, r"data\[1\]\['x'\].*width"),
    "unequal leaves": ([{"x": X1, "y": X1[:5]}], ValueError, r"Batch data\[0\]\['y'\]: 5"),
    "an axis short": ({"x": np.ones(3)}, ValueError, r"data\['x'\] has shape \(3,\).*\(b, n"),
    "stacked unequal": ({"x": X1, "y": X1.T}, ValueError, r"one leading size.*'y'\]: 2"),
    "units apart": ({"x": X1, "y": X1[:, :1]}, ValueError, r"data\['y'\] has 1 units.*'x'\] 2"),
    "strings": ([X1, ["a"]], TypeError, r"Batch data\[1\] has dtype"),
    "one Documents": (jaxem.Documents(np.eye(3)), TypeError, r"fit\(model, documents\)"),
    "a number": (3, TypeError, r"Batch takes.*got int"),
    "too few units": ([X1, X1[:1]], ValueError, r"Batch data\[1\] has 1 units"),
    "1-D": ([X1[:, 0], X1[:4, 0]], ValueError, r"data\[0\] of shape \(6,\).*x\[\.\.\., None\]"),
}


@pytest.mark.parametrize("case", TREES)
def test_errors_name_the_data_set_and_the_leaf(case):
    data, kind, match = TREES[case]
    with pytest.raises(kind, match=match):
        jaxem.fit(MODEL, jaxem.Batch(data), key=0)


def test_errors_name_the_weights_of_a_data_set():
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape \(4,\)"):
        jaxem.fit(MODEL, jaxem.Batch([X1, X1[:4]]), key=0, weights=[np.ones(6), np.ones(3)])


def lengths(values):
    return [len(v) for v in values]


def test_a_ragged_fleet_answers_as_each_fit():
    sets = [draw(1, n, n)[0] for n in (20, 31, 26)]
    weights = [np.arange(len(x)) % 3.0 for x in sets]
    fleet = jaxem.fit(MODEL, jaxem.Batch(sets), key=0)
    assert len(fleet) == 3 and [fit.data_shape for fit in fleet] == [(n, D) for n in (20, 31, 26)]
    assert "31 units" in str(fleet[1]) and "20 to 31 units each" in str(fleet)
    assert len(fleet[1:]) == 2 and fleet[1:][1].data_shape == (26, D)
    again = pickle.loads(pickle.dumps(fleet))
    assert again[2].data_shape == (26, D) and bool(fleet)
    broken = [x.copy() for x in sets]
    broken[1][3, 0], broken[2][4] = np.nan, 1e200
    for name in ("predict", "predict_proba", "score_samples"):
        answers = getattr(fleet, name)(broken)
        assert lengths(answers) == [20, 31, 26]
        for answer, fit, x in zip(answers, fleet, broken, strict=True):
            np.testing.assert_allclose(answer, getattr(fit, name)(x), rtol=1e-10)
    assert fleet.predict(broken)[1][3] == -1
    for name in ("bic", "aic", "icl", "entropy"):
        each = [getattr(f, name)(x, w) for f, x, w in zip(fleet, sets, weights, strict=True)]
        got = getattr(fleet, name)(jaxem.Batch(sets), weights)
        np.testing.assert_allclose(got, each, rtol=1e-10, err_msg=name)
        own = getattr(fleet, name)()
        np.testing.assert_allclose(getattr(fleet, name)(sets), own, rtol=1e-6)
        np.testing.assert_allclose(getattr(fleet[1:], name)(), own[1:], rtol=1e-6)
        np.testing.assert_allclose(getattr(list(fleet)[2], name)(), own[2], rtol=1e-6)
    traced = jax.jit(lambda x: fleet.score_samples([x, *sets[1:]]))(sets[0])
    np.testing.assert_allclose(traced[0], fleet[0].score_samples(sets[0]), rtol=1e-10)


def test_a_stacked_fleet_answers_stacked(fleet):
    x, batch = fleet
    for result in (batch[:6], jax.vmap(lambda x: jaxem.fit(MODEL, x, key=0, max_iter=2))(x[:6])):
        r, scores = result.predict_proba(x[:6]), result.score_samples(x[:6])
        assert r.shape == (6, N, K) and scores.shape == (6, N) and len(result) == 6
        assert result[5].data_shape == (N, D)
        np.testing.assert_allclose(scores[5], result[5].score_samples(x[5]), rtol=1e-10)
        np.testing.assert_array_equal(result.predict(x[:6]), r.argmax(-1))
        assert lengths(result.predict(list(x[:6]))) == [N] * 6
        np.testing.assert_allclose(result.bic(x[:6]), result.bic(), rtol=1e-9)


def test_many_data_sets_are_asked_in_parts(fleet, monkeypatch):
    x, batch = fleet
    whole = batch.score_samples(x[:, :7])
    monkeypatch.setattr(tuning, "PREDICTED", 40 * (7 * D + 13))
    np.testing.assert_allclose(batch.score_samples(x[:, :8])[:, :7], whole, rtol=1e-12)


def test_a_table_of_a_fleet(monkeypatch):
    batch = jaxem.fit(MODEL, jaxem.Batch(draw(3)), key=0, max_iter=1, tol=0)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas"):
        batch.to_dataframe()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    columns = batch.to_dataframe()
    assert list(columns) == ["status", "log_likelihood", "n_iter", "objective", "bic"]
    assert columns["status"] == ["MAX_ITER"] * 3 and columns["n_iter"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(columns["bic"], batch.bic())


def test_labelled_data_sets():
    sets = [draw(1, n, n)[0] for n in (20, 31)]
    data = [jaxem.Labelled(x, np.where(x[:, 0] > 3, 1, -1)) for x in sets]
    for batch, shape in (
        (data, None),
        (jax.tree.map(lambda a: np.stack([a] * 2), data[0]), (2, 20)),
    ):
        fleet = jaxem.fit(MODEL, jaxem.Batch(batch), key=0, max_iter=5, tol=0)
        one = fleet[1]
        x = data[1] if shape is None else data[0]
        alone = jaxem.fit(MODEL, x, init=one.params, max_iter=0)
        np.testing.assert_allclose(alone.log_likelihood, one.log_likelihood, rtol=1e-10)
        labels = fleet.predict(batch)
        assert (lengths(labels) == [20, 31]) if shape is None else (labels.shape == shape)
        np.testing.assert_array_equal(labels[1], one.predict(x))


class Ratings(jaxem.Model):
    """Ratings y ~ N(effects[item], 1): an integer leaf indexes the params."""

    def init(self, key, data, weights):
        return {"effects": jnp.zeros(3)}

    def posterior(self, params, data):
        items, y = data
        assert jnp.issubdtype(items.dtype, jnp.integer)
        away = y - params["effects"][items]
        return away, -0.5 * (away**2 + jnp.log(2 * jnp.pi))

    def statistics(self, params, data, q, weights):
        chosen = (data[0][:, None] == jnp.arange(3)) * weights[:, None]
        return chosen.sum(0), data[1] @ chosen

    def maximize(self, params, stats):
        return {"effects": stats[1] / jnp.maximum(stats[0], 1e-9)}


class Pair(NamedTuple):
    items: Any
    y: Any


def test_tuples_and_integers_that_index():
    """A tuple (items, y) is data; integers stay integers, alone and in batches, 1-D units too."""
    rng = np.random.default_rng(0)
    sets = [(rng.integers(3, size=n), rng.normal(size=n)) for n in (20, 31)]
    alone = jaxem.fit(Ratings(), sets[1], key=0)
    means = [sets[1][1][sets[1][0] == i].mean() for i in range(3)]
    np.testing.assert_allclose(alone.params["effects"], means, rtol=1e-10)
    fleet = jaxem.fit(Ratings(), jaxem.Batch(sets), key=0)
    np.testing.assert_allclose(fleet.params["effects"][1], means, rtol=1e-10)
    scores = fleet.score_samples(sets)
    assert lengths(scores) == [20, 31]
    np.testing.assert_allclose(scores[1].sum(), fleet.log_likelihood[1], rtol=1e-10)
    stacked = Pair(np.stack([sets[1][0]] * 2), np.stack([sets[1][1]] * 2))
    many = jaxem.fit(Ratings(), jaxem.Batch(stacked), key=0)
    np.testing.assert_allclose(many.params["effects"][0], means, rtol=1e-10)
    assert many.score_samples(stacked).shape == (2, 31) and many[0].data_shape == (31,)


def test_what_is_no_tuple_of_arrays():
    rows = tuple(map(tuple, X1))
    assert as_data(rows)[0].shape == (6, 2)
    assert as_data((1.0, 2.0))[0].shape == (2,)
    with pytest.raises(TypeError, match=r"got tuple: use np\.stack"):
        jaxem.fit(MODEL, (X1, X1[:, 0]), key=0)
    with pytest.raises(ValueError, match=r"data\[0\]: 6, data\[1\]: 5; .*jaxem\.Batch"):
        jaxem.fit(MODEL, (X1, X1[:5]), key=0)


class Mean(jaxem.Model):
    """The mean of units that are matrices, with unit variance."""

    def init(self, key, x, weights):
        return {"mean": jnp.zeros(x.shape[1:], x.dtype)}

    def posterior(self, params, x):
        return None, -0.5 * ((x - params["mean"]) ** 2).sum((1, 2))

    def statistics(self, params, x, q, weights):
        return weights.sum(), jnp.tensordot(weights, x, 1)

    def maximize(self, params, stats):
        return {"mean": stats[1] / stats[0]}


def test_units_that_are_matrices():
    x = np.random.default_rng(0).normal(size=(2, 9, 3, 2))
    for data in (x, [x[0], x[1, :7]]):
        fleet = jaxem.fit(Mean(), jaxem.Batch(data), key=0)
        np.testing.assert_allclose(fleet.params["mean"][1], data[1].mean(0), rtol=1e-10)
        assert fleet[1].data_shape == data[1].shape and len(fleet.score_samples(data)[1]) == len(
            data[1]
        )
