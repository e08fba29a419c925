"""Intervals cover the truth as often as they say, and a wrong model shows where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

pytestmark = pytest.mark.slow
FITS = 2000


def bits(p):
    return jaxem.BernoulliParams(jnp.asarray(p))


CASES = {
    "normal": (
        jaxem.Mixture(jaxem.Normal("diagonal"), 2),
        jaxem.NormalParams(jnp.array([[0.0], [5.0]]), jnp.array([[1.0], [2.0]])),
        400,
    ),
    "poisson": (
        jaxem.Mixture(jaxem.Poisson(), 2),
        jaxem.PoissonParams(jnp.array([[2.0], [11.0]])),
        400,
    ),
    "bernoulli": (
        jaxem.Mixture(jaxem.Bernoulli(), 2),
        bits([[0.8, 0.7, 0.8, 0.7, 0.8, 0.75], [0.2, 0.3, 0.15, 0.2, 0.3, 0.2]]),
        600,
    ),
}


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def fits_to_draws(model, truth, n):
    """(data (FITS, n, d), the fits of them, each from the true params)."""
    keys = jax.random.split(jax.random.key(0), FITS)
    data = np.asarray(jax.vmap(lambda key: model.sample(key, truth, n))(keys), float)
    init = jax.tree.map(lambda a: np.broadcast_to(a, (FITS, *a.shape)), truth)
    return data, jaxem.fit(model, jaxem.Batch(data), init=init, tol=1e-9)


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize("name", CASES)
def test_intervals_cover(name):
    """Of 2,000 fits 93 to 97 % of the intervals of every param by the observed information, and by
    a bootstrap of 99 refits; the standard error of a share is 0.5 %."""
    model, components, n = CASES[name]
    truth = jaxem.MixtureParams(jnp.array([0.4, 0.6]), components)
    data, fleet = fits_to_draws(model, truth, n)
    assert np.mean(fleet.converged) == 1
    covered = {"observed": [], "bootstrap": []}
    for i, result in enumerate(fleet):
        found = {
            "observed": result.standard_errors(data[i]).interval(),
            "bootstrap": jaxem.bootstrap(result, data[i], 99, key=i).interval(),
        }
        for method, (low, high) in found.items():
            covered[method].append((flat(low) <= flat(truth)) & (flat(truth) <= flat(high)))
    for method, inside in covered.items():
        share = np.mean(inside, axis=0)
        assert (share > 0.93).all() and (share < 0.97).all(), (method, share)


def test_only_the_sandwich_covers_where_the_model_is_wrong():
    """Counts with three times the variance of a Poisson variable."""
    rng, n, mean = np.random.default_rng(0), 300, 4.0
    model = jaxem.Mixture(jaxem.Poisson(), 1)
    data = rng.negative_binomial(2, 2 / (2 + mean), (FITS, n, 1)).astype(float)
    fleet = jaxem.fit(model, jaxem.Batch(data), key=0)
    covered = {"observed": [], "sandwich": []}
    for i, result in enumerate(fleet):
        for method, inside in covered.items():
            low, high = result.standard_errors(data[i], method=method).interval()
            inside.append(low.components.rate[0, 0] <= mean <= high.components.rate[0, 0])
    assert 0.93 < np.mean(covered["sandwich"]) < 0.97
    assert np.mean(covered["observed"]) < 0.8  # P(|z| < 1.96/√3) = .74
