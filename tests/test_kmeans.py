"""k-means as the limit of hard EM: Lloyd's algorithm, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import Centres, Clusters
from oracles import PUBLISHED, published
from sklearn.cluster import KMeans

import jaxem


def blobs():
    rng = np.random.default_rng(4)
    return rng.normal(size=(300, 3)) + 2.0 * rng.integers(4, size=(300, 1)) + 100.0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_step_by_step_as_scikit_learn():
    x = np.random.default_rng(4).normal(size=(300, 3)) + 100.0  # without groups, so that it is slow
    start = x[np.random.default_rng(0).choice(len(x), 5, replace=False)]
    updates = jax.jit(
        lambda m: (
            jaxem.fit(
                Centres(5),
                x,
                init=start,
                method=jaxem.EM(e_step=jaxem.Hard()),
                tol=0,
                max_iter=m,
            ).params
        )
    )
    moved = [start]
    for m in range(1, 13):
        peer = KMeans(5, init=start, n_init=1, algorithm="lloyd", max_iter=m, tol=0).fit(x)
        ours = updates(m)
        np.testing.assert_allclose(ours, peer.cluster_centers_, rtol=0, atol=1e-9)
        moved.append(np.asarray(ours))
    assert np.abs(moved[8] - moved[7]).max() > 1e-3  # it still moved


def test_the_end_is_that_of_scikit_learn():
    x = blobs()
    start = x[np.random.default_rng(1).choice(len(x), 6, replace=False)]
    weights = np.random.default_rng(2).integers(1, 4, len(x)).astype(float)
    peer = KMeans(6, init=start, n_init=1, algorithm="lloyd", max_iter=300, tol=0)
    peer = peer.fit(x, sample_weight=weights)
    ours = jaxem.kmeans(x, 6, init=start, weights=weights)
    assert ours.converged
    np.testing.assert_allclose(ours.centres, peer.cluster_centers_, atol=1e-9)
    np.testing.assert_allclose(ours.sum_of_squares, peer.inertia_, rtol=1e-10)
    assert (np.asarray(ours.labels) == peer.labels_).all()
    assert (np.asarray(ours.predict(x[:9])) == peer.labels_[:9]).all()
    assert (np.asarray(ours.predict(x[:9].tolist())) == peer.labels_[:9]).all()
    far = np.array([[1e250, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]])
    nearest = np.asarray(ours.centres)[:, 0].argmax()  # along the first axis
    assert np.asarray(ours.predict(far)).tolist() == [nearest, -1, -1]
    for wrong, error, words in (
        (x[:, :1], ValueError, "X has 1 features, but the centres have 3"),
        (x[:, 0], ValueError, r"kmeans takes data of shape \(n, d\).*x\[:, None\]"),
        ("abc", TypeError, "data must be an array of numbers, got 'abc'"),
    ):
        with pytest.raises(error, match=words):
            ours.predict(wrong)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_iris_as_published(k):
    case = published("kmeans-iris")
    x = np.genfromtxt(
        PUBLISHED / case["data"], delimiter=",", names=True, dtype=None, encoding=None
    )
    names = [name.replace(".", "") for name in case["columns"]]
    x = np.stack([x[name] for name in names], axis=1)
    ours = jaxem.kmeans(x, k, key=0, restarts=100)
    assert abs(float(ours.sum_of_squares) - case["sum_of_squares"][k - 2]) < case["tolerance"]
    one = jaxem.kmeans(x, k, key=5)
    assert one.sum_of_squares >= ours.sum_of_squares - 1e-9


def test_under_vmap_and_in_float32():
    x = np.stack([blobs(), blobs()[::-1] * 2])
    many = jax.vmap(lambda a, key: jaxem.kmeans(a, 4, key=key).sum_of_squares)(
        x, jax.random.split(jax.random.key(0), 2)
    )
    alone = jaxem.kmeans(x[0], 4, key=jax.random.split(jax.random.key(0), 2)[0])
    np.testing.assert_allclose(many[0], alone.sum_of_squares, rtol=1e-10)
    low = jaxem.kmeans(x[0].astype(np.float32), 4, init=np.asarray(alone.centres))
    np.testing.assert_allclose(low.sum_of_squares, alone.sum_of_squares, rtol=1e-5)
    assert low.centres.dtype == jnp.float32 and low.converged
    with pytest.raises(ValueError, match="k must be an int"):
        jaxem.kmeans(x[0], 0, key=0)


def test_float32_goes_on_until_no_label_moves():
    """One far unit: the constants of F outweigh the gains of a step, and do not stop it."""
    x = np.r_[np.random.default_rng(1).normal(0, 1, (300, 2)), [[3000, 3000]]].astype(np.float32)
    start = x[[0, 1, 2, 3, 300]]
    peer = KMeans(5, init=start.astype(float), n_init=1, tol=0).fit(x.astype(float))
    ours = jaxem.kmeans(x, 5, init=start)
    assert ours.converged and ours.n_iter > 3
    np.testing.assert_allclose(ours.sum_of_squares, peer.inertia_, rtol=1e-4)
    tight = (np.repeat(np.arange(5.0), 60)[:, None] + 1e-6 * x[:300]).astype(np.float32)
    ours = jaxem.kmeans(tight, 5, init=tight[::60])
    np.testing.assert_array_equal(ours.labels, np.repeat(np.arange(5), 60))


def test_scales_at_the_ends_of_float32():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 1, (30, 2)), rng.normal(9, 1, (31, 2))].astype(np.float32)
    start, wanted = x[[0, 60]], np.repeat([0, 1], [30, 31])
    squares = jaxem.kmeans(x, 2, init=start).sum_of_squares
    for scale in np.float32([1e-25, 7e19]):
        ours = jaxem.kmeans(x * scale, 2, init=start * scale)
        assert ours.converged
        np.testing.assert_array_equal(ours.labels, wanted)
        np.testing.assert_array_equal(ours.predict(x * scale), wanted)
        np.testing.assert_allclose(ours.sum_of_squares / float(scale) ** 2, squares, rtol=1e-5)
    far = np.float32([[-1e20, 0], [3e3, 1e4], [np.nan, 0]])
    np.testing.assert_array_equal(jaxem.kmeans(x, 2, init=start).predict(far), [0, 1, -1])


def test_a_centre_without_units_moves_or_is_named():
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    start = np.array([[0, 0], [100, 100], [200, 200]])
    ours = jaxem.kmeans(x, 3, init=start)
    assert ours.converged and (np.bincount(ours.labels) > 5).all()
    with pytest.warns(jaxem.FitWarning, match=r"1 of 3 centres.*counted from 0: 2\).*use k=2"):
        ours = jaxem.kmeans(np.repeat(x[:2], 30, 0), 3, init=np.r_[x[:2], [[9, 9]]])
    assert ours.converged and ours.sum_of_squares < 1e-9


def test_saved_and_read(tmp_path):
    ours = Clusters(np.eye(2), np.array([0, 1]), np.float64(2.5), np.int32(3), np.int32(1))
    ours.save(tmp_path / "clusters.npz")
    again = jaxem.load(tmp_path / "clusters.npz")
    assert again.converged and again.sum_of_squares == 2.5
    np.testing.assert_array_equal(again.predict([[9.0, 0], [0, 9]]), [0, 1])
    (tmp_path / "clusters.npz").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="damaged"):
        jaxem.load(tmp_path / "clusters.npz")


def test_predict_checks_its_data():
    ours = Clusters(np.zeros((2, 3)), None, 0.0, 0, 1)
    with pytest.raises(ValueError, match="X has 2 features, but the centres have 3"):
        ours.predict(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"shape \(n, d\), got shape \(3,\)"):
        ours.predict(np.zeros(3))
