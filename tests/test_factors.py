"""Factor analysis and probabilistic principal components, from rows and from moments."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import quiet
from scipy.stats import multivariate_normal

import jaxem

N, D = 60, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)) @ RNG.normal(size=(2, D)) + 0.7 * RNG.normal(size=(N, D)) + 3
TWO = jaxem.Mixture(jaxem.Factors(2), 1)
FORMS = [(noise, a, b) for noise in ("diagonal", "spherical") for a in (0, 1) for b in (0, 1)]


def params_of(bank, k, seed=1):
    """Random params of a bank."""
    rng = np.random.default_rng(seed)
    noise = (k,) if bank.noise == "spherical" else (k, D)
    return jaxem.FactorParams(
        jnp.asarray(rng.normal(size=(k, D)) + 3),
        jnp.asarray(rng.normal(size=(D, 2) if bank.shared_loadings else (k, D, 2))),
        jnp.asarray(rng.uniform(0.2, 2, noise[1:] if bank.shared_noise else noise)),
    )


def test_agrees_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    result = jaxem.fit(TWO, X, key=0, tol=1e-10).raise_if_failed()
    theirs = decomposition.FactorAnalysis(2, tol=1e-12, max_iter=100_000, svd_method="lapack")
    assert abs(result.log_likelihood / N - theirs.fit(X).score(X)) < 1e-6
    assert result.n_iter <= 20  # their EM takes hundreds of steps
    theirs = decomposition.PCA(2).fit(X)
    axes = theirs.components_.T * np.sqrt(theirs.explained_variance_ - theirs.noise_variance_)
    params = jaxem.FactorParams(
        jnp.asarray(theirs.mean_[None]),
        jnp.asarray(axes[None]),
        jnp.array([theirs.noise_variance_]),
    )
    density = jax.jit(jaxem.Factors(2, "spherical").posterior)(params, X)[1]
    assert abs(density.mean() - theirs.score(X)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_m_step_climbs_and_is_canonical(form):
    """Densities, and log-likelihoods before and after M-steps at random memberships, by scipy."""
    bank, k = jaxem.Factors(2, *form[:1], *map(bool, form[1:])), 2
    params, weights = params_of(bank, k), np.random.default_rng(2).uniform(size=(N, k))

    @jax.jit
    def three(params):
        def step(params, _):
            stats = bank.statistics(params, X, None, weights)
            return bank.maximize(params, stats), params

        found = jax.lax.scan(step, params, length=4)[1]
        loadings, noise = jax.vmap(bank._of_components)(found)
        return found, loadings, noise, bank.posterior(params, X)[1], bank.scores(params, X)

    found, loadings, noise, density, scores = jax.device_get(three(params))
    eye = np.eye(D)
    values = []
    for mean, a, b in zip(found.mean, loadings, noise, strict=True):
        each = [
            multivariate_normal(mean[j], a[j] @ a[j].T + b[j] * eye).logpdf(X) for j in range(k)
        ]
        values.append((weights.T * each).sum())
        if len(values) == 1:
            np.testing.assert_allclose(density.T, each, rtol=1e-10)
    assert np.diff(values).min() > -1e-9 and values[1] > values[0] + 1
    sigma = loadings[0, 1] @ loadings[0, 1].T + noise[0, 1] * eye
    regression = np.linalg.solve(sigma, loadings[0, 1])
    np.testing.assert_allclose(scores[:, 1], (X - found.mean[0, 1]) @ regression, rtol=1e-8)
    metric = 1 / noise[-1]
    metric = metric.mean(0, keepdims=True) if bank.shared_loadings else metric
    inner = np.einsum(
        "jdq,jd,jdr->jqr", loadings[-1], np.broadcast_to(metric, (k, D)), loadings[-1]
    )
    assert (inner[:, 0, 0] > inner[:, 1, 1]).all() and abs(inner[:, 0, 1]).max() < 1e-8
    size = bank.n_parameters(jax.tree.map(lambda a: a[0], found))
    assert size == k * D + found.loadings[0].size - (1 if form[2] else k) + found.noise[0].size


def test_a_uniqueness_of_zero_is_a_status():
    """A Heywood case: the last column is a factor itself."""
    z = np.random.default_rng(3).normal(size=(N, 1))
    x = np.concatenate([z * [1, 1, -1, 2] + np.random.default_rng(4).normal(size=(N, 4)), z], 1)
    x[:, 4] = x[:, :4].sum(1)
    result = quiet(jaxem.fit, TWO, x, key=0, tol=1e-10)
    assert result.status == jaxem.Status.DEGENERATE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_moments_are_rows():
    rows = jaxem.fit(TWO, X, key=0, tol=1e-10)
    moments = jaxem.Moments(np.cov(X.T), N, X.mean(0), divisor="n-1")
    result = jaxem.fit(TWO, moments, key=0, tol=1e-10)
    assert result.converged and result.total_weight == N and result.data_shape == (N, D)
    np.testing.assert_allclose(result.log_likelihood, rows.log_likelihood, atol=1e-7)
    np.testing.assert_allclose(result.bic(), rows.bic(), atol=1e-6)
    for ours, theirs in zip(*map(jax.tree.leaves, (result.params, rows.params)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, weights = jaxem.Moments(np.eye(3), 7.0).rows()
    np.testing.assert_allclose((weights[:, None] * x).T @ x, 7 * np.eye(3), atol=1e-12)
    with pytest.warns(jaxem.FitWarning, match="singular"):
        x, weights = jaxem.Moments(np.ones((2, 2)), 4).rows()
    np.testing.assert_allclose((weights[:, None] * x).T @ x, 4 * np.ones((2, 2)), atol=1e-12)


def test_errors_are_sentences():
    def refused(call, match, kind=ValueError):
        with pytest.raises(kind, match=match):
            call()

    refused(lambda: jaxem.Factors(0), "rank must be an int of 1 or more")
    refused(lambda: jaxem.Factors(1, "full"), "noise must be 'diagonal' or 'spherical'")
    refused(lambda: jaxem.Factors(1, shared_noise=1), "shared_noise must be", TypeError)
    five = jaxem.Mixture(jaxem.Factors(5), 1)
    refused(lambda: jaxem.fit(five, X, key=0), "needs data with more than 5 columns")
    moments = jaxem.Moments(np.eye(D), 10)
    refused(lambda: jaxem.fit(jaxem.Mixture(jaxem.Factors(2), 2), moments, key=0), "with k=2")
    refused(lambda: jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 1), moments, key=0), "give rows")
    refused(lambda: jaxem.fit(TWO, moments, key=0, weights=np.ones(10)), "change n")
    refused(lambda: jaxem.Moments(np.eye(2)[:1], 5), r"shape \(d, d\)")
    refused(lambda: jaxem.Moments(np.diag([1.0, -1]), 5), "positive semi-definite")
    refused(lambda: jaxem.Moments([[1, 0.5], [0, 1]], 5), "symmetric")
    refused(lambda: jaxem.Moments(np.eye(2), 0), "number of rows")
    refused(lambda: jaxem.Moments(np.eye(2), 5, divisor="m"), "divisor must be one of")


def test_varimax():
    """No rotation of a pair of factors raises the criterion, and the communalities stay."""

    def criterion(loadings):
        scaled = loadings / np.sqrt(np.square(loadings).sum(-1, keepdims=True))
        return np.square(scaled).var(-2).sum(-1)

    loadings = np.random.default_rng(3).normal(size=(9, 4))
    rotated = np.asarray(jaxem.varimax(loadings))
    np.testing.assert_allclose(rotated @ rotated.T, loadings @ loadings.T, atol=1e-12)
    assert criterion(rotated) > criterion(loadings) and np.all(rotated.sum(0) >= 0)
    angles = np.linspace(-np.pi / 4, np.pi / 4, 181)
    for i, j in itertools.combinations(range(4), 2):
        turns = np.tile(np.eye(4), (181, 1, 1))
        turns[:, [i, j, i, j], [i, j, j, i]] = np.stack(
            [np.cos(angles), np.cos(angles), np.sin(angles), -np.sin(angles)], 1
        )
        assert np.all(criterion(rotated @ turns) <= criterion(rotated) + 1e-12)
    both = jaxem.varimax(np.stack([loadings, loadings[::-1]]))
    np.testing.assert_allclose(both[0], rotated, atol=1e-12)
    np.testing.assert_allclose(both[1][::-1], rotated, atol=1e-12)
    np.testing.assert_array_equal(jaxem.varimax(np.zeros((3, 2))), 0)
    with pytest.raises(ValueError, match=r"shape \(d, q\), or \(k, d, q\)"):
        jaxem.varimax(np.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(("bank", "k"), [(TWO.components, 1), (jaxem.Factors(1, "spherical"), 2)])
def test_gradient_of_what_rotations_leave(bank, k):
    """That of a function of Σ, of the log-likelihood, and of the canonical loadings."""
    model = jaxem.Mixture(bank, k)
    x = np.concatenate([X, X[:, ::-1] * 1.5 + 4]) if k == 2 else X
    rng = np.random.default_rng(5)
    direction, weights = rng.normal(size=x.shape), rng.normal(size=(D, D))
    start = jaxem.fit(model, x, key=0, tol=1e-12).params

    @jax.jit
    def values(t):
        result = jaxem.fit(model, x + t * direction, init=start, tol=1e-15)
        components = result.params.components
        found = jnp.sum(weights * bank.covariance(components)), result.log_likelihood
        return jnp.stack([*found, components.loadings.ravel()[0]]), result.gradient_ok

    _, slope, ok = jax.jvp(values, (0.0,), (1.0,), has_aux=True)
    step = 1e-4
    difference = (values(step)[0] - values(-step)[0]) / (2 * step)
    assert ok
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
