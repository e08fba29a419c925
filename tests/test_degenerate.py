"""Degenerate data, offsets and scales in both precisions: finite params, and a status that says so.

All Normal cases share one shape; the scales are powers of two, so that data are scaled exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import quiet
from zoo import alternating

import jaxem
from jaxem import Status

N, K = 60, 2
RNG = np.random.default_rng(3)
HALF = N // 2
MIXED = np.concatenate([RNG.normal(size=(HALF, 2)), 0.8 * RNG.normal(size=(HALF, 2)) + 6])
SOUND = np.round(8 * MIXED) / 8  # so that an offset of 1e6 is exact in float32
STRUCTURES = ("full", "tied", "diagonal", "spherical")
ROWS = RNG.normal(size=(3, 2))

# name: (data, the structures in which they are a collapse; the others are merely checked)
DEGENERATE = {
    "zeros": (np.zeros((N, 2)), STRUCTURES),
    "identical rows": (np.full((N, 2), 1.7), STRUCTURES),
    "identical far rows": (np.full((N, 2), 1.7e8), STRUCTURES),
    "k distinct rows": (np.repeat(ROWS[:2], HALF, 0), STRUCTURES),
    "k + 1 distinct rows": (np.repeat(ROWS, N // 3, 0), ("full",)),
    "one duplicated": (
        np.concatenate([np.repeat(ROWS[:1], HALF, 0), SOUND[HALF:]]),
        ("full", "diagonal", "spherical"),
    ),
    "a constant column": (np.c_[SOUND[:, 0], np.full(N, 3.3)], ()),
    "a column of zeros": (np.c_[SOUND[:, 0], np.zeros(N)], ()),
    "collinear": (np.c_[SOUND[:, 0], 2 * SOUND[:, 0] + 1], ("full", "tied")),
    "one far": (np.r_[SOUND[:-1], [[1e6, 1e6]]], ()),  # no start has a component of its own
    "one very far": (np.r_[SOUND[:-1], [[1e30, -1e30]]], ()),
    "near the end of float32": (np.r_[SOUND[:-1], [[3e38, -3e38]]], ()),
    "subnormal": (SOUND * 1e-39, ()),
    "an offset that swallows the data": (SOUND + 1e17, STRUCTURES),
}


def fit(x, model, **options):
    return quiet(jaxem.fit, model, x, key=0, **options)


@functools.cache
def sound_fit(structure, dtype):
    return fit(SOUND.astype(dtype), jaxem.Mixture(jaxem.Normal(structure), K), restarts=3)


def matrices(covariance, structure, d):
    """The covariance of every component as a matrix (k, d, d) in float64."""
    c = np.asarray(covariance, float)
    if structure == "spherical":
        c = np.repeat(c[:, None], d, axis=1)
    return c if c.ndim == 3 else c[None] if structure == "tied" else c[:, :, None] * np.eye(d)


def assert_honest(result, x, atol=1e-3):
    """No NaN anywhere; and next to CONVERGED everything is finite and of use."""
    for leaf in jax.tree.leaves((result.params, result.restarts.params)):
        assert np.isfinite(leaf).all()
    for one in (result, result.restarts):
        assert not np.isnan(one.log_likelihood).any() and not np.isnan(one.objective).any()
        sound = np.asarray(one.status) == Status.CONVERGED
        assert np.isfinite(np.asarray(one.objective)[sound]).all()
    assert np.allclose(np.sum(result.params.weights), 1, atol=1e-5)
    if result.status == Status.CONVERGED:
        r = result.predict_proba(x)
        assert np.allclose(np.sum(r, axis=1), 1, atol=1e-5)
        score = np.sum(np.asarray(result.score_samples(x), float))
        assert np.isclose(score, result.log_likelihood, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("structure", "dtype"), alternating(STRUCTURES, 0))
def test_collapse_is_flagged(structure, dtype):
    model = jaxem.Mixture(jaxem.Normal(structure), K)
    eps = np.finfo(dtype).eps
    assert sound_fit(structure, dtype).converged  # the control: not everything is flagged
    for name, (data, collapses) in DEGENERATE.items():
        x = data.astype(dtype)
        result = fit(x, model, restarts=3)
        assert_honest(result, x)
        if structure in collapses:
            assert (result.restarts.status == Status.DEGENERATE).all(), name
        if result.converged:
            c = matrices(result.params.components.covariance, structure, 2)
            own = np.sqrt(np.diagonal(c, axis1=1, axis2=2))
            low, high = np.percentile(data, (25, 75), axis=0)
            assert (own / (high - low + (high == low))).min() > eps, name
            assert np.linalg.eigvalsh(c / own[:, :, None] / own[:, None]).min() > 16 * eps, name


FEW = [(1, 1, 2), (2, 2, 2), (3, 2, 2), (8, 2, 10)]
PAIRS = [(structure, *FEW[(i + j) % 4]) for i, structure in enumerate(STRUCTURES) for j in (0, 1)]


@pytest.mark.parametrize(
    ("structure", "n", "k", "d", "dtype"),
    alternating(pytest.param(*case) for case in [*PAIRS, ("full", 8, 2, 10)]),
)
def test_few_units(structure, n, k, d, dtype):
    x = np.random.default_rng(n).normal(size=(n, d)).astype(dtype)
    result = fit(x, jaxem.Mixture(jaxem.Normal(structure), k), restarts=2 if n > k else 1)
    assert_honest(result, x)
    enough = n == 8 and structure in ("diagonal", "spherical")
    assert result.status == Status.DEGENERATE or enough


UNITS = {  # offset, scale of the columns; exact in both precisions
    "offset 1e6": (2.0**20, 1.0),
    "offset 1e8": (1e8, 64.0),
    "scale 1e10": (0.0, 2.0**33),
    "scale 1e-10": (0.0, 2.0**-33),
    "scale 1e20": (0.0, 2.0**66),
    "scale 1e-20": (0.0, 2.0**-66),
    "mixed scales": (0.0, np.array([2.0**-20, 2.0**20])),
    "a far small cloud": (-(2.0**20), np.array([1.0, 2.0**30])),
}


@pytest.mark.parametrize(("structure", "dtype"), alternating(STRUCTURES, 1))
def test_units_do_not_matter(structure, dtype):
    eps = float(np.finfo(dtype).eps)
    model, plain = jaxem.Mixture(jaxem.Normal(structure), K), sound_fit(structure, dtype)
    shares = np.asarray(plain.predict_proba(SOUND.astype(dtype)), float)
    for name, (offset, scale) in UNITS.items():
        if structure == "spherical" and np.ndim(scale):
            continue
        data = SOUND * scale + offset
        x = data.astype(dtype)
        assert np.array_equal(x.astype(float), data), name
        result = fit(x, model, restarts=3)
        # the mean is rounded in the units of the data
        slip = eps * np.max(np.abs(offset)) / np.min(scale)
        assert_honest(result, x, 1e-3 + N * slip**2 + N * slip * eps**0.5)
        volume = N * np.sum(np.log(np.broadcast_to(scale, 2)))
        expected = float(plain.log_likelihood) - volume
        rounding = 64 * eps * (abs(float(plain.log_likelihood)) + abs(volume))
        assert abs(float(result.log_likelihood) - expected) < rounding, name
        if dtype == np.float32 and "20" in name:  # the variances are beyond the range of float32
            tiny = "1e-20" in name
            assert result.status == (Status.DEGENERATE if tiny else Status.NONFINITE), name
            continue
        assert result.status == Status.CONVERGED, name
        got = np.asarray(result.predict_proba(x), float)
        match = min(np.abs(got - shares).max(), np.abs(got[:, ::-1] - shares).max())
        assert match < 100 * eps + slip, name


@pytest.mark.parametrize(("structure", "dtype"), alternating(["full", "diagonal"]))
def test_a_collapsed_restart_never_wins(structure, dtype):
    x = np.random.default_rng(8).normal(size=(N, 2)).astype(dtype)
    model = jaxem.Mixture(jaxem.Normal(structure), K)
    mean = np.stack([x.mean(0), x[7]])
    covariance = np.stack([np.cov(x.T) if structure == "full" else x.var(0)] * 2)
    wide = type(sound_fit(structure, dtype).params.components)(mean, covariance.astype(dtype))
    small = covariance * np.array([1, 1e-4]).reshape(2, *[1] * (covariance.ndim - 1))
    lone = type(wide)(mean, small.astype(dtype))
    starts = [jaxem.MixtureParams(np.array([0.9, 0.1], dtype), c) for c in (lone, wide)]
    result = fit(x, model, init=jax.tree.map(lambda a, b: np.stack([a, b]), *starts), restarts=2)
    every = result.restarts
    assert every.status.tolist() == [Status.DEGENERATE, Status.CONVERGED]
    assert every.objective[0] > every.objective[1]  # likelihood alone would choose the collapse
    assert result.converged and result.objective == every.objective[1]


@pytest.mark.parametrize("structure", ["full", pytest.param("tied", marks=pytest.mark.slow)])
def test_lanes_of_a_vmap_are_apart(structure, dtype):
    model = jaxem.Mixture(jaxem.Normal(structure), K)
    names = ("identical rows", "collinear", "one duplicated")
    others = [DEGENERATE[name][0] for name in names] + [SOUND]
    lanes = jax.jit(jax.vmap(lambda x: jaxem.fit(model, x, key=0)))
    broken = np.where(np.arange(N)[:, None] == 9, np.nan, SOUND)
    inside = lanes(np.stack([*others, broken]).astype(dtype))
    control = lanes(np.stack([*others, SOUND]).astype(dtype))
    assert inside.status[-1] == Status.BAD_INPUT and control.status[-1] == Status.CONVERGED
    every = jax.tree.leaves(inside.restarts), jax.tree.leaves(control.restarts)
    for a, b in zip(*every, strict=True):
        assert not np.isnan(a).any() and np.array_equal(a[:-1], b[:-1])
    for lane, data in enumerate(others):
        eager = fit(data.astype(dtype), model)
        assert inside.status[lane] == eager.status
        if eager.converged:
            assert np.isclose(inside.log_likelihood[lane], eager.log_likelihood, rtol=1e-4)


COUNTS = np.concatenate([RNG.poisson(2, (HALF, 2)), RNG.poisson(20, (HALF, 2))]).astype(float)
TIMES = np.concatenate([RNG.gamma(3, 1, (HALF, 2)), RNG.gamma(9, 3, (HALF, 2))])
CODES = np.concatenate([RNG.integers(0, 2, (HALF, 2)), RNG.integers(1, 3, (HALF, 2))]).astype(float)
TWO = np.repeat([[1.0, 2.0], [2.0, 1.0]], HALF, 0)
FAR = np.arange(N)[:, None] == 7

FAMILIES = {
    "Poisson": (
        jaxem.Poisson(),
        {"zeros": COUNTS * 0, "two rows": TWO, "huge": COUNTS * 2.0**60, "column": COUNTS * [1, 0]},
        COUNTS,
        (),
    ),
    "Exponential": (
        jaxem.Exponential(),
        {"zeros": TIMES * 0, "same": TIMES * 0 + 3, "huge": TIMES * 1e20, "tiny": TIMES * 1e-20,
         "far": np.where(FAR, 1e12, TIMES), "near 0": np.where(FAR, 1e-30, TIMES)},
        TIMES,
        ("zeros",),
    ),
    "Gamma": (
        jaxem.Gamma(),
        {"same": TIMES * 0 + 3, "two rows": TWO, "huge": TIMES * 1e20, "tiny": TIMES * 1e-20,
         "column": np.c_[TIMES[:, 0], np.full(N, 2.0)], "far": np.where(FAR, 1e12, TIMES)},
        TIMES,
        ("same", "two rows"),
    ),
    "Categorical": (
        jaxem.Categorical(3),
        {"zeros": CODES * 0, "two rows": TWO, "column": CODES * [1, 0]},
        CODES,
        (),
    ),
    "StudentT": (
        jaxem.StudentT(df=4.0),
        {"same": SOUND * 0 + 3, "two rows": TWO, "collinear": SOUND[:, :1] * [1, 2],
         "column": SOUND * [1, 0], "huge": SOUND * 1e25, "tiny": SOUND * 1e-25},
        SOUND,
        ("same", "two rows", "collinear"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), alternating(FAMILIES))
def test_other_families(name, dtype):
    family, cases, sound, collapses = FAMILIES[name]
    model = jaxem.Mixture(family, K)
    assert fit(sound.astype(dtype), model, restarts=2, max_iter=1000).converged
    for case, data in cases.items():
        x = data.astype(dtype)
        result = fit(x, model, restarts=2, max_iter=1000)
        assert_honest(result, x)
        if case in collapses:
            assert result.status == Status.DEGENERATE, case


@pytest.mark.parametrize(("weight", "dtype"), alternating([1e-15, 1e15]))
def test_weights_of_any_size(weight, dtype):
    model, x = jaxem.Mixture(jaxem.Normal(), K), SOUND.astype(dtype)
    result = fit(x, model, weights=np.full(N, weight, dtype))
    assert result.converged
    plain = fit(x, model, weights=np.ones(N, dtype))
    for a, b in zip(*map(jax.tree.leaves, (result.params, plain.params)), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-3)
    absent = jnp.zeros(N, dtype).at[0].set(1)
    lone = fit(x, model, weights=absent)
    assert lone.status == Status.DEGENERATE
    assert_honest(lone, x)


def test_weights_beyond_the_range_of_the_dtype(dtype):
    model = jaxem.Mixture(jaxem.Normal("spherical"), K)
    for power in (-300, 290) if dtype == np.float64 else (-30, 30):
        weights = np.full(N, 10.0**power, dtype)
        with pytest.raises(ValueError, match=r"weights sum to .*: multiply them by one number"):
            jaxem.fit(model, SOUND.astype(dtype), key=0, weights=weights)
        lane = jax.jit(lambda w: jaxem.fit(model, SOUND.astype(dtype), key=0, weights=w).status)
        assert lane(weights) == Status.BAD_INPUT
