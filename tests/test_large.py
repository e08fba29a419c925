"""Many units: a pass in chunks and in matrix products says what one in a single piece says."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import quiet
from internals import (
    TRUSTED,
    Aitken,
    Plan,
    collect,
    in_chunks,
    inward,
    packed,
    pairs,
    prepared,
    products,
    row_sum,
    single,
    split,
    standardized,
    tuning,
    unpacked,
)
from zoo import BANKS, usually

import jaxem

pytestmark = pytest.mark.shipped
N, K = 120_003, 3
ROWS = 1_000
NAMES = ["full", "tied", "diagonal", "spherical"]


def often(*names):
    """The structures as cases of a test, those that are not named marked slow."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n not in names)) for n in NAMES]


@functools.cache
def tiled(name):
    """A bank's mixture with N units drawn from its data in the zoo, weights with zeros, and params
    off the optimum."""
    bank, data = BANKS[name]
    rng = np.random.default_rng(3)
    x = data[rng.integers(len(data), size=N)]
    if name.startswith(("normal", "student")):
        x = x + rng.normal(size=x.shape)
    weights = rng.integers(3, size=N).astype(float)
    model = jaxem.Mixture(bank, k=K)
    assert N * K * x.shape[1] > tuning.CHUNKED
    return model, x, weights, jax.jit(model.init)(jax.random.key(0), data, np.ones(len(data)))


def whole(model, params, x, weights):
    q, evidence = model.posterior(params, x)
    stats = model.statistics(params, x, q, weights)
    return stats, row_sum(weights, jnp.where(weights > 0, evidence, 0))


def close(a, b, tol):
    def near(u, v):
        np.testing.assert_allclose(u, v, rtol=tol, atol=tol * np.abs(v).max())

    jax.tree.map(near, a, b)


@pytest.mark.parametrize("name", usually(BANKS))
def test_a_pass_in_chunks_is_the_pass_in_one_piece(name):
    model, x, weights, params = tiled(name)
    swept = jax.jit(functools.partial(collect, model))(params, x, weights)
    stats, evidence = jax.jit(functools.partial(whole, model))(params, x, weights)
    close(swept.statistics, stats, 1e-11)
    np.testing.assert_allclose(swept.evidence, evidence, rtol=1e-12)


@pytest.mark.parametrize("name", ["normal-full", "categorical"])
def test_many_passes_share_what_is_the_same_in_each(name):
    model, x, weights, params = tiled(name)
    kept = jax.jit(functools.partial(prepared, model))(x)
    assert kept.units[0].shape == x.shape[::-1]
    once = jax.jit(functools.partial(collect, model))
    close(once(params, kept, weights), once(params, x, weights), 1e-12)
    assert jaxem.EM().prepares and not jaxem.EM(e_step=jaxem.Hard()).prepares


@pytest.mark.parametrize("name", ["poisson", "multinomial", "categorical", "exponential"])
def test_base_measures_are_summed_once_and_counted(name, dtype):
    """No pass computes them, the log-likelihood that is returned has them."""
    bank, x = BANKS[name]
    x, model = x.astype(dtype), jaxem.Mixture(bank, k=K)
    weights = np.random.default_rng(0).integers(3, size=len(x)).astype(dtype)
    view = standardized(model, x, weights)
    params = model.init(jax.random.key(0), x, weights)
    inner = inward(model, view.units, params)
    step = jax.make_jaxpr(functools.partial(collect, view.model))(inner, view.data, weights)
    assert "lgamma" not in str(step)
    relative = view.model.log_prob(inner, view.data)
    exact = model.log_prob(params, x)
    np.testing.assert_allclose(
        relative - view.log_volume, exact, rtol=1e-4 if dtype == np.float32 else 1e-11
    )
    found = jaxem.fit(model, x, weights=weights, init=params, tol=0, max_iter=3)
    total = weights @ np.asarray(model.log_prob(found.params, x), float)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("rows", [64, ROWS, N - 1, N, N + 1])
def test_every_unit_counts_once_whatever_the_chunk(rows):
    def count(params, x, weights):
        return weights @ x, x[:, 0]

    x = np.random.default_rng(0).integers(9, size=(N, 2)).astype(float)
    weights = np.random.default_rng(1).integers(3, size=N).astype(float)
    sums = jax.jit(lambda x, w: in_chunks(count, rows, None, x, w))(x, weights)
    np.testing.assert_array_equal(sums.statistics, weights @ x)
    assert sums.evidence == weights @ x[:, 0]
    assert sums.magnitude == weights @ (np.abs(x[:, 0]) + 1)


def test_units_of_weight_zero_say_nothing():
    model, x, weights, params = tiled("normal-full")
    run = jax.jit(functools.partial(collect, model))
    wild = np.where(weights[:, None] > 0, x, 1e3)
    close(run(params, x, weights), run(params, wild, weights), 1e-12)
    with pytest.raises(AssertionError):
        close(run(params, x, weights), run(params, wild, np.maximum(weights, 1)), 1e-12)


def test_known_labels_hold_in_chunks():
    model, x, weights, params = tiled("normal-full")
    labels = np.random.default_rng(0).integers(-1, K, size=N)
    data = jaxem.Labelled(x, labels)
    swept = jax.jit(functools.partial(collect, model))(params, data, weights)
    stats, evidence = jax.jit(functools.partial(whole, model))(params, data, weights)
    close(swept.statistics, stats, 1e-11)
    np.testing.assert_allclose(swept.evidence, evidence, rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4, 9, 16])
def test_every_product_of_two_features_has_a_place(size):
    rng = np.random.default_rng(size)
    z = rng.normal(size=(size, 50))
    form = rng.normal(size=(K, size, size))
    form = form + form.swapaxes(1, 2)
    phi = products(jnp.asarray(z))
    np.testing.assert_allclose(
        packed(jnp.asarray(form)) @ phi, np.einsum("in,kij,jn->kn", z, form, z), rtol=1e-12
    )
    outer = unpacked(phi.sum(1)[:, None], size)[0]
    np.testing.assert_allclose(outer, z @ z.T, rtol=1e-12)
    assert len(pairs(size)[0]) == len(phi)


def clusters(name, n=100_000, d=4, k=5):
    """Float32 data that are hard on the arithmetic, and the group of every row."""
    rng = np.random.default_rng(5)
    group = rng.integers(k, size=n)
    centre = 3 * rng.normal(size=(k, d))
    spread = {"tiny": 1e-3 * np.abs(centre).std()}.get(name, 1.0)
    x = centre[group] + spread * rng.normal(size=(n, d))
    if name == "offset":
        x = x + 1e6
    if name == "scaled":
        x = x * 10.0 ** np.arange(-2 * d, 2 * d, 4)
    return x.astype(np.float32), group


PAIRS = {("separated", "full"), ("tiny", "full"), ("offset", "spherical"), ("scaled", "spherical")}
"""Data and structures of the default suite; all other pairs are slow."""


@pytest.mark.parametrize(
    ("name", "covariance"),
    [
        pytest.param(name, covariance, marks=[pytest.mark.slow] * ((name, covariance) not in PAIRS))
        for name in ("separated", "tiny", "offset", "scaled")
        for covariance in NAMES
    ],
)
def test_float32_gives_the_float64_answer(name, covariance):
    x, group = clusters(name)
    model = jaxem.Mixture(jaxem.Normal(covariance), k=5)
    start = 0.9 * np.eye(5)[group] + 0.02
    options = {"init": jaxem.Responsibilities(start), "tol": 0, "max_iter": 10}
    single = quiet(jaxem.fit, model, x, **options)  # an offset costs float32 digits, and warns
    double = jaxem.fit(model, x.astype(float), **options)
    assert single.params.weights.dtype == np.float32
    assert abs(single.log_likelihood - double.log_likelihood) / len(x) < 1e-4
    if name != "offset":  # where float32 params are rounded to 0.06 of a standard deviation
        up = jax.tree.map(lambda a: np.asarray(a, float), single.params)
        scored = np.mean(model.log_prob(up, x.astype(float)))
        assert abs(scored - double.log_likelihood / len(x)) < 1e-4


def test_float32_stops_where_float64_stops():
    """At 1e-7 a unit too, a hundredth of what the float32 objective is known to."""
    rng, n = np.random.default_rng(5), 60_000
    group = rng.integers(5, size=n)
    x = 1.6 * rng.normal(size=(5, 4))[group] + rng.normal(size=(n, 4))
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=5)
    options = {"init": jaxem.Responsibilities(0.5 * np.eye(5)[group] + 0.1), "max_iter": 500}
    options["method"] = jaxem.EM(accelerator=None)
    steps = {}
    for tol in (1e-5, 1e-7):
        for dtype in (np.float32, np.float64):
            found = jaxem.fit(model, x.astype(dtype), tol=tol, **options)
            assert found.converged
            steps[dtype, tol] = int(found.n_iter)
        assert abs(steps[np.float32, tol] - steps[np.float64, tol]) <= 3
    assert steps[np.float32, 1e-7] > steps[np.float32, 1e-5] + 10
    accelerated = jaxem.fit(
        model, x.astype(np.float32), tol=1e-7, **options | {"method": jaxem.EM()}
    )
    assert accelerated.converged and accelerated.n_iter < steps[np.float32, 1e-7]
    double = jax.tree.map(lambda a: np.asarray(a, float), accelerated.params)
    assert np.mean(model.log_prob(double, x)) > found.log_likelihood / n - 2e-7


def at_the_groups(covariance, name, n=60_000):
    """Standardised float32 data, a model, and the params of the groups, found in float64."""
    x, group = clusters(name, n)
    x = ((x - x.mean(0, dtype=float)) / x.std(0, dtype=float)).astype(np.float32)
    model, double = jaxem.Mixture(jaxem.Normal(covariance), k=5), x.astype(float)
    r = jnp.asarray(np.eye(5)[group])
    params = model.from_responsibilities(jax.random.key(0), double, r, jnp.ones(n))
    return x, model, jax.tree.map(lambda a: a.astype(np.float32), params)


@pytest.mark.parametrize("covariance", often("full", "spherical"))
def test_centred_rows_are_taken_only_where_needed(covariance):
    """The side of the `cond` that runs: its params are seen in the terms of the fused form."""
    eps, sides = np.finfo(np.float32).eps, {}
    for name in ("separated", "tiny"):
        x, model, params = at_the_groups(covariance, name)
        ones, fused = np.ones_like(x[:, 0]), model.fused(x)
        exact = jax.jit(functools.partial(whole, model))(params, x, ones)[1]
        swept = jax.jit(functools.partial(collect, model))(params, x, ones).evidence
        common, units = fused.coefficients(params), fused.prepare(x)
        products = in_chunks(fused.sums, ROWS, common, units, ones, fused.axis).evidence
        assert abs(swept - exact) / len(x) < 5e-5
        sides[name] = bool(fused.terms(params) * eps <= TRUSTED)
        assert sides[name] == (abs(products - exact) / len(x) < 1e-3)
    assert sides == {"separated": True, "tiny": False}


def test_restarts_share_the_features_and_agree_with_single_fits():
    x, _ = clusters("separated", n=60_000)
    model = jaxem.Mixture(jaxem.Normal(), k=5)
    many = jaxem.fit(model, x, key=0, restarts=3, tol=0, max_iter=5).restarts
    best = jaxem.fit(model, x, key=0, tol=0, max_iter=5)
    np.testing.assert_allclose(many.log_likelihood[0], best.log_likelihood, rtol=1e-6)

    starts = jax.vmap(lambda key: model.init(key, x[:500], jnp.ones(500, x.dtype)))
    starts = starts(jax.random.split(jax.random.key(0), 3))
    weights = jnp.ones(len(x), x.dtype)
    step = jax.jit(jax.vmap(functools.partial(collect, model), (0, None, None)))
    text = step.lower(starts, x, weights).compile().as_text()
    assert re.search(rf"f32\[{3 * 5},\d{{4,5}}\]\S* dot\(", text)  # lanes × components, rows
    assert not re.search(r"f32\[3,15,\d{4,5}\]", text)  # features of a lane of its own
    alone = jax.jit(functools.partial(collect, model))
    every = step(starts, x, weights)
    for i in range(3):
        one = alone(jax.tree.map(lambda a: a[i], starts), x, weights)  # noqa: B023
        lane = jax.tree.map(lambda a: a[i], every)  # noqa: B023
        close(lane.evidence, one.evidence, 1e-6)
        for a, b in zip(*map(jax.tree.leaves, (lane.statistics, one.statistics)), strict=True):
            # moments about a mean, of order a.ndim − 1, are differences of sums about 0
            size = (np.abs(x) ** (a.ndim - 1)).sum(0).max()
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=64 * np.finfo(x.dtype).eps * size)


def test_one_lane_that_needs_centred_rows_gets_them():
    x, model, sharp = at_the_groups("full", "tiny")
    ones = jnp.ones(len(x), x.dtype)
    wide = model.init(jax.random.key(0), x[:500], ones[:500])
    both = jax.tree.map(lambda *a: jnp.stack(a), wide, sharp)
    lanes = jax.jit(jax.vmap(functools.partial(collect, model), (0, None, None)))(both, x, ones)
    for i, params in enumerate((wide, sharp)):
        evidence = jax.jit(functools.partial(whole, model))(params, x, ones)[1]
        assert abs(lanes.evidence[i] - evidence) / len(x) < 2e-5


def test_sums_of_many_chunks_are_as_good_as_one():
    """A plain float32 sum of 12,000 chunks is off by several last digits."""
    n = 12_000 * 64
    x = np.random.default_rng(0).normal(-50, 1, size=(n, 1)).astype(np.float32)
    ones = np.ones(n, np.float32)
    exact = x.astype(float).sum()
    sums = jax.jit(lambda x, w: in_chunks(lambda p, x, w: (w.sum(), x[:, 0]), 64, None, x, w))
    assert abs(sums(x, ones).evidence - exact) <= 2e-7 * abs(exact)
    plain = np.add.accumulate(x.reshape(-1, 64).sum(1), dtype=np.float32)[-1]
    assert abs(plain - exact) > 6e-7 * abs(exact)


@pytest.mark.parametrize("covariance", often("full"))
def test_a_large_step_is_differentiable_both_ways(covariance):
    model, x, weights, params = tiled("normal-" + covariance)

    def objective(params):
        return collect(model, params, x, weights).evidence

    def single(params):
        return whole(model, params, x, weights)[1]

    def leaves(slope):
        bank, matrices = slope.components, covariance in ("full", "tied")
        cov = bank.covariance  # of matrices, read from one triangle or from both
        return [slope.weights, bank.mean, cov + cov.swapaxes(-1, -2) if matrices else cov]

    slope = jax.jit(jax.grad(objective))(params)
    close(leaves(slope), leaves(jax.jit(jax.grad(single))(params)), 1e-8)
    _, forward = jax.jit(lambda p: jax.jvp(objective, (p,), (slope,)))(params)
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slope))
    np.testing.assert_allclose(forward, squares, rtol=1e-9)


@pytest.mark.parametrize("covariance", often("spherical"))
def test_data_standardised_in_every_pass_give_what_a_copy_gives(covariance, monkeypatch):
    """Shifted and scaled data: without the frame float32 could not tell them apart."""
    x, group = clusters("separated", n=100_001)
    x = (x * [1, 100, 1, 0.01] + [0, 3e4, -5e3, 2]).astype(np.float32)
    weights = np.random.default_rng(0).integers(3, size=len(x)).astype(np.float32)
    model = jaxem.Mixture(jaxem.Normal(covariance), k=5)

    def run():
        start = jaxem.Responsibilities(0.9 * np.eye(5)[group] + 0.02)
        options = {"init": start, "weights": weights, "tol": 0, "max_iter": 4}
        return jaxem.fit(model, x, **options)

    copied = run()
    monkeypatch.setattr(tuning, "COPIED_BYTES", 2**10)
    jax.clear_caches()
    lazy = run()
    jax.clear_caches()
    np.testing.assert_allclose(lazy.log_likelihood, copied.log_likelihood, rtol=2e-6)
    close(lazy.params, copied.params, 2e-4)


def test_a_large_fit_holds_one_chunk_beside_its_data():
    """1e7 × 16 in float32 are 610 MB; the weights alone are 38 of those that are allowed."""
    n, d, k = 10_000_000, 16, 32
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=k)
    of = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
    start = jaxem.MixtureParams(of((k,)), jaxem.NormalParams(of((k, d)), of((k, d))))
    numeric, structure = split((model, jaxem.EM(), None))
    spec = Plan(structure, Aitken(), True, True)
    fit = jax.jit(lambda x, p: single(spec, numeric, x, None, p, 1e-6, 100))
    used = fit.lower(of((n, d)), start).compile().memory_analysis()
    assert 4 * n < used.temp_size_in_bytes < 200 * 2**20


def test_a_float32_fit_at_rest_has_converged():
    """A fixed point to the last bit, whose place two programs may round differently."""
    rng = np.random.default_rng(0)
    group, centre = rng.integers(4, size=60_000), 3 * rng.normal(size=(4, 8))
    x = (centre[group] + rng.normal(size=(60_000, 8))).astype(np.float32)
    result = jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=4), x, key=0)
    assert result.converged
    assert result.n_iter < 30
