"""Rows in groups, `Data(x, groups=...)`: rows of one group share their component."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

N, G, K = 60, 12, 3
rng = np.random.default_rng(0)
NAMES = np.array(list("abcdefghijkl"))
NUMBER = np.r_[np.arange(G), rng.integers(G, size=N - G)]
GROUPS = NAMES[NUMBER]
X = rng.normal(size=(N, 2)) + 1.5 * (NUMBER % 3)[:, None]
DATA = jaxem.Data(X, groups=GROUPS)
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), K)


def fit(model=MODEL, data=DATA, **options):
    return jaxem.fit(model, data, **({"key": 0, "tol": 1e-11} | options))


@pytest.fixture(scope="module")
def fitted():
    return fit(restarts=3).raise_if_failed()


def close(a, b, rtol=1e-9):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=rtol, atol=1e-10), a, b)


def test_evidence_is_that_of_all_assignments_of_groups(fitted):
    p = jax.tree.map(np.asarray, fitted.params)
    away = np.square(X[:, None] - p.components.mean) / p.components.covariance
    logs = -0.5 * (away + np.log(2 * np.pi * p.components.covariance)).sum(-1)
    joint = np.log(p.weights) + np.stack([logs[n == GROUPS].sum(0) for n in NAMES])
    few = joint[:4]
    total = np.logaddexp.reduce(
        [few[np.arange(4), list(z)].sum() for z in itertools.product(range(K), repeat=4)]
    )
    scores = fitted.score_samples(DATA)
    assert scores.shape == (G,) and abs(scores[:4].sum() - total) < 1e-9
    assert abs(scores.sum() - fitted.log_likelihood) < 1e-9
    np.testing.assert_array_equal(fitted.predict(DATA), joint.argmax(1)[NUMBER])
    r = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
    np.testing.assert_allclose(fitted.predict_proba(DATA), r[NUMBER], atol=1e-10)
    entropy = -(r * np.log(np.where(r > 0, r, 1))).sum()
    for given in ((), (DATA,)):
        assert abs(fitted.entropy(*given) - entropy) < 1e-9
        bic = -2 * fitted.log_likelihood + fitted.n_parameters * np.log([N, G])
        assert abs(fitted.bic(*given) - bic[0]) < 1e-9
        assert abs(fitted.bic(*given, units=True) - bic[1]) < 1e-9
        assert abs(fitted.icl(*given) - bic[0] - 2 * entropy) < 1e-8
    assert fitted.total_weight == N


BANKS = [jaxem.Normal("diagonal"), jaxem.StudentT(df=5.0)]


@pytest.mark.parametrize("bank", BANKS, ids=["normal", "student"])
def test_groups_of_one_row_are_no_groups(bank):
    model = jaxem.Mixture(bank, 2)
    one = fit(model, jaxem.Data(X, groups=np.arange(N)))
    plain = fit(model, X)
    assert abs(one.log_likelihood - plain.log_likelihood) < 1e-12 * abs(plain.log_likelihood)
    close(one.params, plain.params, 1e-11)


def test_the_order_of_rows_and_other_groups_change_nothing(fitted):
    back = rng.permutation(N)
    other = fit(data=jaxem.Data(X[back], groups=GROUPS[back]), init=fitted.params)
    assert abs(other.log_likelihood - fitted.log_likelihood) < 1e-9
    integers = jaxem.Data(X, groups=10 * NUMBER - 3)
    np.testing.assert_array_equal(fitted.predict(integers), fitted.predict(DATA))
    long = jaxem.Data(np.r_[X, rng.normal(size=(50, 2))], groups=np.r_[NUMBER, np.full(50, 99)])
    np.testing.assert_allclose(
        fitted.score_samples(long)[:G], fitted.score_samples(DATA), rtol=1e-12
    )


def test_weights_count_groups(fitted):
    weights = 1.0 + np.arange(G) % 2
    weighted = fit(init=fitted.params, weights=weights)
    by_row = fit(init=fitted.params, weights=weights[NUMBER])
    twice = NUMBER % 2 == 1
    repeated = jaxem.Data(np.r_[X, X[twice]], groups=np.r_[NUMBER, NUMBER[twice] + 100])
    copied = fit(data=repeated, init=fitted.params)
    close(weighted.params, copied.params, 1e-7)
    close(weighted.params, by_row.params)
    assert abs(weighted.total_weight - len(repeated.x)) < 1e-9
    assert abs(weighted.bic() - copied.bic()) < 1e-6
    assert abs(fitted.bic(DATA, weights) - fitted.bic(repeated)) < 1e-8


@pytest.mark.parametrize(
    "bank",
    [
        *(jaxem.Normal(), jaxem.Gamma()),
        *(pytest.param(b, marks=pytest.mark.slow) for b in (jaxem.StudentT(4.0), jaxem.Poisson())),
    ],
    ids=repr,
)
def test_stacks_of_several_lengths_are_one_stack(bank, monkeypatch):
    sizes = np.r_[np.full(20, 2), 9, 30]
    groups, x = np.repeat(np.arange(22), sizes), rng.normal(size=(sizes.sum(), 1))
    x = np.abs(x) + 0.5 + groups[:, None] % 2
    x = np.round(3 * x) if isinstance(bank, jaxem.Poisson) else x
    data, model = jaxem.Data(x, groups=groups), jaxem.Mixture(bank, 2)
    weights = 1.0 + np.arange(22) % 3
    one = fit(model, data, max_iter=4, tol=0, weights=weights)
    monkeypatch.setattr("jaxem.numerics.tuning.PADDED_CELLS", 1)
    assert data.grouped().rows.place is not None
    several = fit(model, data, max_iter=4, tol=0, weights=weights)
    close(one.params, several.params)
    assert abs(one.objective - several.objective) < 1e-9
    np.testing.assert_array_equal(one.predict(data), several.predict(data))


def test_a_pass_over_many_groups_is_that_over_few(fitted):
    times = 1 + 2**20 // (N * 2 * K)
    many = jaxem.Data(
        np.tile(X, (times, 1)), groups=np.add.outer(G * np.arange(times), NUMBER).ravel()
    )
    options = {"init": fit(max_iter=2, tol=0).params, "tol": 0, "max_iter": 2}
    one = fit(data=many, **options)
    few = fit(weights=np.full(G, float(times)), **options)
    close(one.params, few.params)
    np.testing.assert_allclose(one.objective, few.objective, rtol=1e-11)


def test_batches_jit_and_both_precisions(fitted):
    sets = [DATA, jaxem.Data(X[:30], groups=GROUPS[:30])]
    fleet = fit(data=jaxem.Batch(sets), restarts=2)
    for i, data in enumerate(sets):
        alone = fit(data=data, init=fleet[i].params)
        assert abs(alone.log_likelihood - fleet[i].log_likelihood) < 1e-7
        np.testing.assert_array_equal(fleet.predict(sets)[i], fleet[i].predict(data))
        np.testing.assert_allclose(fleet.score_samples(sets)[i], fleet[i].score_samples(data))
        assert abs(fleet.bic()[i] - fleet[i].bic(data)) < 1e-9
    np.testing.assert_allclose(fleet.bic(sets), fleet.bic())
    stacked = jaxem.Data(np.stack([X, X[::-1]]), groups=np.stack([GROUPS, GROUPS[::-1]]))
    both = fit(data=jaxem.Batch(stacked), restarts=2)
    assert both.predict(stacked)[0].shape == (N,)

    tree = DATA.grouped()
    value = jax.jit(lambda x: fit(data=x, init=fitted.params).log_likelihood)(tree)
    assert abs(value - fitted.log_likelihood) < 1e-9
    single = fit(data=jaxem.Data(X.astype(np.float32), groups=GROUPS), tol=1e-4, restarts=3)
    assert single.params.weights.dtype == np.float32
    assert abs(single.log_likelihood - fitted.log_likelihood) < 1e-2


def test_the_gradient_through_a_fit_is_that_of_differences(fitted):
    def outcome(t):
        x = X + t * np.sin(np.arange(N))[:, None]
        found = fit(data=jaxem.Data(x, groups=GROUPS), init=fitted.params, tol=1e-13)
        return (found.params.components.mean**2).sum() + found.log_likelihood

    value = jax.jit(outcome)
    expected = (value(1e-4) - value(-1e-4)) / 2e-4
    np.testing.assert_allclose(jax.jit(jax.grad(outcome))(0.0), expected, rtol=1e-5)


def test_gates_and_labels_are_of_groups():
    model = jaxem.Mixture(jaxem.Normal("diagonal"), 2, gate=jaxem.SoftmaxGate())
    gate = np.sin(np.arange(G))[:, None]
    labels = np.where(np.arange(G) < 2, np.arange(G), -1)
    one_row = np.where(np.arange(N) < G, labels[NUMBER], -1)  # a label in one row of the group
    found = fit(model, jaxem.Data(X, gate=gate[NUMBER], labels=one_row, groups=GROUPS))
    whole = fit(model, jaxem.Data(X, gate=gate[NUMBER], labels=labels[NUMBER], groups=GROUPS))
    close(found.params, whole.params)
    np.testing.assert_array_equal(found.predict(with_gate(gate, one_row))[:2], [0, 1])
    logits = np.c_[np.ones(G), gate] @ np.asarray(found.params.gate.coefficients).T
    p = jax.tree.map(np.asarray, found.params.components)
    away = np.square(X[:, None] - p.mean) / p.covariance + np.log(2 * np.pi * p.covariance)
    joint = jax.nn.log_softmax(logits) + np.stack(
        [-0.5 * away.sum(-1)[i == NUMBER].sum(0) for i in range(G)]
    )
    joint = np.where((labels[:, None] >= 0) & (labels[:, None] != [0, 1]), -np.inf, joint)
    assert abs(np.logaddexp.reduce(joint, 1).sum() - found.log_likelihood) < 1e-8


def with_gate(gate, labels):
    return jaxem.Data(X, gate=gate[NUMBER], labels=labels, groups=GROUPS)


def test_other_mixtures_take_groups(fitted):
    bayes = jaxem.fit(jaxem.BayesianMixture(jaxem.Normal("diagonal"), K), DATA, key=0)
    bound = bayes.model.elbo(bayes.params, DATA.grouped()).value
    assert bayes.converged and abs(bound - bayes.objective) < 1e-8
    free = fit(
        jaxem.Restricted(MODEL, {"components.mean[0]": fitted.params.components.mean[0]}),
        init=fitted.params,
    )
    assert abs(free.log_likelihood - fitted.log_likelihood) < 1e-6
    one = fit(jaxem.Mixture(jaxem.Normal(), 1), jaxem.Data(X, groups=np.zeros(N, int)))
    np.testing.assert_allclose(one.params.components.mean[0], X.mean(0), rtol=1e-9)
    product = jaxem.Product({"a": (jaxem.Normal(), 0), "b": (jaxem.StudentT(df=5.0), 1)})
    assert fit(jaxem.Mixture(product, 2), tol=1e-8).converged


def test_many_rows_are_grouped_fast():
    names = np.sort(rng.integers(10_000, size=100_000))[rng.permutation(100_000)]
    x = rng.normal(size=(100_000, 4))
    data = jaxem.Data(x, groups=names)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        data.grouped()
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1


REFUSED = {
    "labels": (
        {"labels": np.arange(N) % 3},
        ValueError,
        "labels must be the same in all rows of a group",
    ),
    "gate": ({"gate": X}, ValueError, "gate must be the same in all rows of a group, and row"),
    "length": ({"groups": GROUPS[:5]}, ValueError, r"groups must have shape \(60,\)"),
    "floats": ({"groups": X[:, 0]}, TypeError, "groups must be integers or strings"),
    "mixed": (
        {"groups": np.array(["a", 1] * 30, object)},
        TypeError,
        "must be all integers or all strings",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    fields, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        fit(data=jaxem.Data(X, **({"groups": GROUPS} | fields)))


def test_refusals_of_weights_models_and_tracers():
    with pytest.raises(ValueError, match="weights must be the same in all rows of a group"):
        fit(weights=np.arange(N))
    with pytest.raises(ValueError, match=r"weights must have shape \(12,\), one per group"):
        fit(weights=np.ones(5))
    for model in (jaxem.HMM(jaxem.Normal(), 2), jaxem.LDA(2)):
        with pytest.raises(TypeError, match="takes no groups: they are of mixtures"):
            fit(model)
    with pytest.raises(TypeError, match="group outside of the transformation"):
        jax.jit(lambda groups: fit(data=jaxem.Data(jnp.asarray(X), groups=groups)))(NUMBER)
    x = X.copy()
    x[7] = np.nan
    with pytest.raises(ValueError, match="data holds 2 values outside the model's support"):
        fit(data=jaxem.Data(x, groups=GROUPS))
