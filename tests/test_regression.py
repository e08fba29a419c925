"""Regressions: against scipy's densities, in other units, with priors, and at their limits."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from slopes import difference, inner

import jaxem
from jaxem.families.regression.regression import RESPONSES
from jaxem.numerics.tree import merge, split

N, P = 60, 2
FAMILIES = list(RESPONSES)
SELDOM = pytest.param("negative_binomial", marks=pytest.mark.slow)
RNG = np.random.default_rng(3)
X = np.c_[RNG.uniform(-1, 1, N), RNG.uniform(0, 3, N)]
OFFSET = RNG.uniform(-0.3, 0.3, N)
TRIALS = RNG.integers(3, 12, N)
GROUP = RNG.integers(2, size=N)
WEIGHTS = RNG.integers(0, 3, N)


def dispersed(family):
    return family in ("normal", "gamma", "negative_binomial")


def response(family, seed=0):
    """Responses of two components."""
    rng = np.random.default_rng(seed)
    slopes = np.array([[0.5, 1.0, 0.4], [1.5, -1.2, -0.3]])[GROUP]
    eta = slopes[:, 0] + (X * slopes[:, 1:]).sum(1) + OFFSET
    mean = np.exp(eta)
    return {
        "normal": lambda: eta + 0.2 * rng.normal(size=N),
        "poisson": lambda: rng.poisson(3 * mean),
        "binomial": lambda: rng.binomial(TRIALS, 1 / (1 + np.exp(-2 * eta))),
        "gamma": lambda: mean * rng.gamma(8.0, size=N) / 8,
        "negative_binomial": lambda: rng.poisson(4 * mean * rng.gamma(5.0, size=N) / 5),
    }[family]()


def data_of(family, x=X, rows=slice(None)):
    trials = TRIALS[rows] if family == "binomial" else None
    return jaxem.Data(x[rows], response(family)[rows], offset=OFFSET[rows], trials=trials)


def log_density(family, b, dispersion, data):
    """log p(y | x) of one component, by scipy."""
    eta = b[0] + data.x @ b[1:] + data.offset
    y, mean = data.y, np.exp(np.clip(eta, -50, 50))
    if family == "normal":
        return stats.norm.logpdf(y, eta, np.sqrt(dispersion))
    if family == "poisson":
        return stats.poisson.logpmf(y, mean)
    if family == "binomial":
        return stats.binom.logpmf(y, data.trials, mean / (1 + mean))
    if family == "gamma":
        return stats.gamma.logpdf(y, 1 / dispersion, scale=mean * dispersion)
    return stats.nbinom.logpmf(y, 1 / dispersion, 1 / (1 + mean * dispersion))


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jaxem.fit(*args, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_the_plain_glm(family):
    """The maximum of Σ w log p by scipy, with offsets, trials, and weights as repetitions."""
    data, m = data_of(family), 1 + P
    repeated = jax.tree.map(lambda a: np.repeat(a, WEIGHTS, axis=0), data)

    def loss(v):
        dispersion = np.exp(v[m]) if dispersed(family) else None
        return -log_density(family, v[:m], dispersion, repeated).sum()

    start = np.zeros(m + dispersed(family))
    best = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-7})
    model = jaxem.Mixture(jaxem.Regression(family), k=1)
    result = jaxem.fit(model, data, key=0, weights=WEIGHTS, tol=1e-12)
    assert result.converged and result.n_parameters == start.size
    np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-9)
    bank = result.params.components
    np.testing.assert_allclose(bank.coefficients[0], best.x[:m], rtol=1e-4, atol=1e-5)
    if dispersed(family):
        np.testing.assert_allclose(bank.dispersion[0], np.exp(best.x[m]), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["free", "shared, with a prior"])
def test_m_step_never_lowers_the_expected_log_likelihood(family, form):
    """At 300 random params, weights and responses, far from any optimum."""
    is_free = form == "free"
    prior = None if is_free else jaxem.CoefficientPrior(jnp.array([0.0, 0.7, 2.0]), 0.5)
    bank = jaxem.Regression(family, shared=() if is_free else (0,), prior=prior)
    n, k = 12, 2

    def gain(key):
        keys = jax.random.split(key, 8)
        x = jax.random.uniform(keys[0], (n, P), minval=-1, maxval=1)
        data = jaxem.Data(x, trials=jnp.full(n, 5) if family == "binomial" else None)
        sizes = jnp.exp(jax.random.uniform(keys[1], (2,), minval=-1, maxval=2))
        true, old = jax.random.normal(keys[2], (2, k, 1 + P)) * sizes[:, None, None]
        dispersion = jnp.exp(3 * jax.random.normal(keys[3], (2, k)))
        old = old if is_free else old.at[:, 1].set(old[0, 1])
        params = [jaxem.RegressionParams(true, dispersion[0] if dispersed(family) else None)]
        params += [jaxem.RegressionParams(old, dispersion[1] if dispersed(family) else None)]
        z = jax.random.randint(keys[4], (n,), 0, k)
        y = jnp.clip(bank.sample_response(keys[5], params[0], data, z), -1e9, 1e9)
        y = jnp.maximum(y, 1e-12) if family == "gamma" else y
        data = dataclasses.replace(data, y=y)
        r = jax.random.dirichlet(keys[6], jnp.ones(k), (n,))

        def expected(params):
            density = bank.posterior(params, data)[1]
            return (r * density).sum() + bank.log_prior(params), jnp.abs(r * density).sum()

        new = bank.maximize(params[1], bank.statistics(params[1], data, None, r))
        (before, size), (after, other_size) = expected(params[1]), expected(new)
        is_equal = jnp.all(is_free | (new.coefficients[:, 1] == new.coefficients[0, 1]))
        return (after - before) / (size + other_size), is_equal

    gains, are_equal = jax.jit(jax.vmap(gain))(jax.random.split(jax.random.key(1), 300))
    assert np.all(np.asarray(gains) > -1e-12) and np.median(gains) > 1e-3
    assert np.all(are_equal)


MIXED = {
    "normal": {"prior": 3.0},
    "poisson": {"shared": (1,)},
    "binomial": {"prior": 0.5, "shared": (1,)},
    "gamma": {"prior": jaxem.CoefficientPrior(np.array([1.0, 4.0, 2.0]), 0.5)},
    "negative_binomial": {"shared": (0,), "prior": jaxem.CoefficientPrior(2.0, 0.3)},
}


def objective(family, options, w, b, dispersion, data):
    """The log-likelihood of two components with the log prior, by scipy."""
    logs = np.stack([log_density(family, b[j], dispersion[j], data) for j in range(2)])
    value = np.log((w[:, None] * np.exp(logs)).sum(0)).sum()
    prior, shared = options.get("prior"), [1 + c for c in options.get("shared", ())]
    if prior is None:
        return value
    if not isinstance(prior, jaxem.CoefficientPrior):
        prior = jaxem.CoefficientPrior(np.array([0.0, prior, prior]))
    precision, mean = np.broadcast_to(prior.precision, 3), np.broadcast_to(prior.mean, 3)
    for j in range(3):
        if precision[j] > 0:
            values = b[:1, j] if j in shared else b[:, j]
            value += stats.norm.logpdf(values, mean[j], precision[j] ** -0.5).sum()
    return value


@pytest.mark.parametrize("family", [*FAMILIES[:-1], SELDOM])
def test_a_fit_maximises_the_penalised_likelihood(family):
    """The objective is scipy's, and its slope is 0, also by shared coefficients."""
    options, data = MIXED[family], data_of(family)
    shared = [1 + c for c in options.get("shared", ())]
    model = jaxem.Mixture(jaxem.Regression(family, **options), k=2)
    result = jaxem.fit(model, data, key=1, restarts=3, tol=1e-13, max_iter=5000)
    bank = result.params.components
    b = np.asarray(bank.coefficients)
    assert result.converged and np.all(b[0, shared] == b[1, shared])
    assert result.n_parameters == 1 + 6 - len(shared) + 2 * dispersed(family)

    def value(v):
        b = v[:6].reshape(2, 3).copy()
        b[1, shared] = b[0, shared]
        w = np.array([v[6], 1 - v[6]])
        return objective(family, options, w, b, v[7:] if dispersed(family) else [None] * 2, data)

    end = np.r_[b.ravel(), result.params.weights[0], bank.dispersion if dispersed(family) else []]
    np.testing.assert_allclose(result.objective, value(end), rtol=1e-10)
    slope = optimize.approx_fprime(end, value, 1e-6)
    assert np.abs(slope).max() < 2e-2
    best = optimize.minimize(
        lambda v: -value(v), end, method="Nelder-Mead", options={"maxiter": 300}
    )
    assert -best.fun <= result.objective + 1e-7


@pytest.mark.parametrize("family", ["normal", SELDOM])
def test_units_do_not_matter(family):
    """Regressors (and normal responses) with large offsets and other scales, in both precisions."""
    data = data_of(family)
    model = jaxem.Mixture(jaxem.Regression(family), k=2)
    plain = jaxem.fit(model, data, key=1, restarts=4, tol=1e-12)
    moved = dataclasses.replace(data, x=data.x * [1000.0, 0.01] + [1e6, -5.0])
    volume = 0.0
    if family == "normal":
        moved = dataclasses.replace(moved, y=1000 * data.y + 7e5, offset=1000 * data.offset)
        volume = N * np.log(1000.0)
    result = jaxem.fit(model, moved, key=1, restarts=4, tol=1e-12)
    np.testing.assert_allclose(result.log_likelihood + volume, plain.log_likelihood, rtol=1e-9)
    scale = 1000.0 if family == "normal" else 1.0
    order = np.argsort(result.params.components.coefficients[:, 1])
    plain_order = np.argsort(plain.params.components.coefficients[:, 1])
    slopes = (
        plain.params.components.coefficients[plain_order, 1:] * scale / np.array([1000.0, 0.01])
    )
    np.testing.assert_allclose(result.params.components.coefficients[order, 1:], slopes, rtol=1e-4)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), data)
    single = jaxem.fit(model, single, init=plain.params)
    assert single.params.weights.dtype == np.float32
    np.testing.assert_allclose(single.log_likelihood, plain.log_likelihood, rtol=2e-5)


@pytest.mark.parametrize("family", ["normal", SELDOM])
def test_gradient_of_a_fit(family):
    """By data, weights and prior, against differences."""
    data = data_of(family)
    prior = jaxem.CoefficientPrior(np.array([0.0, 1.0, 1.0]))
    prior = prior if family == "normal" else None
    model = jaxem.Mixture(jaxem.Regression(family, prior=prior), k=2)
    start = quiet(model, data, key=1, restarts=3, tol=1e-13, max_iter=3000).params
    numeric, structure = split(model)
    parts = {"x": data.x, "weights": np.ones(N), "hyper": [np.asarray(a, float) for a in numeric]}
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda a: 0.1 * rng.normal(size=np.shape(a)) * (a != 0), parts)

    def outcome(parts, options):
        made = merge(parts["hyper"], structure)
        at = dataclasses.replace(data, x=parts["x"])
        r = jaxem.fit(made, at, init=start, weights=parts["weights"], **options)
        return (jnp.sin(r.params.components.coefficients) * jnp.arange(1.0, 7).reshape(2, 3)).sum()

    exact = jax.jit(lambda parts: outcome(parts, {"tol": 0, "max_iter": 300}))
    expected = difference(exact, parts, direction)
    found = jax.jit(jax.grad(lambda parts: outcome(parts, {"tol": 1e-13, "max_iter": 3000})))(parts)
    found = inner(found, direction)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_separation_is_flagged():
    """Binary responses that a regressor predicts, and a component of zeros: sound fits."""
    x = np.linspace(-1, 1, 40)
    model = jaxem.Mixture(jaxem.Regression("binomial"), k=1)
    with pytest.warns(jaxem.FitWarning, match="component 0 is separated"):
        result = jaxem.fit(model, jaxem.Data(x[:, None], (x > 0.1) * 1), key=0)
    assert result.converged and result.separated.tolist() == [True]
    assert np.isfinite(result.params.components.coefficients).all()
    assert result.log_likelihood > -0.01
    overlapping = np.where(np.arange(40) % 5 == 0, x < 0, x > 0) * 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", jaxem.FitWarning)
        result = jaxem.fit(model, jaxem.Data(x[:, None], overlapping), key=0)
    assert result.separated.tolist() == [False]
    far, rng = np.r_[np.random.default_rng(0).uniform(-1, 1, 39), 20], np.random.default_rng(1)
    y = (rng.random(40) < 1 / (1 + np.exp(-2 * far))) * 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", jaxem.FitWarning)
        jaxem.fit(model, jaxem.Data(far[:, None], y), key=0)
    counts = np.where(np.arange(40) < 25, 0, np.random.default_rng(0).poisson(30, 40))
    poisson = jaxem.Mixture(jaxem.Regression("poisson"), k=2)
    result = quiet(poisson, jaxem.Data(x[:, None], counts), key=0, restarts=5)
    assert result.converged and result.separated.sum() == 1
    sets = [jaxem.Data(x[:, None], counts, groups=np.arange(40) // 4)] * 2
    assert quiet(poisson, jaxem.Batch(sets), key=0).separated.shape == (2, 2)
    assert jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), counts[:, None], key=0).separated.sum() == 0


def refused(text, bank, data, **options):
    with pytest.raises((ValueError, TypeError), match=text):
        jaxem.fit(jaxem.Mixture(bank, k=2), data, key=0, **options)


def test_faults_have_one_sentence():
    y = data_of("normal").y
    data, counts = jaxem.Data(X, y), np.arange(N) % 4
    plain, poisson = jaxem.Regression(), jaxem.Regression("poisson")
    refused(r"Regression takes responses: give jaxem.Data\(x, y\).* got an array", plain, X)
    refused("Regression takes responses", plain, jaxem.Data(X, offset=y))
    refused(r"data.y of shape \(60,\).* got \(60, 2\)", plain, jaxem.Data(X, X))
    refused(r"\(n, d\), got shape \(60,\)", plain, jaxem.Data(y, y))
    refused("data.trials is given", plain, jaxem.Data(X, y, trials=TRIALS))
    refused(r"data.offset of shape \(60,\)", plain, jaxem.Data(X, y, offset=X))
    for bank in (poisson, jaxem.Regression("negative_binomial")):
        refused(
            r"data.y holds 1 value .* takes counts 0, 1, 2",
            bank,
            jaxem.Data(X, counts - (np.arange(N) == 0)),
        )
        refused("data.y holds .* takes counts", bank, jaxem.Data(X, counts + 0.5))
    refused(
        "data.y holds .* up to data.trials", jaxem.Regression("binomial"), jaxem.Data(X, counts)
    )
    refused(
        "data.y holds .* takes finite positive numbers",
        jaxem.Regression("gamma"),
        jaxem.Data(X, counts),
    )
    refused(
        "data.offset holds 1 value",
        plain,
        jaxem.Data(X, y, offset=np.where(np.arange(N) == 0, np.nan, 0)),
    )
    refused("data.x holds 1 value", plain, jaxem.Data(np.where(X[3, 0] == X, np.inf, X), y))
    constant = np.c_[X, np.full(N, 3.0)]
    refused("column 2 of data.x .* the same in all rows", plain, jaxem.Data(constant, y))
    refused("columns 0, 1, 2 of data.x .* collinear", plain, jaxem.Data(np.c_[X, X.sum(1)], y))
    present = {"weights": (np.arange(N) < 30) * 1.0}
    refused("column 2", plain, jaxem.Data(np.c_[X, np.arange(N) >= 30], y), **present)
    wide = np.random.default_rng(0).normal(size=(6, 7))
    refused("8 coefficients and the data 6 rows", plain, jaxem.Data(wide, y[:6]))
    refused(r"shared=\(5,\), and data.x has 2 columns", jaxem.Regression(shared=(5,)), data)
    refused(
        "CoefficientPrior has mean of shape",
        jaxem.Regression(prior=jaxem.CoefficientPrior(1.0, np.ones(7))),
        data,
    )
    for options, text in (
        ({"family": "weibull"}, "family must be one of"),
        ({"link": "probit"}, "link must be 'identity'"),
        ({"shared": (0, 0)}, "shared must be columns"),
        ({"prior": -1.0}, "prior must be a precision above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            jaxem.Regression(**options)
    with pytest.raises(ValueError, match="chains take rows alone"):
        jaxem.fit(jaxem.HMM(plain, 2), jaxem.Sequences(X), key=0)
    with pytest.raises(NotImplementedError, match="sample_response"):
        jaxem.Mixture(plain, 2).sample(
            jax.random.key(0), jaxem.MixtureParams(np.ones(2) / 2, None), 3
        )


def test_traced_bad_responses_have_a_status():
    model = jaxem.Mixture(jaxem.Regression("poisson"), k=2)
    y = np.stack([np.arange(N) % 5, np.arange(N) % 5 - (np.arange(N) == 5)]) * 1.0

    @jax.jit
    def status(y):
        return jax.vmap(lambda y: jaxem.fit(model, jaxem.Data(X, y), key=0).status)(y)

    codes = status(y)
    assert codes[1] == jaxem.Status.BAD_INPUT and codes[0] < jaxem.Status.DECREASED


def test_more_coefficients_than_rows_of_a_component():
    """A component that fits its rows exactly is flagged; a prior gives it a sound fit."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 12)), rng.normal(size=30)
    result = quiet(jaxem.Mixture(jaxem.Regression(), k=4), jaxem.Data(x, y), key=0, restarts=2)
    assert result.status == jaxem.Status.DEGENERATE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    ridge = jaxem.Mixture(jaxem.Regression("poisson", prior=5.0), k=2)
    wide = jaxem.Data(rng.normal(size=(30, 40)), rng.poisson(3, 30))
    assert quiet(ridge, wide, key=0).converged


def test_product_of_two_responses():
    """Its log-likelihood is that of its parts, which share regressors and offset."""
    y = np.c_[response("normal"), response("poisson")]
    data = jaxem.Data(X, y, offset=OFFSET)
    parts = {"a": (jaxem.Regression(), 0), "b": (jaxem.Regression("poisson"), 1)}
    result = jaxem.fit(jaxem.Mixture(jaxem.Product(parts), k=2), data, key=0, restarts=3)
    assert result.converged and result.n_parameters == 1 + 8 + 6
    logs = 0.0
    for name, family, column in (("a", "normal", 0), ("b", "poisson", 1)):
        bank = result.params.components[name]
        one = jaxem.Data(X, y[:, column], offset=OFFSET)
        b, s = np.asarray(bank.coefficients), bank.dispersion
        logs += np.stack(
            [log_density(family, b[j], None if s is None else s[j], one) for j in range(2)]
        )
    expected = np.log((np.asarray(result.params.weights)[:, None] * np.exp(logs)).sum(0))
    np.testing.assert_allclose(result.score_samples(data), expected, rtol=1e-9)
    mean = result.predict_response(jaxem.Data(X, offset=OFFSET))
    of_counts = np.exp(
        OFFSET[:, None] + np.c_[np.ones(N), X] @ result.params.components["b"].coefficients.T
    )
    np.testing.assert_allclose(mean[:, 1], of_counts @ result.params.weights, rtol=1e-9)
    alone = dataclasses.replace(data, groups=np.arange(N)[::-1])
    model = jaxem.Mixture(jaxem.Product(parts), k=2)
    same = jaxem.fit(model, alone, init=result.params, weights=WEIGHTS, max_iter=0, tol=0)
    assert abs(same.log_likelihood - WEIGHTS @ expected) < 1e-8
    y[3, 1] = -1
    wrong = dataclasses.replace(data, y=y)
    refused(r"data.y holds 1 value .* index \(3, 1\)", jaxem.Product(parts), wrong)
    refused("Product uses column 1, data.y has 1", jaxem.Product(parts), jaxem.Data(X, y[:, 0]))


def test_batches_and_labels():
    """Data sets of a batch are those fitted alone; few known labels name the components."""
    model = jaxem.Mixture(jaxem.Regression("poisson"), k=2)
    sets = [data_of("poisson"), data_of("poisson", rows=slice(50))]
    fleet = quiet(model, jaxem.Batch(sets), key=0, restarts=3)
    assert fleet[0].separated.shape == (2,) and fleet.separated.shape == (2, 2)
    scores = [s.sum() for s in fleet.score_samples(sets)]
    np.testing.assert_allclose(scores, fleet.log_likelihood, rtol=1e-8)
    labels = np.where(np.arange(N) % 6 == 0, GROUP, -1)
    known = jaxem.Data(X, response("normal"), offset=OFFSET, labels=labels)
    fits = quiet(jaxem.Mixture(jaxem.Regression(), k=2), known, key=0, restarts=20)
    joint = jax.jit(jax.vmap(fits.model.log_joint, (0, None)))
    z = joint(fits.restarts.params, dataclasses.replace(known, labels=None)).argmax(-1)
    assert ((z == GROUP).mean(1) > 0.8).mean() > 0.9


@pytest.mark.slow
def test_starts_by_elemental_subsets():
    """Each component is fitted to rows of its own; random responsibilities hardly find the optimum
    of overlapping Poisson regressions."""
    rng = np.random.default_rng(3)
    x, b, z = rng.normal(size=(300, 2)), rng.normal(size=(3, 3)) * 0.7, rng.integers(3, size=300)
    y = rng.poisson(np.exp(np.clip(b[z, 0] + (x * b[z, 1:]).sum(1) + 1, -5, 5)))
    model, data = jaxem.Mixture(jaxem.Regression("poisson"), k=3), jaxem.Data(x, y)
    shares = {}
    for init in (None, "random"):
        fits = quiet(model, data, key=0, restarts=50, init=init, tol=1e-7).restarts
        shares[init] = np.asarray(fits.log_likelihood)
    best = max(values.max() for values in shares.values())
    assert (shares[None] > best - 1e-2).mean() > (shares["random"] > best - 1e-2).mean()
    with pytest.raises(TypeError, match='init="elemental" is for mixtures of'):
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), 2), x, key=0, init="elemental")
