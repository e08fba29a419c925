"""Measurements with noise of known variance: params are those of the values without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import jaxem

N, D, K = 60, 3, 2
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(N, D)) @ [[2, 0.5, 0], [0, 1.5, 0.5], [0, 0, 2.0]]
VALUES += 4 * RNG.integers(0, 2, size=(N, 1))
NOISE = RNG.gamma(1.0, 0.3, size=(N, D))
NOISE[:10] = 0
NOISE[10:20] *= 30
X = VALUES + np.sqrt(NOISE) * RNG.normal(size=(N, D))
HOLES = np.where(RNG.random((N, D)) < 0.2, np.nan, X)
HOLES[4] = np.nan
OF_HOLES = np.where(np.isnan(HOLES), np.nan, NOISE)
ROOT = RNG.normal(size=(N, D, D)) * 0.4
MATRICES = ROOT @ ROOT.transpose(0, 2, 1)
MATRICES[:10] = 0


def model(covariance="full", k=K):
    return jaxem.Mixture(jaxem.Normal(covariance, missing=True), k=k)


def evidence(params, x, noise):
    """log p of every row (n,), by scipy's densities of the observed cells."""
    mean, covariance = np.asarray(params.components.mean), np.asarray(params.components.covariance)
    out = np.zeros(len(x))
    for i, row in enumerate(x):
        seen = ~np.isnan(row)
        if seen.any():
            at, terms = np.ix_(seen, seen), []
            for j in range(len(mean)):
                total = covariance[j] if covariance[j].ndim == 2 else np.diag(covariance[j])
                total = total + (noise[i] if noise.ndim == 3 else np.diag(noise[i]))
                terms.append(multivariate_normal(mean[j][seen], total[at]).pdf(row[seen]))
            out[i] = np.log(np.asarray(params.weights) @ terms)
    return out


START = jaxem.fit(model(), VALUES, key=3, max_iter=1, tol=0).params
CASES = {"cells": (HOLES, OF_HOLES), "matrices": (HOLES, MATRICES), "complete": (X, NOISE)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_steps_climb_the_likelihood_of_what_was_measured(case, covariance):
    x, noise = CASES[case]
    start = jaxem.fit(model(covariance), VALUES, key=3, max_iter=1, tol=0).params
    data, values = jaxem.Data(x, noise=noise), []
    for steps in range(6):
        fit = jaxem.fit(model(covariance), data, init=start, max_iter=steps, tol=0)
        values.append(float(fit.log_likelihood))
    assert (np.diff(values) > -1e-11).all() and values[-1] > values[0] + 1
    expected = evidence(fit.params, x, noise)
    np.testing.assert_allclose(fit.score_samples(data), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values[-1], expected.sum(), rtol=1e-11)


def test_no_noise_is_the_plain_fit_and_a_diagonal_matrix_its_diagonal():
    diagonal = NOISE[:, :, None] * np.eye(D)
    plain = jaxem.Mixture(jaxem.Normal(), k=K)
    pairs = [
        (model(), jaxem.Data(HOLES, noise=np.zeros((N, D))), model(), HOLES),
        (plain, jaxem.Data(X, noise=np.zeros((N, D))), plain, X),
        (model(), jaxem.Data(HOLES, noise=diagonal), model(), jaxem.Data(HOLES, noise=OF_HOLES)),
        (plain, jaxem.Data(X, noise=diagonal), model(), jaxem.Data(X, noise=NOISE)),
    ]
    for one, data, other, same in pairs:
        a = jaxem.fit(one, data, init=START, max_iter=15, tol=0)
        b = jaxem.fit(other, same, init=START, max_iter=15, tol=0)
        np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-12)
        for left, right in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-11)


def test_small_and_large_noise_lose_no_digits():
    """The M-step from noise 1e-9 and 1e9 times the variance, against extended precision."""
    x, mean = np.array([[0.3, -1.2]]), np.zeros((1, 2))
    cov = np.array([[[1.0, 0.4], [0.4, 2.0]]])
    params = jaxem.MixtureParams(np.ones(1), jaxem.NormalParams(mean, cov))
    bank = jaxem.Mixture(jaxem.Normal(), k=1)
    for noise in ([1e-9, 1e9], [1e9, 1e9], [1e-9, 1e-9], [1e9, 1e-9]):
        data = jaxem.Data(jnp.asarray(x), noise=jnp.asarray([noise]))
        q, _ = bank.posterior(params, data)
        stats = bank.statistics(params, data, q, jnp.ones(1)).components
        s, n, c = cov[0].astype(np.longdouble), np.diag(noise).astype(np.longdouble), x[0]
        t = s + n
        det = t[0, 0] * t[1, 1] - t[0, 1] ** 2
        inverse = np.array([[t[1, 1], -t[0, 1]], [-t[0, 1], t[0, 0]]]) / det
        shift = s @ inverse @ c
        spread = s - s @ inverse @ s
        np.testing.assert_allclose(stats.first[0], shift.astype(float), rtol=1e-7)
        second = (spread + np.outer(shift, shift)).astype(float)
        np.testing.assert_allclose(stats.second[0], second, rtol=1e-7)


def test_deconvolution_recovers_what_ignored_noise_inflates():
    """Within 4.5 standard errors; the negative control ignores the noise, and its variances are too
    large by the mean noise."""
    rng = np.random.default_rng(4)
    n = 4000
    covariance = np.array([[1.0, 0.6], [0.6, 1.5]])
    noise = rng.uniform(0.2, 3.0, (n, 2))
    x = rng.multivariate_normal([1.0, -2.0], covariance, n) + np.sqrt(noise) * rng.normal(
        size=(n, 2)
    )
    one = jaxem.Mixture(jaxem.Normal(), k=1)
    fit = jaxem.fit(one, jaxem.Data(x, noise=noise), key=0, tol=1e-9).raise_if_failed()
    found = np.asarray(fit.params.components.covariance[0])
    # Var of the estimate of Σ_jj from one row is 2 (Σ_jj + noise)², by information at the mean.
    information = (1 / (2 * (np.diag(covariance) + noise) ** 2)).sum(0)
    error = 1 / np.sqrt(information)
    assert (abs(np.diag(found) - np.diag(covariance)) < 4.5 * error).all()
    ignored = np.asarray(jaxem.fit(one, x, key=0).params.components.covariance[0])
    inflation = np.diag(ignored) - np.diag(covariance)
    assert (inflation > 10 * error).all()
    spread = np.sqrt(2 * ((np.diag(covariance) + noise) ** 2).mean(0) / n + noise.var(0) / n)
    assert (abs(inflation - noise.mean(0)) < 4.5 * spread).all()


def test_gradients_by_data_and_noise_are_finite_differences():
    one = jaxem.Mixture(jaxem.Normal(missing=True), k=1)
    rows = np.r_[0:4, 5:10, 20:50]
    x, noise = jnp.asarray(HOLES[rows]), jnp.asarray(OF_HOLES[rows])

    def quantity(x, noise):
        fit = jaxem.fit(one, jaxem.Data(x, noise=noise), key=0, tol=1e-13)
        return fit.params.components.covariance[0, 0, 1]

    slopes = [np.asarray(a) for a in jax.jit(jax.grad(quantity, (0, 1)))(x, noise)]
    assert all(np.isfinite(s).all() and (s[np.isnan(x)] == 0).all() for s in slopes)
    rng = np.random.default_rng(0)
    for which, slope in enumerate(slopes):
        step = rng.uniform(0, 1, size=x.shape)
        ends = []
        for h in (1e-4, -1e-4) if which == 0 else (2e-4, 0.0):
            moved = [x, noise]
            moved[which] = moved[which] + h * step
            ends.append(float(quantity(*moved)))
        reach = 2e-4
        expected = (ends[0] - ends[1]) / reach
        np.testing.assert_allclose((slope * step).sum(), expected, rtol=5e-3)


def test_errors_scores_and_draws():
    plain = jaxem.Mixture(jaxem.Normal(), k=K)
    with pytest.raises(ValueError, match=r"data.noise must have shape \(60, 3\)"):
        jaxem.fit(plain, jaxem.Data(X, noise=NOISE[:, :2]), key=0)
    negative = NOISE.copy()
    negative[3, 1] = -1
    with pytest.raises(ValueError, match=r"data.noise holds 1 value .* variances"):
        jaxem.fit(plain, jaxem.Data(X, noise=negative), key=0)
    crooked = MATRICES.copy()
    crooked[12, 0, 1] += 1
    with pytest.raises(ValueError, match="no covariance in 1 of 60 rows, first in row 12"):
        jaxem.fit(plain, jaxem.Data(X, noise=crooked), key=0)
    for components in (jaxem.StudentT(), jaxem.Poisson()):
        with pytest.raises(ValueError, match=r"data\.noise is given"):
            jaxem.fit(jaxem.Mixture(components, k=1), jaxem.Data(abs(X), noise=NOISE), key=0)
    fit = jaxem.fit(plain, jaxem.Data(X, noise=NOISE), init=START, max_iter=3, tol=0)
    of_values = evidence(fit.params, VALUES, np.zeros((N, D)))
    np.testing.assert_allclose(fit.score_samples(VALUES), of_values, rtol=1e-9)
    assert fit.predict(jaxem.Data(X, noise=NOISE)).shape == (N,)
    filled = jaxem.fit(model(), jaxem.Data(HOLES, noise=OF_HOLES), init=START, max_iter=2, tol=0)
    draws = filled.impute(jaxem.Data(HOLES, noise=OF_HOLES), draws=3, key=0)
    assert draws.shape == (3, N, D) and np.isfinite(draws).all()
