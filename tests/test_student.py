"""Student's t in four structures of the scale, against scipy and direct maximisation."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_t

import jaxem

D, K = 2, 2
RNG = np.random.default_rng(5)
DATA = RNG.standard_t(4, (80, D)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
DATA[:30] += [2.5, -2.0]
STRUCTURES = ["full", "tied", "diagonal", "spherical"]


def matrices(scale):
    """The scales (K, D, D) of any structure."""
    scale = np.asarray(scale)
    if scale.shape == (K,):
        return scale[:, None, None] * np.eye(D)
    return np.broadcast_to(scale, (K, D, D))


def unpacked(vector, structure):
    """Weights, means, scales (K, D, D) and degrees of freedom of free parameters."""
    split = np.exp(np.array([0.0, vector[0]]))
    mean, df = vector[1:5].reshape(K, D), 0.1 + np.exp(vector[5:7])
    if structure == "spherical":
        scale = np.exp(vector[7:9])[:, None, None] * np.eye(D)
    elif structure == "diagonal":
        scale = np.exp(vector[7:11]).reshape(K, D)[:, :, None] * np.eye(D)
    else:
        factors = np.zeros((K, D, D))
        entries = vector[7:].reshape(-1, 3)
        factors[:, [0, 1, 1], [0, 0, 1]] = entries
        scale = factors @ factors.swapaxes(1, 2) + 1e-9 * np.eye(D)
    return split / split.sum(), mean, scale, df


def log_likelihood(weights, mean, scale, df):
    densities = [multivariate_t(m, s, v).pdf(DATA) for m, s, v in zip(mean, scale, df, strict=True)]
    return np.log(weights @ np.array(densities)).sum()


@pytest.fixture(scope="module")
def fits():
    return {
        name: jaxem.fit(
            jaxem.Mixture(jaxem.StudentT(covariance=name), K), DATA, key=0, restarts=4, tol=1e-12
        )
        for name in STRUCTURES
    }


@pytest.mark.parametrize("name", STRUCTURES)
def test_density_and_maximum(fits, name):
    """The density is scipy's, and a quasi-Newton climb from the fit gains nothing."""
    result = fits[name]
    params, bank = result.params, result.params.components
    shape = {"full": (K, D, D), "tied": (D, D), "diagonal": (K, D), "spherical": (K,)}[name]
    assert result.converged and bank.scale.shape == shape
    scales = np.asarray(bank.scale)[:, :, None] * np.eye(D) if name == "diagonal" else bank.scale
    scales = matrices(scales)
    at_fit = log_likelihood(np.asarray(params.weights), bank.mean, scales, bank.df)
    np.testing.assert_allclose(result.log_likelihood, at_fit, rtol=1e-12)

    start = [np.log(params.weights[1] / params.weights[0]), *np.ravel(bank.mean)]
    start += [*np.log(np.asarray(bank.df) - 0.1 + 1e-12)]
    if shape[-1:] == (D,) and name in ("full", "tied"):
        factors = np.linalg.cholesky(np.asarray(bank.scale)).reshape(-1, D, D)
        start += [*factors[:, [0, 1, 1], [0, 0, 1]].ravel()]
    else:
        start += [*np.log(np.ravel(bank.scale))]
    climb = minimize(lambda v: -log_likelihood(*unpacked(v, name)), np.array(start), method="BFGS")
    assert -climb.fun <= at_fit + 1e-6

    family = jaxem.Normal(name)
    of_scale = family.n_parameters(jaxem.NormalParams(bank.mean, bank.scale))
    assert result.n_parameters == K - 1 + of_scale + K


def test_structures_are_nested(fits):
    """A structure with fewer parameters is not likelier."""
    found = {name: float(fits[name].log_likelihood) for name in STRUCTURES}
    assert found["spherical"] <= found["diagonal"] <= found["full"]
    assert found["tied"] <= found["full"]


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_normal_limit(name):
    """Many degrees of freedom give the normal fit of the structure, to the order of 1/df."""
    start = jaxem.fit(jaxem.Mixture(jaxem.Normal(name), K), DATA, key=0)
    student = jaxem.Mixture(jaxem.StudentT(df=1e9, covariance=name), K)
    normal = start.params.components
    bank = jaxem.StudentTParams(normal.mean, normal.covariance, jnp.full(K, 1e9))
    init = jaxem.MixtureParams(start.params.weights, bank)
    result = jaxem.fit(student, DATA, init=init)
    np.testing.assert_allclose(result.log_likelihood, start.log_likelihood, atol=1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_never_lowers_the_likelihood(name):
    """From 200 random starts each, by plain EM with free and given degrees of freedom."""
    rng = np.random.default_rng(11)
    x = rng.standard_t(rng.uniform(1, 30, (200, 1, 1)), (200, 40, D)) * rng.uniform(
        0.3, 3, (200, 1, D)
    )
    x[:, :15] += rng.normal(0, 2, (200, 1, D))
    for df in (None, np.array([2.0, 20.0])):
        model = jaxem.Mixture(jaxem.StudentT(df=df, covariance=name), K)
        options = {"method": jaxem.EM(accelerator=None), "max_iter": 60, "key": 0}
        with pytest.warns(jaxem.FitWarning):
            statuses = np.asarray(jaxem.fit(model, jaxem.Batch(x), **options).status)
        assert not np.any(statuses == jaxem.Status.DECREASED)


def test_another_structure():
    with pytest.raises(ValueError, match=r"covariance must be one of 'full', .*got 'VEV'"):
        jaxem.StudentT(covariance="VEV")
