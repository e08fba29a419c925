"""Data that people have: large offsets, outliers, constant columns, light and heavy tails.

Every case once gave a wrong answer with the status CONVERGED, or a status that misled.
"""

import jax
import numpy as np
import pytest
from compare import quiet
from internals import information, lost_columns, tail_slope

import jaxem
from jaxem import Status

R = np.random.default_rng
SLOW = pytest.mark.slow
TIMES = np.r_[R(2).normal(0, 60, 300), R(2).normal(900, 60, 300), R(2).normal(3600, 60, 400)]
TIMES = TIMES[:, None]
EPOCH = 1.7e9
THREE = jaxem.Mixture(jaxem.Normal("spherical"), k=3)


def spreads(params):
    return np.sort(np.sqrt(np.ravel(params.components.covariance)))


def test_time_stamps_keep_their_digits():
    with jax.enable_x64(False):
        near = jaxem.fit(THREE, TIMES.astype("f4"), key=0, restarts=4)
        far = jaxem.fit(THREE, TIMES + EPOCH, key=0, restarts=4)
        assert far.converged and near.converged and not jax.config.jax_enable_x64
        assert far.params.components.mean.dtype == np.float64  # NumPy arrays, in the data's units
        np.testing.assert_allclose(spreads(far.params), spreads(near.params), rtol=1e-5)
        means = np.sort(far.params.components.mean, axis=0) - EPOCH
        expected = np.sort(near.params.components.mean, axis=0)
        np.testing.assert_allclose(means, expected, atol=1e-2)
        for name in ("score_samples", "predict_proba"):
            a = getattr(far, name)(TIMES[:9] + EPOCH)
            b = getattr(near, name)(TIMES[:9].astype("f4"))
            np.testing.assert_allclose(np.sort(a, -1), np.sort(b, -1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(far.bic(), near.bic(), rtol=1e-5)
        np.testing.assert_allclose(far.icl(), near.icl(), rtol=1e-5)
        inside = jax.jit(lambda tol: quiet(jaxem.fit, THREE, TIMES + EPOCH, key=0, tol=tol).status)
        assert inside(1e-6) in (
            Status.CONVERGED,
            Status.DEGENERATE,
        )  # the digits are lost, and said
        np.testing.assert_allclose(far.bic(TIMES + EPOCH), far.bic(), rtol=1e-9)
        draws = far.sample(0, 500) - EPOCH
        assert len(np.unique(draws)) == 500 and -400 < draws.min() < draws.max() < 4000
        whole = jaxem.fit(THREE, (TIMES + EPOCH).astype(np.int64), key=0, restarts=4)
        np.testing.assert_allclose(spreads(whole.params), spreads(near.params), rtol=1e-2)
        many = quiet(jaxem.fit, THREE, jaxem.Batch([TIMES + EPOCH, TIMES]), key=0, restarts=4)
        np.testing.assert_allclose(spreads(many[0].params), spreads(near.params), rtol=1e-5)


def test_digits_lost_before_the_fit_are_named():
    x = np.c_[R(0).normal(size=300), TIMES[:300, 0] + EPOCH]
    with jax.enable_x64(False):
        for data in (x.astype("f4"), jax.numpy.asarray(x.astype("f4"))):
            with pytest.warns(jaxem.FitWarning, match="column 1 .* has lost digits"):
                jaxem.fit(jaxem.Mixture(jaxem.Normal("diagonal"), 1), data, key=0)
        near, far = R(1).normal(size=(300, 2)).astype("f4"), x.astype("f4")
        for batch in (np.stack([near, far, far]), [near[:200], far, far]):
            with pytest.warns(jaxem.FitWarning, match=r"data\[1\] .* column 1 .* lost") as caught:
                jaxem.fit(jaxem.Mixture(jaxem.Normal("diagonal"), 1), jaxem.Batch(batch), key=0)
            assert sum("lost digits" in str(one.message) for one in caught) == 1
    assert lost_columns(x, 1e-3).tolist() == [1]
    assert not len(lost_columns(R(0).normal(3, 1, (300, 2)), 1e-3))


@pytest.mark.parametrize(
    "structure", ["diagonal", "tied", *(pytest.param(s, marks=SLOW) for s in ("full", "spherical"))]
)
def test_groups_far_apart_keep_their_spreads(structure):
    """Two groups of spread 1 at a distance of 1e6: float32 resolves them to 0.06."""
    x = np.r_[R(5).normal(0, 1, (150, 1)), R(6).normal(1e6, 1, (150, 1))].astype("f4")
    own = np.sort([x[:150].astype(float).std(), x[150:].astype(float).std()])
    result = jaxem.fit(jaxem.Mixture(jaxem.Normal(structure), 2), x, key=0)
    assert result.converged
    expected = np.sqrt(np.mean(own**2)) if structure == "tied" else own
    np.testing.assert_allclose(spreads(result.params), expected, rtol=2e-2)


@pytest.mark.parametrize(
    ("bank", "dtype"),
    [
        (jaxem.Normal(), np.float32),
        (jaxem.Normal("diagonal"), np.float64),
        (jaxem.StudentT(df=5.0), np.float32),
        pytest.param(jaxem.Normal("tied"), np.float32, marks=SLOW),
        pytest.param(jaxem.StudentT(), np.float64, marks=SLOW),
    ],
    ids=lambda value: str(value),
)
def test_a_constant_column_is_left_out(bank, dtype):
    x = (R(6).normal(0, 1, (300, 3)) + 6 * (np.arange(300) < 100)[:, None]).astype(dtype)
    x[:, 2] = 7
    model = jaxem.Mixture(bank, 2)
    with pytest.warns(jaxem.FitWarning, match="column 2 is the same in all 300 units"):
        result = jaxem.fit(model, x, key=0)
    plain = jaxem.fit(model, x[:, :2], key=0)
    assert result.converged and plain.converged
    c = result.params.components
    scale = np.asarray(c.covariance if hasattr(c, "covariance") else c.scale)
    assert np.allclose(scale[..., -1].ravel()[-1], 49)
    np.testing.assert_allclose(np.asarray(c.mean)[:, 2], 7, rtol=1e-6)
    score = np.asarray(result.score_samples(x), float).sum()
    assert np.isclose(score, result.log_likelihood, rtol=1e-5)
    if isinstance(bank, jaxem.Normal):  # the others depend on the number of features
        means = (np.sort(np.asarray(r.params.components.mean)[:, 0]) for r in (result, plain))
        np.testing.assert_allclose(*means, rtol=1e-3)


class Frame:
    """A stand-in for a data frame: an array with names of its columns."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def test_columns_without_a_variance_are_named():
    x = R(6).normal(0, 1, (300, 3))
    model = jaxem.Mixture(jaxem.Normal(), 2)
    x[:, 2] = 2 * x[:, 0] + 1
    with pytest.warns(jaxem.FitWarning, match="Columns 'a', 'c' are collinear"):
        assert jaxem.fit(model, Frame(x, ["a", "b", "c"]), key=0).status == Status.DEGENERATE
    x[:, 2] = 7
    with pytest.warns(jaxem.FitWarning, match="column 'c' is the same in all"):
        jaxem.fit(model, Frame(x, ["a", "b", "c"]), key=0)


def test_light_tails_reach_the_normal_limit(dtype):
    x = R(3).normal(size=(2000, 1)).astype(dtype)
    normal = jaxem.fit(jaxem.Mixture(jaxem.Normal(), 1), x, key=0)
    result = jaxem.fit(jaxem.Mixture(jaxem.StudentT(), 1), x, key=0)
    assert result.converged and result.n_iter <= 60
    assert result.log_likelihood > normal.log_likelihood - 2e-3
    assert result.params.components.df[0] > 1e4


def test_heavy_tails_have_their_optimum():
    """Student's t with 0.5 degrees of freedom, whose largest values are 1e11 spreads away."""
    x = R(4).normal(size=(1000, 1)) / np.sqrt(R(5).chisquare(0.5, (1000, 1)) / 0.5)
    model = jaxem.Mixture(jaxem.StudentT(), 1)
    exact = jaxem.fit(model, x, key=0, tol=1e-10)
    single = jaxem.fit(model, x.astype("f4"), key=0)
    assert exact.converged and single.converged
    np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(single.params.components.df, exact.params.components.df, rtol=1e-3)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("df", [1.0, 4.0, 50.0])
def test_the_information_of_the_degrees_of_freedom(d, df):
    """The closed form is that of the score, by simulation."""
    rng = R(d)
    distance = d * rng.f(d, df, 400_000)

    def log_density(tau, log_scale):
        v = distance * jax.numpy.exp(-log_scale)
        ln = jax.scipy.special.gammaln
        const = ln((1 / tau + d) / 2) - ln(1 / tau / 2) - d / 2 * jax.numpy.log(1 / tau)
        return const - d / 2 * log_scale - (1 / tau + d) / 2 * jax.numpy.log1p(v * tau)

    tau = 1 / df
    slope = jax.jvp(log_density, (tau, 0.0), (1.0, 0.0))[1]
    of_scale = jax.jvp(log_density, (tau, 0.0), (0.0, 1.0))[1]
    for expanded, score in ((False, slope), (True, slope - 2 / (1 + 2 * tau) * of_scale)):
        given = float(information(np.asarray(tau), d, expanded))
        assert 0.6 < given / np.var(score) < 1.7, (expanded, given, np.var(score))


@pytest.mark.parametrize("expanded", [False, True])
def test_the_slope_of_the_degrees_of_freedom(expanded):
    """By automatic differentiation, in double precision; and no NaN where squares overflow."""
    d, tau = 3, np.array([1e-4, 0.05, 0.4, 5.0])
    delta = np.geomspace(1e-3, 1e4, 30)[:, None] * np.ones(4)

    def log_tail(then, delta):
        grown = (1 + 2 * then) / (1 + 2 * tau) if expanded else 1.0
        own = -(1 / then + d) / 2 * jax.numpy.log1p(delta * grown * then)
        return own + (d / 2 * jax.numpy.log(1 + 2 * then) if expanded else 0.0)

    slope = lambda then: jax.jvp(lambda t: log_tail(t, delta), (then,), (jax.numpy.ones(4),))[1]  # noqa: E731
    value, bend = jax.jvp(slope, (jax.numpy.asarray(tau),), (jax.numpy.ones(4),))
    got = tail_slope(delta, tau, d, expanded)
    np.testing.assert_allclose(got[0], value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got[1], bend, rtol=1e-4, atol=1e-3)
    far = tail_slope(np.full((1, 4), 1e30, "f4"), tau.astype("f4"), d, expanded)
    assert all(np.isfinite(part).all() for part in far)


def outliers(seed):
    """A planted mixture with one to ten gross outliers, padded to 500 rows of weight 0."""
    rng = R(100 + seed)
    n, d, k = int(rng.choice([200, 300, 500])), 2, int(rng.integers(1, 4))
    x = 8 * rng.normal(size=(k, d))[rng.integers(0, k, n)] + rng.normal(size=(n, d))
    rows = rng.choice(n, int(rng.integers(1, 11)), replace=False)
    x[rows] = rng.normal(size=(len(rows), d)) * 10 ** rng.uniform(2, 6)
    return np.pad(x, ((0, 500 - n), (0, 0))).astype("f4"), (np.arange(500) < n).astype("f4"), k


@pytest.mark.parametrize(
    ("bank", "part"),
    [(jaxem.StudentT(df=4.0), 0.9), pytest.param(jaxem.Normal(), 0.5, marks=SLOW)],
    ids=["t", "normal"],
)
def test_starts_survive_outliers(bank, part):
    """Fits of a normal mixture may end with an outlier as a component, and then say so."""
    sound = 0
    for seed in range(30):
        x, weights, k = outliers(seed)
        model = jaxem.Mixture(bank, k)
        every = quiet(jaxem.fit, model, x, key=seed, weights=weights, restarts=4).restarts
        assert np.isin(every.status, [1, 2, Status.DEGENERATE]).all()
        sound += np.isin(every.status, [Status.CONVERGED, Status.MAX_ITER]).sum()
    assert sound >= part * 120
