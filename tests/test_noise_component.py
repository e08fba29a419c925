"""The uniform noise component of mixtures: `Mixture(..., noise=UniformNoise())`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

N, K = 120, 2
rng = np.random.default_rng(0)
CLASS = np.repeat([0, 1, 2], [60, 45, 15])
X = np.stack(
    [
        np.r_[rng.normal(0, 1, 60), rng.normal(5, 0.5, 45), rng.uniform(-8, 12, 15)],
        np.r_[rng.normal(0, 0.3, 60), rng.normal(3, 1, 45), rng.uniform(-8, 12, 15)],
    ],
    1,
)
MODEL = jaxem.Mixture(jaxem.Normal(), K, noise=jaxem.UniformNoise())


def volume_of(x):
    """That of mclust's hypvol, by NumPy: of the smaller box."""
    axes = np.linalg.eigh(np.cov(x.T))[1]
    return min(np.prod(np.ptp(x, axis=0)), np.prod(np.ptp(x @ axes, axis=0)))


AREA = volume_of(X)


def fit(model=MODEL, x=X, **options):
    return jaxem.fit(model, x, **({"key": 0, "tol": 1e-11} | options))


@pytest.fixture(scope="module")
def fitted():
    return fit().raise_if_failed()


def logs(params, x, volume):
    """log p(x, z) (n, k + 1) under normals with noise, by NumPy alone."""
    p = jax.tree.map(np.asarray, params)
    columns = []
    parts = (p.weights, p.components.mean, p.components.covariance)
    for weight, mean, sigma in zip(*parts, strict=True):
        away = x - mean
        square = (away @ np.linalg.inv(sigma) * away).sum(1)
        density = -0.5 * (square + np.linalg.slogdet(2 * np.pi * sigma)[1])
        columns.append(np.log(weight) + density)
    columns.append(np.full(len(x), np.log(p.noise_weight / volume)))
    return np.stack(columns, 1)


def test_the_fit_is_the_maximum_of_the_density(fitted):
    p, joint = fitted.params, logs(fitted.params, X, AREA)
    evidence = np.logaddexp.reduce(joint, 1)
    np.testing.assert_allclose(fitted.score_samples(X), evidence, rtol=1e-10)
    assert abs(evidence.sum() - fitted.log_likelihood) < 1e-8
    np.testing.assert_array_equal(fitted.predict(X), joint.argmax(1))
    r = np.exp(joint - evidence[:, None])
    np.testing.assert_allclose(fitted.predict_proba(X), r, atol=1e-10)
    assert p.weights.shape == (K,) and p.noise_weight.shape == ()
    assert abs(p.weights.sum() + p.noise_weight - 1) < 1e-12
    assert fitted.n_parameters == 5 * K + K
    # At a maximum shares are mean responsibilities, means are weighted means.
    np.testing.assert_allclose(p.shares, r.mean(0), atol=1e-5)
    np.testing.assert_allclose(p.components.mean, (r.T @ X / r.sum(0)[:, None])[:K], atol=1e-4)
    steps = [fit(tol=0, max_iter=n, key=3).objective for n in range(4)]
    assert (np.diff(steps) > 0).all()
    assert "noise_weight" in fitted.summary() and "volume=" in str(fitted)


def test_the_volume_is_the_smaller_box():
    """That of the data, or that in the axes of the covariance, of the rows of weight above 0."""
    noise, kinds = jax.jit(jaxem.UniformNoise().of_data), set()
    for x in (X, X ** [[1, 3]], X[::-1] ** 3, (X * [1, 0.05]) @ [[0.6, 0.8], [-0.8, 0.6]]):
        found = noise(x, np.ones(N))
        assert abs(found.volume - volume_of(x)) < 1e-9 * found.volume
        inside = x @ np.asarray(found.axes)
        assert ((inside >= found.lower - 1e-9) & (inside <= found.upper + 1e-9)).all()
        kinds.add(bool(volume_of(x) < (1 - 1e-9) * np.prod(np.ptp(x, axis=0))))
    assert kinds == {True, False}
    x = np.r_[X[1:], [[1e3, 1e3]]]
    far = noise(x, np.r_[np.ones(N - 1), 0])
    assert abs(far.volume - volume_of(X[1:])) < 1e-9 * far.volume
    line = noise(X[:, :1] * [1, 2], np.ones(N))  # the other box is flat
    assert abs(line.volume - 2 * np.ptp(X[:, 0]) ** 2) < 1e-9 * line.volume
    given = fit(dataclasses.replace(MODEL, noise=jaxem.UniformNoise(AREA)))
    other = dataclasses.replace(MODEL, noise=jaxem.UniformNoise(AREA * 20))
    other = fit(other, x=X * [4, 5])
    assert abs(given.log_likelihood - other.log_likelihood - N * np.log(20)) < 1e-7


def test_draws_lie_where_the_data_were(fitted):
    """Where the components have no density the draws are uniform in the box."""
    noise, draws = fitted.model.noise, np.asarray(fitted.sample(1, 4000))

    def is_free(x):
        return np.exp(logs(fitted.params, x, AREA)[:, :K]).sum(1) < 1e-12

    drawn = draws[is_free(draws)] @ noise.axes
    assert ((drawn >= noise.lower) & (drawn <= noise.upper)).all()
    ends = zip(np.asarray(noise.lower), np.asarray(noise.upper), strict=True)
    sides = [np.linspace(a, b, 401)[1::2] for a, b in ends]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    free = grid[is_free(grid @ noise.axes.T)]
    expected = 4000 * fitted.params.noise_weight * len(free) / len(grid)
    assert abs(len(drawn) - expected) < 4 * np.sqrt(expected)
    error = free.std(0) / np.sqrt(len(drawn))
    assert (abs(drawn.mean(0) - free.mean(0)) < 4 * error).all()
    with pytest.raises(ValueError, match="a volume alone says not where noise lies"):
        given = dataclasses.replace(MODEL, noise=jaxem.UniformNoise(AREA))
        given.sample(jax.random.key(0), fitted.params, 3)


def test_params_are_made_and_changed_by_their_weights(fitted, tmp_path):
    p = fitted.params
    made = jaxem.NoiseMixtureParams(p.weights, p.noise_weight, p.components)
    assert jax.tree.structure(made) == jax.tree.structure(p)
    again = fit(init=made)
    assert abs(again.log_likelihood - fitted.log_likelihood) < 1e-9
    changed = dataclasses.replace(p, weights=np.array([0.5, 0.3]), noise_weight=0.2)
    np.testing.assert_allclose(changed.shares, [0.5, 0.3, 0.2])
    assert changed.components is p.components
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), p, changed)
    assert stacked.weights.shape == (2, K) and stacked.noise_weight.shape == (2,)
    two = fit(init=stacked, restarts=2)
    assert abs(two.log_likelihood - fitted.log_likelihood) < 1e-9
    fitted.save(tmp_path / "noise.npz")
    loaded = jaxem.load(tmp_path / "noise.npz")
    np.testing.assert_array_equal(loaded.params.shares, p.shares)
    assert loaded.model.noise.volume == fitted.model.noise.volume
    assert loaded.bic() == fitted.bic()


def test_labels_and_given_responsibilities_count_the_noise(fitted):
    labels = np.where(np.arange(N) % 3 == 0, CLASS, -1)
    data = jaxem.Labelled(X, labels)
    known = fit(x=data)
    np.testing.assert_array_equal(known.predict(data)[labels >= 0], labels[labels >= 0])
    joint = logs(known.params, X, AREA)
    chosen = np.where(labels < 0, np.logaddexp.reduce(joint, 1), joint[np.arange(N), labels])
    assert abs(chosen.sum() - known.log_likelihood) < 1e-8
    for init in (jaxem.Labels(fitted.predict(X)), jaxem.Responsibilities(fitted.predict_proba(X))):
        assert abs(fit(init=init).log_likelihood - fitted.log_likelihood) < 1e-7
    with pytest.raises(ValueError, match="0 to 2, which is noise"):
        fit(x=jaxem.Labelled(X, labels + 1))


def test_every_data_set_has_its_volume(fitted):
    sets = [X, X[:100] * 10, X[10:] + 100]
    fleet = fit(x=jaxem.Batch(sets))
    for i, x in enumerate(sets):
        alone = fit(x=x, init=jax.tree.map(lambda a, i=i: a[i], fleet.params))
        assert fleet[i].model.noise.volume == alone.model.noise.volume
        assert abs(fleet.log_likelihood[i] - alone.log_likelihood) < 1e-8
        assert abs(fleet[i].score_samples(x).sum() - fleet.log_likelihood[i]) < 1e-8
        assert fleet[i].data_shape == x.shape and fleet[i].predict_proba(x).shape == (len(x), 3)
    np.testing.assert_allclose(
        [s.sum() for s in fleet.score_samples(sets)], fleet.log_likelihood, atol=1e-8
    )
    assert "100 to 120 units" in str(fleet)
    together = jax.jit(jax.vmap(lambda x: fit(x=x)))(jnp.stack([X, 3 * X]))
    np.testing.assert_allclose(together.model.noise.volume, [AREA, 9 * AREA])
    shift = N * np.log(9)
    assert abs(together.log_likelihood[0] - fitted.log_likelihood) < 1e-7
    assert abs(together.log_likelihood[1] - fitted.log_likelihood + shift) < 1e-7


def test_groups_have_the_density_of_all_their_rows():
    group = np.arange(N) // 4
    data = jaxem.Data(X, groups=group)
    found = fit(x=data)
    p = found.params
    each = logs(p, X, AREA) - np.log(p.shares)
    joint = each.reshape(-1, 4, K + 1).sum(1) + np.log(p.shares)
    np.testing.assert_allclose(found.score_samples(data), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    np.testing.assert_array_equal(found.predict(data), np.repeat(joint.argmax(1), 4))
    uneven = fit(x=jaxem.Data(X, groups=np.minimum(np.arange(N) // 3, 37)), max_iter=3, tol=0)
    assert np.isfinite(uneven.log_likelihood)


@pytest.mark.parametrize("bank", ["normal", "poisson"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fused_pass_is_the_plain_one(bank, dtype):
    """A step of many rows, with a base measure of rows or without."""
    many = 40_000
    z = np.random.default_rng(1).integers(3, size=many)
    draw = np.random.default_rng(2)
    if bank == "normal":
        x, family, volume = draw.normal(size=(many, 2)) + 4 * z[:, None], jaxem.Normal(), 300.0
    else:
        x, family, volume = draw.poisson(1 + 6 * z, (2, many)).T, jaxem.Poisson(), 900.0
    model = jaxem.Mixture(family, K, noise=jaxem.UniformNoise(volume))
    x = x.astype(dtype)
    start = jaxem.fit(model, x[:500], key=0, max_iter=3, tol=0).params
    start = jax.tree.map(lambda a: np.asarray(a, dtype), start)
    found = jaxem.fit(model, x, init=start, tol=0, max_iter=1)
    q, _ = model.posterior(start, x)
    step = model.maximize(start, model.statistics(start, x, q, jnp.ones(many, dtype)))
    eps = float(jnp.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(step), strict=True):
        np.testing.assert_allclose(a, b, rtol=2000 * eps, atol=200 * eps)
    total = np.asarray(model.log_prob(found.params, x), float).sum()
    assert abs(found.log_likelihood - total) < 100 * eps * (abs(total) + many)


@pytest.mark.parametrize("is_given", [True, False])
def test_the_gradient_through_a_fit_is_that_of_differences(fitted, is_given):
    """By data and weights, and by the volume, given or from the data."""
    shape = np.sin(np.arange(N))

    def outcome(t):
        noise = jaxem.UniformNoise(AREA * jnp.exp(t[2])) if is_given else MODEL.noise
        found = jaxem.fit(
            dataclasses.replace(MODEL, noise=noise),
            X + t[0] * shape[:, None],
            weights=1 + t[1] * shape,
            init=fitted.params,
            tol=1e-13,
            max_iter=500,
        )
        return found.params.noise_weight + found.params.components.mean.sum()

    slope = jax.jit(jax.grad(outcome))(np.zeros(3))
    value, steps = jax.jit(outcome), 1e-4 * np.eye(3)[: 2 + is_given]
    expected = [(value(step) - value(-step)) / 2e-4 for step in steps]
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(slope[: len(expected)], expected, rtol=1e-4)


def test_noise_may_vanish_and_restrictions_hold():
    apart = X[:105]
    found = fit(jaxem.Mixture(jaxem.Normal(), K, noise=jaxem.UniformNoise(1e9)), x=apart)
    plain = fit(jaxem.Mixture(jaxem.Normal(), K), x=apart)
    assert found.converged and found.params.noise_weight < 1e-9
    assert abs(found.log_likelihood - plain.log_likelihood) < 1e-6
    held = fit(jaxem.Restricted(MODEL, {"noise_weight": 0.3}))
    assert held.converged and held.params.noise_weight == 0.3
    assert held.n_parameters == 5 * K + K - 1 and held.model.model.noise.volume > 0
    even = fit(jaxem.Restricted(MODEL, tied="weights"))
    assert even.converged and even.params.weights[0] == even.params.weights[1]
    assert abs(even.params.weights.sum() + even.params.noise_weight - 1) < 1e-12
    with pytest.raises(
        ValueError, match=r"no entry of the params.*weights \(2,\), noise_weight \(\)"
    ):
        fit(jaxem.Restricted(MODEL, {"shares[2]": 0.3}))
    with pytest.raises(ValueError, match="fixed: weights and noise_weight must sum to 1"):
        fit(jaxem.Restricted(MODEL, {"weights": [0.5, 0.3], "noise_weight": 0.3}))
    prior = fit(dataclasses.replace(MODEL, prior=jaxem.DirichletPrior(5.0)))
    r = np.asarray(prior.predict_proba(X))
    np.testing.assert_allclose(prior.params.shares, (r.sum(0) + 4) / (N + 12), atol=1e-6)


def test_names_of_weights():
    found = fit()
    errors = found.standard_errors(X)
    names = ("weights[0]", "weights[1]", "noise_weight")
    assert errors.names[:3] == names and "noise_weight" in str(errors)
    np.testing.assert_array_equal(errors.errors.shares > 0, True)
    wrong = jaxem.NoiseMixtureParams(np.full(3, 0.3), 0.1, found.params.components)
    with pytest.raises(ValueError, match=r"init\.weights and noise_weight must have shape"):
        jaxem.fit(MODEL, X, init=wrong)


def test_float32():
    found = jaxem.fit(MODEL, X.astype(np.float32), key=0)
    assert found.converged and found.params.shares.dtype == np.float32
    assert abs(found.log_likelihood - fit().log_likelihood) < 1e-6 * N * 10
    # Volumes whose number overflows: 24 columns of width 1e3.
    wide = np.random.default_rng(3).normal(size=(400, 24)).astype(np.float32) * 150
    model = jaxem.Mixture(jaxem.Normal("diagonal"), 1, noise=jaxem.UniformNoise())
    found = jaxem.fit(model, wide, key=0)
    assert found.converged and np.isfinite(found.log_likelihood)
    assert abs(found.score_samples(wide).sum() / found.log_likelihood - 1) < 1e-5


def test_responses_and_counts_take_a_given_volume():
    data = jaxem.Data(X[:, :1], X[:, 1])
    model = jaxem.Mixture(jaxem.Regression(), K, noise=jaxem.UniformNoise(20.0))
    found = fit(model, data)
    assert abs(found.score_samples(data).sum() - found.log_likelihood) < 1e-8
    r, means = (
        found.predict_proba(data)[:, :K],
        model.components.mean(found.params.components, data),
    )
    expected = (r * means).sum(1) / r.sum(1)
    np.testing.assert_allclose(found.predict_response(data), expected, rtol=1e-8)
    for bank, x in ((jaxem.Regression(), data), (jaxem.Poisson(), np.round(X**2))):
        with pytest.raises(ValueError, match=r"these data are others: give jaxem.UniformNoise"):
            fit(jaxem.Mixture(bank, K, noise=jaxem.UniformNoise()), x)


def test_what_is_refused(fitted):
    with pytest.raises(TypeError, match=r"noise must be jaxem.UniformNoise"):
        jaxem.Mixture(jaxem.Normal(), K, noise=0.1)
    with pytest.raises(ValueError, match="noise has a constant weight, and gate"):
        jaxem.Mixture(jaxem.Normal(), K, gate=jaxem.SoftmaxGate(), noise=jaxem.UniformNoise())
    with pytest.raises(TypeError, match="noise"):
        jaxem.BayesianMixture(jaxem.Normal(), K, noise=jaxem.UniformNoise())
    for volume, error in (
        (0, ValueError),
        (-1.0, ValueError),
        (np.inf, ValueError),
        ("a", TypeError),
    ):
        with pytest.raises(error, match="volume must be"):
            jaxem.UniformNoise(volume)
    with pytest.raises(ValueError, match="that of the box beside it"):
        dataclasses.replace(fitted.model.noise, volume=1.0)
    with pytest.raises(ValueError, match=r"data are Moments.* k=1 and noise: give rows"):
        moments = jaxem.Moments(np.cov(X.T), N, X.mean(0))
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), 1, noise=jaxem.UniformNoise(9.0)), moments, key=0)
    with pytest.raises(ValueError, match="UniformNoise has no volume yet"):
        MODEL.log_prob(fitted.params, X)
    with pytest.raises(ValueError, match="UniformNoise has no volume yet"):
        fit(jaxem.Mixture(jaxem.Each(MODEL), K))
    with pytest.raises(ValueError, match=r"column 2 .* is the same in all rows"):
        fit(x=np.c_[X, np.ones(N)])


def test_select_over_sizes():
    models = [jaxem.Mixture(jaxem.Normal(), k, noise=jaxem.UniformNoise()) for k in (1, 2)]
    found = jaxem.select(X, models, key=0, restarts=2)
    assert found.best.model.k == 2 and found.best.model.noise.volume is not None
    assert "Normal('full'), noise" in str(found)
    assert abs(found.table[1].score - found.results[1].bic()) < 1e-9
