"""Many fits at once: `Batch`, `vmap`, ragged, restarted, and next to bad neighbours."""

import chex
import jax
import numpy as np
import pytest
from compare import close, lane, same_ends
from internals import padded_length

import jaxem

K, N, D = 2, 60, 2
TOL = 1e-6  # the default of fit
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)


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
    with pytest.raises(TypeError, match=r"result\[i\]"):
        batch.predict(draw(3))
    with pytest.raises(TypeError, match="not a batch"):
        batch[0][0]
