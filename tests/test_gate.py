"""Mixtures whose weights depend on covariates: `Mixture(..., gate=SoftmaxGate())`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

N, K = 90, 3
rng = np.random.default_rng(0)
Z = rng.normal(size=(N, 2)) * [1, 5] + [3, 100]
LOGITS = np.stack([0 * Z[:, 0], 1 + 2 * (Z[:, 0] - 3), -1 + 0.4 * (Z[:, 1] - 100)], 1)
CLASS = np.argmax(LOGITS + rng.gumbel(size=(N, K)), 1)
X = rng.normal(size=(N, 2)) + 2.5 * CLASS[:, None]
DATA = jaxem.Data(X, gate=Z)
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), K, gate=jaxem.SoftmaxGate())


def fit(model=MODEL, data=DATA, **options):
    return jaxem.fit(model, data, **({"key": 0, "tol": 1e-11} | options))


@pytest.fixture(scope="module")
def fitted():
    return fit().raise_if_failed()


def density(x, mean, variance):
    away = np.square(x[:, None] - mean) / variance
    return -0.5 * (away + np.log(2 * np.pi * variance)).sum(-1)


def evidence(params, x, z):
    """log p(x | z), by NumPy alone."""
    p = jax.tree.map(np.asarray, params)
    logits = np.c_[np.ones(len(z)), z] @ p.gate.coefficients.T
    logits -= np.logaddexp.reduce(logits, 1)[:, None]
    logs = logits + density(x, p.components.mean, p.components.covariance)
    return np.logaddexp.reduce(logs, 1), logs


def test_the_fit_is_the_maximum_of_the_density(fitted):
    found, logs = evidence(fitted.params, X, Z)
    np.testing.assert_allclose(fitted.score_samples(DATA), found, rtol=1e-10)
    assert abs(found.sum() - fitted.log_likelihood) < 1e-8
    np.testing.assert_array_equal(fitted.predict(DATA), logs.argmax(1))
    np.testing.assert_allclose(
        fitted.predict_proba(DATA), np.exp(logs - found[:, None]), atol=1e-10
    )
    assert fitted.n_parameters == 2 * 3 + 2 * K * 2
    assert not np.any(fitted.params.gate.coefficients[0])

    def score(coefficients):
        params = jaxem.GatedMixtureParams(jaxem.GateParams(coefficients), fitted.params.components)
        return MODEL.log_prob(params, DATA).sum()

    slope = np.asarray(jax.grad(score)(fitted.params.gate.coefficients))
    assert (abs(slope[1:]) < 1e-3 * np.array([1, 3, 100])).all()
    plain = fit(jaxem.Mixture(jaxem.Normal("diagonal"), K), X)
    assert fitted.log_likelihood > plain.log_likelihood + 10
    steps = [fit(tol=0, max_iter=n, key=3).objective for n in range(4)]
    assert (np.diff(steps) > 0).all()


def test_units_of_covariates_do_not_matter(fitted):
    units = np.array([1e3, -1e-2])
    other = fit(data=jaxem.Data(X, gate=(Z - 50) * units))
    assert abs(other.log_likelihood - fitted.log_likelihood) < 1e-7
    np.testing.assert_allclose(
        other.params.gate.coefficients[:, 1:] * units,
        fitted.params.gate.coefficients[:, 1:],
        rtol=1e-4,
        atol=1e-7,
    )


def test_one_dummy_is_weights_by_stratum_and_no_effect_is_constant_weights():
    """With known classes the maximum is in closed form: shares in every stratum."""
    stratum = (np.arange(N) % 2).astype(float)
    data = jaxem.Data(X, gate=stratum[:, None], labels=CLASS)
    found = fit(data=data).params.gate.coefficients
    for value in (0, 1):
        logits = np.asarray(found) @ [1, value]
        shares = np.bincount(CLASS[stratum == value], minlength=K) / (stratum == value).sum()
        np.testing.assert_allclose(jax.nn.softmax(logits), shares, atol=1e-6)
    double = jaxem.Data(np.r_[X, X], gate=np.r_[0 * X[:, :1], 1 + 0 * X[:, :1]])
    with_gate = fit(data=double, tol=1e-13)
    plain = fit(jaxem.Mixture(jaxem.Normal("diagonal"), K), double.x, tol=1e-13)
    assert abs(with_gate.log_likelihood - plain.log_likelihood) < 1e-7
    assert abs(with_gate.params.gate.coefficients[:, 1]).max() < 1e-4
    one = fit(jaxem.Mixture(jaxem.Normal("diagonal"), 1, gate=jaxem.SoftmaxGate()))
    assert one.n_parameters == 4 and not np.any(one.params.gate.coefficients)
    alone = fit(
        data=jaxem.Data(double.x, gate=np.zeros((2 * N, 0))),
        init=jaxem.Labels(plain.predict(double.x)),
    )
    assert alone.n_parameters == plain.n_parameters
    assert abs(alone.log_likelihood - plain.log_likelihood) < 1e-9


def test_a_prior_of_slopes_is_in_the_units_of_covariates():
    prior = np.array([4.0, 0.5])
    model = jaxem.Mixture(jaxem.Normal("diagonal"), K, gate=jaxem.SoftmaxGate(prior=prior))
    found = fit(model)
    slopes = np.asarray(found.params.gate.coefficients)[1:, 1:]
    density = -0.5 * prior * slopes**2 + 0.5 * np.log(prior / (2 * np.pi))
    assert abs(found.objective - found.log_likelihood - density.sum()) < 1e-8

    def objective(coefficients):
        params = jaxem.GatedMixtureParams(jaxem.GateParams(coefficients), found.params.components)
        return MODEL.log_prob(params, DATA).sum() + model.log_prior(params)

    slope = np.asarray(jax.grad(objective)(found.params.gate.coefficients))
    assert (abs(slope[1:]) < 1e-3 * np.array([1, 3, 100])).all()


def test_a_prior_of_transitions_is_in_the_units_of_inputs():
    """Inputs times c with the precision times c² are the same model."""
    inputs = rng.normal(size=(60, 1))
    series = rng.normal(size=(60, 1)) + 3 * (np.arange(60) // 7 % 2)[:, None]

    def at(scale):
        gate = jaxem.SoftmaxGate(prior=2.0 * scale**2)
        x = jaxem.Sequences([series], inputs=[scale * inputs])
        return jaxem.fit(jaxem.HMM(jaxem.Normal(), 2, transitions=gate), x, key=0, tol=1e-10)

    one, ten = at(1.0), at(10.0)
    np.testing.assert_allclose(
        one.params.transition[..., 1], 10 * ten.params.transition[..., 1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("weight", ["x", "gate", "prior"])
def test_the_gradient_through_a_fit_is_that_of_differences(weight):
    start = fit().params

    def outcome(t):
        x = X + t * np.sin(np.arange(N))[:, None] if weight == "x" else X
        z = Z + t * np.cos(np.arange(N))[:, None] if weight == "gate" else Z
        prior = 0.3 * jnp.exp(t)
        model = jaxem.Mixture(jaxem.Normal("diagonal"), K, gate=jaxem.SoftmaxGate(prior=prior))
        found = jaxem.fit(model, jaxem.Data(x, gate=z), init=start, tol=1e-13, max_iter=500)
        return found.params.gate.coefficients[1:].sum() + found.params.components.mean.sum()

    slope = jax.jit(jax.grad(outcome))(0.0)
    value = jax.jit(outcome)
    expected = (value(1e-4) - value(-1e-4)) / 2e-4
    np.testing.assert_allclose(slope, expected, rtol=2e-4)


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize(
    "rule", [jaxem.Hard(), jaxem.Tempered(schedule=(0.5,), steps=2), jaxem.Stochastic(steps=3)]
)
def test_rules_take_gates(rule, fitted):
    found = fit(init=fitted.params, method=jaxem.EM(rule), max_iter=8, tol=0)
    assert np.isfinite(found.objective) and not np.any(found.params.gate.coefficients[0])


def test_gradient_steps_accelerators_and_restrictions_keep_the_first_row(fitted):
    for method in (jaxem.EM(m_step=jaxem.Gradient()), jaxem.EM(accelerator=jaxem.SQUAREM())):
        found = fit(init=fit(max_iter=5, tol=0).params, method=method, max_iter=300)
        assert abs(found.log_likelihood - fitted.log_likelihood) < 1e-6
        assert not np.any(found.params.gate.coefficients[0])
    slope = jaxem.Restricted(MODEL, {"gate.coefficients[:, 2]": 0.0})
    held, one = fit(slope), fit(data=jaxem.Data(X, gate=Z[:, :1]))
    assert abs(held.log_likelihood - one.log_likelihood) < 1e-6
    assert held.n_parameters == one.n_parameters == fitted.n_parameters - 2
    pair = ("gate.coefficients[1]", "gate.coefficients[2]")
    tied = fit(jaxem.Restricted(MODEL, tied=[pair]))
    c = tied.params.gate.coefficients
    np.testing.assert_allclose(c[1], c[2], rtol=1e-10)
    for fixed, tie, text in (
        ({"gate.coefficients[1, 0]": 0.0}, (), "an intercept that is fixed or tied"),
        ({"gate.coefficients[0]": 1.0}, (), "must have a first row of 0"),
        ({}, [("gate.coefficients[0]", "gate.coefficients[1]")], "entries that are constant"),
    ):
        with pytest.raises(ValueError, match=text):
            fit(jaxem.Restricted(MODEL, fixed, tie))
    moved = dataclasses.replace(
        fitted.params, gate=jaxem.GateParams(fitted.params.gate.coefficients + 1)
    )
    with pytest.raises(ValueError, match=r"init gate.coefficients must have a first row of 0"):
        fit(init=moved)


def test_starts_at_given_responsibilities_are_the_m_step():
    given = fit(init=jaxem.Labels(CLASS), max_iter=0)
    known = fit(data=jaxem.Data(X, gate=Z, labels=CLASS))
    np.testing.assert_allclose(
        given.params.gate.coefficients, known.params.gate.coefficients, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        given.params.components.mean, [X[j == CLASS].mean(0) for j in range(K)], rtol=1e-8
    )


def test_large_coefficients_are_found_from_most_starts():
    z = rng.uniform(size=(150, 1))
    steep = np.argmax(np.c_[0 * z, 40 * (z - 0.4), 80 * (z - 0.6)] + rng.gumbel(size=(150, 3)), 1)
    x = rng.normal(size=(150, 1)) + np.array([2.0, 0.0, 1.0])[steep][:, None]
    model = jaxem.Mixture(jaxem.Normal(), 3, gate=jaxem.SoftmaxGate())
    found = fit(model, jaxem.Data(x, gate=z), restarts=40, tol=1e-8)
    assert found.converged and abs(found.params.gate.coefficients).max() > 10
    assert np.mean(found.restarts.objective > found.objective - 1e-3) >= 0.5


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
def test_separated_classes_end_with_a_status():
    z = np.where(X[:, :1] > 2, 1.0, -1.0)
    x = X[:, :1] + 100 * z
    model = jaxem.Mixture(jaxem.Normal(), 2, gate=jaxem.SoftmaxGate())
    found = fit(model, jaxem.Data(x, gate=z), tol=1e-6)
    assert found.status in (jaxem.Status.CONVERGED, jaxem.Status.MAX_ITER)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    assert abs(found.params.gate.coefficients[1, 1]) > 5


def test_a_fit_crosses_jit_vmap_batches_files_and_print(fitted, tmp_path):
    def value(z, x):
        return jaxem.fit(MODEL, jaxem.Data(x, gate=z), init=fitted.params, max_iter=50)

    sets = jnp.stack([Z, Z[::-1]]), jnp.stack([X, X[::-1]])
    together = jax.jit(jax.vmap(value))(*sets)
    np.testing.assert_allclose(together.log_likelihood, fitted.log_likelihood, rtol=1e-9)
    batch = jaxem.Batch([DATA, jaxem.Data(X[:60], gate=Z[:60])])
    fleet = fit(data=batch, restarts=2)
    alone = jaxem.fit(MODEL, batch.data[1], init=fleet[1].params, tol=1e-11)
    assert abs(alone.log_likelihood - fleet[1].log_likelihood) < 1e-6
    assert [len(p) for p in fleet.predict(batch.data)] == [N, 60]
    fitted.save(tmp_path / "fit.npz")
    again = jaxem.load(tmp_path / "fit.npz")
    np.testing.assert_array_equal(again.predict(DATA), fitted.predict(DATA))
    assert "gate=SoftmaxGate" in str(fitted)
    single = fit(data=jax.tree.map(np.float32, DATA), tol=1e-5)
    assert single.params.gate.coefficients.dtype == np.float32
    assert abs(single.log_likelihood - fitted.log_likelihood) < 1e-2


def test_a_pass_over_many_units_is_that_over_few(fitted):
    """Repeated rows: the fused pass against weights of few rows."""
    times = 1 + 2**20 // (N * 4 * K)
    data = jax.tree.map(lambda a: np.tile(a, (times, 1)), DATA)
    for bank in (jaxem.Normal("diagonal"), jaxem.StudentT(df=5.0)):
        model = dataclasses.replace(MODEL, components=bank)
        start = fit(model, max_iter=3, tol=0).params
        options = {"init": start, "tol": 0, "max_iter": 2}
        few = fit(model, weights=np.full(N, times), **options)
        many = fit(model, data, **options)
        np.testing.assert_allclose(many.objective, few.objective, rtol=1e-11)
        np.testing.assert_allclose(
            many.params.gate.coefficients, few.params.gate.coefficients, rtol=1e-7, atol=1e-7
        )


def test_draws_have_the_weights_of_their_covariates(fitted):
    z = np.repeat(Z[:2], 4000, 0)
    x = fitted.sample(0, len(z), gate=z)
    for i in range(2):
        part = np.asarray(x[4000 * i : 4000 * (i + 1)])
        logits = fitted.params.gate.coefficients @ np.r_[1, Z[i]]
        mean = jax.nn.softmax(logits) @ fitted.params.components.mean
        errors = part.std(0) / np.sqrt(len(part))
        assert (abs(part.mean(0) - mean) < 4.5 * errors).all()
    with pytest.raises(ValueError, match=r"give gate=... of shape \(5, 2\)"):
        fitted.sample(0, 5)


class Line(jaxem.Bank):
    """y = slope · x + noise of variance 1, by component; rows without y have a mean alone."""

    domain = jaxem.model.Domain()

    def embed(self, x):
        return None

    def init(self, key, x, weights):
        return self.maximize(None, self.statistics(None, x, None, weights))

    def mean(self, params, x):
        return (x.x if isinstance(x, jaxem.Data) else x) * params

    def posterior(self, params, x):
        away = x.y[:, None] - self.mean(params, x)
        return (), -0.5 * (away**2 + jnp.log(2 * jnp.pi))

    def statistics(self, params, x, q, weights):
        return (weights * x.x * x.y[:, None]).sum(0), (weights * x.x**2).sum(0)

    def maximize(self, params, stats):
        return stats[0] / stats[1]


def test_predict_response_weighs_the_means():
    z, x = Z[:, :1] - 3, rng.uniform(1, 2, size=(N, 1))
    y = x[:, 0] * np.where(CLASS == 1, 4.0, -4.0) + rng.normal(size=N)
    model = jaxem.Mixture(Line(), 2, gate=jaxem.SoftmaxGate())
    known = jaxem.Data(x, y, gate=z)
    found = fit(model, known, init="random", tol=1e-9)
    means = x * np.asarray(found.params.components)
    np.testing.assert_allclose(
        found.predict_response(known), (found.predict_proba(known) * means).sum(1), rtol=1e-10
    )
    weights = jax.nn.softmax(np.c_[np.ones(N), z] @ found.params.gate.coefficients.T)
    np.testing.assert_allclose(
        found.predict_response(jaxem.Data(x, gate=z)), (weights * means).sum(1), rtol=1e-10
    )
    groups = np.arange(N) // 2
    shared = fit(jaxem.Mixture(Line(), 2), jaxem.Data(x, y, groups=groups), init="random")
    back = np.random.default_rng(1).permutation(N)
    one = shared.predict_response(jaxem.Data(x, y, groups=groups))
    other = shared.predict_response(jaxem.Data(x[back], y[back], groups=groups[back]))
    np.testing.assert_allclose(one[back], other, rtol=1e-10)
    with pytest.raises(TypeError, match="Normal has no response to predict"):
        fit(max_iter=1, tol=0).predict_response(DATA)


REFUSED = {
    "no covariates": (MODEL, X, r"gate=... takes covariates: jaxem.Data\(x, gate=...\)"),
    "no gate": (jaxem.Mixture(jaxem.Normal(), 2), DATA, "the mixture has constant weights"),
    "one axis": (MODEL, jaxem.Data(X, gate=Z[:, 0]), r"give gate\[:, None\]"),
    "constant": (
        MODEL,
        jaxem.Data(X, gate=np.c_[Z, 0 * Z + 2]),
        "column 2 of data.gate .* same in",
    ),
    "collinear": (MODEL, jaxem.Data(X, gate=np.c_[Z, Z @ [1, 2]]), "columns 0, 1, 2 .* collinear"),
    "NaN": (MODEL, jaxem.Data(X, gate=Z * np.nan), "data.gate holds 180 values"),
    "bayesian": (jaxem.BayesianMixture(jaxem.Normal(), 2), DATA, "has constant weights"),
    "prior": (
        dataclasses.replace(MODEL, gate=jaxem.SoftmaxGate(prior=np.ones(3))),
        DATA,
        "one for each of the 2 covariates",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    model, data, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        fit(model, data)


def test_refusals_of_types(fitted):
    with pytest.raises(TypeError, match=r"gate must be jaxem.SoftmaxGate"):
        jaxem.Mixture(jaxem.Normal(), 2, gate=jaxem.SoftmaxGate)
    with pytest.raises(ValueError, match="leave prior=None"):
        jaxem.Mixture(jaxem.Normal(), 2, jaxem.DirichletPrior(2.0), jaxem.SoftmaxGate())
    for method in (jaxem.EM(jaxem.Incremental()), jaxem.OnlineEM()):
        with pytest.raises(TypeError, match="those of a gate do not add"):
            fit(method=method)
    with pytest.raises(ValueError, match=r"data.gate has 1 columns"):
        fitted.predict(jaxem.Data(X, gate=Z[:, :1]))
