"""Standard errors: weights as repetitions, bounds, what is not identified, functions, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from scipy.special import gammaln

import jaxem

RNG = np.random.default_rng(3)
X = np.concatenate([RNG.normal(0.0, 1.0, (60, 1)), RNG.normal(4.0, 1.5, (40, 1))])
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), k=2)


@pytest.fixture(scope="module")
def fitted():
    return jaxem.fit(MODEL, X, key=0, restarts=2, tol=1e-12)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def log_likelihood(v, x):
    """Of two normals, from (weight 0, means, variances)."""
    p, *rest = v
    means, variances = np.array(rest[:2]), np.array(rest[2:])
    each = np.exp(-0.5 * (x - means) ** 2 / variances) / np.sqrt(2 * np.pi * variances)
    return np.log(each @ np.array([p, 1 - p]))


def differences(function, v, step):
    """Derivatives of a function along every axis of v, by central differences."""
    shift = step * np.eye(len(v))
    return np.stack([(function(v + s) - function(v - s)) / (2 * step) for s in shift])


@pytest.fixture(scope="module")
def by_differences(fitted):
    """(Hessian, scores (5, n)) of the log-likelihood in natural params, by differences."""
    p = fitted.params
    v = np.concatenate([flat(p.weights)[:1], flat(p.components)])

    def slope(v):
        return differences(lambda u: log_likelihood(u, X).sum(), v, 1e-5)

    hessian = differences(slope, v, 1e-4)
    return (hessian + hessian.T) / 2, differences(lambda u: log_likelihood(u, X), v, 1e-6)


@pytest.mark.parametrize("method", ["observed", "sandwich", "empirical"])
def test_errors_are_those_of_differences_of_the_density(fitted, by_differences, method):
    hessian, scores = by_differences
    inverse, outer = np.linalg.inv(-hessian), scores @ scores.T
    expected = {
        "observed": inverse,
        "sandwich": inverse @ outer @ inverse,
        "empirical": np.linalg.inv(outer),
    }[method]
    found = fitted.standard_errors(X, method=method)
    order = [found.coordinates.index(name) for name in found.names if name != "weights[1]"]
    # Differences of step 1e-4 of slopes with rounding 1e-16·|ℓ|/1e-5 leave 1e-5 of a Hessian of 1.
    np.testing.assert_allclose(
        found.covariance[np.ix_(order, order)],
        expected,
        rtol=2e-4,
        atol=2e-5 * np.abs(expected).max(),
    )
    errors = flat(found.errors)
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-9)  # of w and of 1 − w
    np.testing.assert_allclose(errors[1:], np.sqrt(np.diag(expected)), rtol=1e-4)
    assert len(found.coordinates) == fitted.n_parameters and not found.notes


def test_weights_are_repetitions_and_clusters_of_copies_are_one_unit(fitted):
    weights = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    rows = np.repeat(X, weights.astype(int), 0)
    start = fitted.params
    weighted = jaxem.fit(MODEL, X, init=start, weights=weights, tol=1e-12)
    repeated = jaxem.fit(MODEL, rows, init=start, tol=1e-12)
    for method in ("observed", "sandwich"):
        a = weighted.standard_errors(X, weights, method=method)
        b = repeated.standard_errors(rows, method=method)
        np.testing.assert_allclose(flat(a.errors), flat(b.errors), rtol=1e-6)
    both = np.repeat(X, 2, 0)
    names = np.repeat(np.arange(len(X)), 2)
    copies = fitted.standard_errors(both, method="sandwich", cluster=names)
    plain = fitted.standard_errors(X, method="sandwich")
    np.testing.assert_allclose(flat(copies.errors), flat(plain.errors), rtol=1e-8)
    alone = fitted.standard_errors(both, method="sandwich")
    np.testing.assert_allclose(flat(alone.errors), flat(plain.errors) / np.sqrt(2), rtol=1e-8)


def test_functions_of_params_and_intervals(fitted):
    found = fitted.standard_errors(X)
    gap = fitted.standard_errors(X, of=lambda p: p.components.mean[1] - p.components.mean[0])
    at = [found.coordinates.index(f"components.mean[{j}, 0]") for j in (0, 1)]
    part = found.covariance[np.ix_(at, at)]
    expected = np.sqrt(part[0, 0] + part[1, 1] - 2 * part[0, 1])
    np.testing.assert_allclose(gap.errors, [expected], rtol=1e-8)
    low, high = gap.interval()
    np.testing.assert_allclose(high - low, 2 * 1.959964 * gap.errors, rtol=1e-6)
    low, high = found.interval(0.9)
    odds = np.log(flat(fitted.params)[0] / flat(fitted.params)[1])
    wide = 1.644854 * found.errors.weights[0] / np.prod(fitted.params.weights)
    expected = 1 / (1 + np.exp(-(odds - wide)))
    np.testing.assert_allclose(low.weights[0], expected, rtol=1e-5)
    np.testing.assert_allclose(low.weights[0], 1 - high.weights[1], rtol=1e-9)
    natural = found.interval(scale="natural")
    np.testing.assert_allclose(
        natural[0].weights[0] + natural[1].weights[0], 2 * fitted.params.weights[0]
    )
    assert "weights[0]" in str(found) and "95%" in str(found)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        found.interval(95)
    with pytest.raises(ValueError, match="scale must be one of"):
        found.interval(scale="percentile")


def test_offsets_and_float32_keep_the_digits(fitted):
    shifted = jaxem.fit(MODEL, X + 1e7, key=0, restarts=2, tol=1e-12)
    expected = flat(fitted.standard_errors(X).errors)
    order = np.argsort(flat(fitted.params.components.mean))
    again = np.argsort(flat(shifted.params.components.mean))
    errors = shifted.standard_errors(X + 1e7).errors.components.mean[again, 0]
    # The data are known to 1e7·1e-16 of a unit.
    np.testing.assert_allclose(errors, expected[2:4][order], rtol=1e-5)
    small = X.astype(np.float32)
    low = jaxem.fit(MODEL, small, init=jax.tree.map(np.float32, fitted.params))
    found = low.standard_errors(small)
    assert found.errors.weights.dtype == np.float64
    np.testing.assert_allclose(flat(found.errors), expected, rtol=0.02)  # tol is 1e-6 a unit


def test_initial_probabilities_of_a_stationary_chain_are_a_function_of_its_transitions():
    """Against the Hessian of the log-likelihood by differences, and the delta method."""
    rng = np.random.default_rng(0)
    stays, rows = np.array([0.8, 0.6]), []
    state = rng.integers(2, size=20)
    for _ in range(15):
        rows.append(rng.poisson(np.array([1.0, 8.0])[state]))
        state = np.where(rng.uniform(size=20) < stays[state], state, 1 - state)
    counts = np.stack(rows, 1).astype(float)
    x = jaxem.Sequences([row[:, None] for row in counts])
    model = jaxem.HMM(jaxem.Poisson(), 2, initial="stationary")
    result = jaxem.fit(model, x, key=0, tol=1e-12)

    def initial(v):
        return np.array([1 - v[1], 1 - v[0]]) / (2 - v[0] - v[1])

    def log_likelihood(v):
        transition = np.array([[v[0], 1 - v[0]], [1 - v[1], v[1]]])
        density = counts[..., None] * np.log(v[2:]) - v[2:] - gammaln(counts + 1)[..., None]
        alpha, total = initial(v) * np.exp(density[:, 0]), 0.0
        for t in range(1, counts.shape[1]):
            total += np.log(alpha.sum(1))
            alpha = alpha / alpha.sum(1, keepdims=True) @ transition * np.exp(density[:, t])
        return np.sum(total + np.log(alpha.sum(1)))

    p = result.params
    v = np.concatenate([np.diagonal(p.transition), np.ravel(p.emissions.rate)])
    np.testing.assert_allclose(log_likelihood(v), result.log_likelihood, rtol=1e-12)
    hessian = differences(lambda u: differences(log_likelihood, u, 1e-4), v, 1e-4)
    covariance, slope = np.linalg.inv(-hessian), differences(initial, v, 1e-6)[:, 0]
    found = result.standard_errors(x)
    errors = np.sqrt(np.diag(covariance))
    expected = [np.sqrt(slope @ covariance @ slope)] * 2 + np.repeat(errors[:2], 2).tolist()
    # Differences of slopes with rounding 1e-13/1e-4 leave 1e-5 of a Hessian of 1.
    np.testing.assert_allclose(flat(found.errors), [*expected, *errors[2:]], rtol=1e-4)
    assert not found.notes and len(found.coordinates) == result.n_parameters


def test_a_bound_has_no_error_and_the_others_have_theirs():
    counts = np.array([0.0, 1, 2, 3, 4])[:, None]
    weights = np.array([80.0, 0, 0, 30, 20])
    # The first component fits the zeros alone: its rate is 0.
    start = jaxem.MixtureParams(np.array([0.5, 0.5]), jaxem.PoissonParams(np.array([[0.1], [3.0]])))
    model = jaxem.Mixture(jaxem.Poisson(), k=2)
    result = jaxem.fit(model, counts, init=start, weights=weights, tol=1e-12, max_iter=20_000)
    found = result.standard_errors(counts, weights)
    assert np.isnan(found.errors.components.rate[0, 0])
    assert "components.rate[0, 0]" in found.notes[0] and "bound" in found.notes[0]
    p, rate = float(result.params.weights[0]), float(result.params.components.rate[1, 0])

    def zero_inflated(v):
        zero = np.log(v[0] + (1 - v[0]) * np.exp(-v[1]))
        rest = np.log(1 - v[0]) - v[1] + np.log(v[1]) * counts[1:, 0]
        return weights[0] * zero + weights[1:] @ rest

    def slope(v):
        return differences(zero_inflated, v, 1e-5)

    inverse = np.linalg.inv(-differences(slope, np.array([p, rate]), 1e-4))
    both = [found.errors.weights[0], found.errors.components.rate[1, 0]]
    np.testing.assert_allclose(both, np.sqrt(np.diag(inverse)), rtol=1e-4)


def test_what_the_data_do_not_identify_has_no_error():
    rng = np.random.default_rng(5)
    bits = (rng.uniform(size=(400, 1)) < 0.3).astype(float)
    model = jaxem.Mixture(jaxem.Bernoulli(), k=2)  # one cell says nothing about two components
    result = jaxem.fit(model, bits, key=0, tol=1e-12)
    found = result.standard_errors(bits)
    assert np.isnan(flat(found.errors)).all() and "not identified" in found.notes[-1]
    chance = result.standard_errors(bits, of=lambda p: p.weights @ p.components.probs[:, 0])
    p = bits.mean()
    np.testing.assert_allclose(chance.errors, np.sqrt(p * (1 - p) / 400), rtol=1e-6)
    numbers = result.standard_errors(bits, pinv=True)
    assert np.isfinite(flat(numbers.errors)).all()


def test_rotations_of_loadings_have_no_error_but_covariances_have_that_of_a_normal():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 4)) + rng.normal(size=(300, 2)) @ rng.normal(size=(2, 4)) * 1.5
    # 11 params for the 10 of a covariance: a direction is free beside the rotation.
    result = jaxem.fit(jaxem.Mixture(jaxem.Factors(2), k=1), x, key=0, tol=1e-13)
    found = result.standard_errors(x)
    assert np.isnan(found.errors.components.loadings).all()
    assert np.isfinite(found.errors.components.mean).all()

    def implied(p):
        c = p.components
        return c.loadings[0] @ c.loadings[0].T + jnp.diag(c.noise[0])

    of_factors = result.standard_errors(x, of=implied)
    normal = jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=1), x, key=0, tol=1e-13)
    of_normal = normal.standard_errors(x)
    np.testing.assert_allclose(
        of_factors.estimates, normal.params.components.covariance[0], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        of_factors.errors, of_normal.errors.components.covariance[0], rtol=1e-4
    )


@dataclasses.dataclass(frozen=True)
class Halves(jaxem.Model):
    """A normal with the mean a + b, of which only the sum is identified, with spaces or without."""

    declared: bool = True

    def init(self, key, x, weights):
        mean = weights @ x[:, 0] / weights.sum()
        return {"a": mean / 3, "b": mean * 2 / 3, "v": jnp.ones(())}

    def posterior(self, params, x):
        away = x[:, 0] - params["a"] - params["b"]
        return None, -0.5 * (away**2 / params["v"] + jnp.log(2 * jnp.pi * params["v"]))

    def statistics(self, params, x, q, weights):
        return jnp.stack([weights.sum(), weights @ x[:, 0], weights @ x[:, 0] ** 2])

    def maximize(self, params, stats):
        mean = stats[1] / stats[0]
        return {"a": mean / 3, "b": mean * 2 / 3, "v": stats[2] / stats[0] - mean**2}

    def spaces(self, params):
        if not self.declared:
            return super().spaces(params)
        return {"a": jaxem.spaces.REAL, "b": jaxem.spaces.REAL, "v": jaxem.spaces.POSITIVE}


def test_own_models():
    result = jaxem.fit(Halves(), X, key=0, tol=1e-12)
    found = result.standard_errors(X)
    assert np.isnan(found.errors["a"]) and np.isnan(found.errors["b"])
    variance = X.var()
    np.testing.assert_allclose(found.errors["v"], variance * np.sqrt(2 / len(X)), rtol=1e-6)
    both = result.standard_errors(X, of=lambda p: p["a"] + p["b"])
    np.testing.assert_allclose(both.errors, np.sqrt(variance / len(X)), rtol=1e-6)
    with pytest.raises(TypeError, match="declares no spaces"):
        jaxem.fit(Halves(False), X, key=0).standard_errors(X)


def test_refusals(fitted):
    with pytest.raises(TypeError, match="only a bound on its log-likelihood"):
        documents = jaxem.Documents(np.ones((4, 5), int))
        jaxem.fit(jaxem.LDA(2), documents, key=0).standard_errors(documents)
    with pytest.raises(TypeError, match="whose spread is their uncertainty"):
        jaxem.fit(jaxem.BayesianMixture(jaxem.Normal("diagonal"), 2), X, key=0).standard_errors(X)
    with pytest.raises(ValueError, match=r"method must be one of .* did you mean 'observed'"):
        fitted.standard_errors(X, method="observd")
    with pytest.raises(ValueError, match="cluster adds up scores"):
        fitted.standard_errors(X, cluster=np.arange(len(X)))
    with pytest.raises(ValueError, match="cluster must name one cluster a unit"):
        fitted.standard_errors(X, method="sandwich", cluster=np.arange(3))
    with pytest.raises(TypeError, match="call standard_errors outside"):
        jax.jit(lambda x: fitted.standard_errors(x).covariance)(X)
    with pytest.raises(TypeError, match=r"result\[i\].standard_errors"):
        batch = jaxem.fit(MODEL, jaxem.Batch(np.stack([X, X])), key=0)
        batch.standard_errors(np.stack([X, X]))
    early = jaxem.fit(MODEL, X, init=_away(fitted.params), tol=0, max_iter=0)
    with pytest.warns(jaxem.FitWarning, match="standard errors from the maximum|no maximum"):
        early.standard_errors(X)


def _away(params):
    mean = params.components.mean + 0.4
    components = dataclasses.replace(params.components, mean=mean)
    return dataclasses.replace(params, components=components)


MODELS = zoo.MODELS | zoo.REGRESSIONS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_errors_or_says_why(name):
    model, x = MODELS[name]
    result = jaxem.fit(model, x, key=0, restarts=4, tol=1e-10, max_iter=5000)
    if name == "each":
        with pytest.raises(TypeError, match="declares no spaces"):
            result.standard_errors(x)
        return
    found = result.standard_errors(x)
    errors = flat(found.errors)
    assert found.notes or len(found.coordinates) == result.n_parameters
    assert np.isfinite(errors).all() or found.notes
    assert (errors[np.isfinite(errors)] >= 0).all()
    values = np.linalg.eigvalsh(found.covariance)
    assert (values > 0).all()


@pytest.mark.slow
def test_covariances_with_common_parts():
    """VEI, Σ_k = λ_k diag(a) with |diag(a)| = 1, by its own coordinates."""
    x = jnp.asarray(zoo.REAL)
    result = jaxem.fit(jaxem.Mixture(jaxem.Normal("VEI"), 2), zoo.REAL, key=0, tol=1e-13)

    def parts(v):
        shape = jnp.append(v[9:11], -v[9:11].sum())
        weights = jax.nn.softmax(jnp.append(v[:1], 0.0))
        return weights, v[1:7].reshape(2, 3), jnp.exp(v[7:9, None] + shape)

    def total(v):
        weights, mean, variance = parts(v)
        away = (x[:, None] - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return jax.nn.logsumexp(jnp.log(weights) - 0.5 * away.sum(-1), axis=1).sum()

    p = result.params
    log = jnp.log(p.components.covariance)
    v = jnp.concatenate(
        [
            jnp.log(p.weights[:1] / p.weights[1]),
            p.components.mean.ravel(),
            log.mean(1),
            (log - log.mean(1, keepdims=True))[0, :2],
        ]
    )
    inverse = jnp.linalg.inv(-jax.hessian(total)(v))
    slope = jnp.concatenate([jax.jacobian(lambda v, i=i: parts(v)[i].ravel())(v) for i in range(3)])
    expected = jnp.sqrt(jnp.diag(slope @ inverse @ slope.T))
    found = result.standard_errors(zoo.REAL)
    np.testing.assert_allclose(flat(found.errors), expected, rtol=1e-4)
