"""Hidden Markov models: against sums over all paths, laws, rules, fleets and gradients."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import chain_forms, chains, compilations, stationary, tuning

import jaxem

RNG = np.random.default_rng(0)
MIXED = jaxem.Product({"size": (jaxem.Normal(), 0), "count": (jaxem.Poisson(), 1)})
BANKS = {
    "normal": (jaxem.Normal(), lambda t: RNG.normal(size=(t, 2))),
    "diagonal": (jaxem.Normal("diagonal"), lambda t: RNG.normal(size=(t, 2))),
    "student": (jaxem.StudentT(df=4.0), lambda t: RNG.normal(size=(t, 2))),
    "poisson": (jaxem.Poisson(), lambda t: RNG.poisson(3.0, size=(t, 1)).astype(float)),
    "categorical": (jaxem.Categorical(3), lambda t: RNG.integers(3, size=(t, 1)).astype(float)),
    "product": (
        MIXED,
        lambda t: np.stack([RNG.normal(size=t), RNG.poisson(2.0, size=t)], 1).astype(float),
    ),
    "mixture": (
        jaxem.Each(jaxem.Mixture(jaxem.Normal("spherical"), k=2)),
        lambda t: RNG.normal(size=(t, 1)),
    ),
}


class Exact(NamedTuple):
    evidence: float
    marginals: np.ndarray
    pairs: np.ndarray
    path: tuple
    best: float


def enumerated(initial, transition, logs):
    """Sums over all paths: log p(x), marginals, expected transitions, and the best path."""
    t, k = logs.shape
    with np.errstate(divide="ignore"):
        initial, transition = np.log(initial), np.log(transition)
    scores = {}
    for path in itertools.product(range(k), repeat=t):
        score = initial[path[0]] + sum(logs[i, z] for i, z in enumerate(path))
        scores[path] = score + sum(transition[a, b] for a, b in itertools.pairwise(path))
    evidence = np.logaddexp.reduce(list(scores.values()))
    marginals, pairs = np.zeros((t, k)), np.zeros((k, k))
    for path, score in scores.items():
        p = np.exp(score - evidence)
        marginals[np.arange(t), path] += p
        for a, b in itertools.pairwise(path):
            pairs[a, b] += p
    path = max(scores, key=scores.get)
    return Exact(evidence, marginals, pairs, path, scores[path])


def params_of(model, x, seed=0):
    """Params from a few steps, with transitions of a random matrix."""
    rng = np.random.default_rng(seed)
    start = jaxem.fit(model, x, key=0, max_iter=2, tol=0).params
    transition = rng.dirichlet(np.ones(model.k), model.k)
    initial = rng.dirichlet(np.ones(model.k))
    if model.initial == "stationary":
        initial = stationary(jnp.asarray(transition))
    return jaxem.HMMParams(jnp.asarray(initial), jnp.asarray(transition), start.emissions)


def with_gaps(draw):
    """Sequences of several lengths, of one row too, with missing rows at all places."""
    series = [draw(t) for t in (6, 1, 5, 4, 2)]
    series[0][[0, 3]] = np.nan
    series[2][4] = np.nan
    series[4][:] = np.nan
    return series


SIZES = [(name, 3) for name in BANKS] + [("normal", 2), ("normal", 1)]
SELDOM = [(name, 2) for name in BANKS if name != "normal"] + [("poisson", 1)]
SIZES += [pytest.param(*size, marks=pytest.mark.slow) for size in SELDOM]


@pytest.mark.parametrize(("name", "k"), SIZES)
def test_sums_over_all_paths(name, k):
    bank, draw = BANKS[name]
    model = jaxem.HMM(bank, k)
    params = params_of(model, jaxem.Sequences([draw(30), draw(20)]))
    series = with_gaps(draw)
    x = jaxem.Sequences(series)
    q, evidence = jax.jit(model.posterior)(params, x)
    smooth, paths = model.smooth(params, x), model.viterbi(params, x)
    filtered, scores = model.filter(params, x), model.log_prob(params, x)
    hard, best = model.hardened(params, x)
    for i, rows in enumerate(series):
        seen = ~np.isnan(rows).all(1)
        filled = np.where(seen[:, None], rows, draw(30)[: len(rows)])
        logs = np.asarray(bank.posterior(params.emissions, jnp.asarray(filled))[1])
        logs = np.where(seen[:, None], logs, 0)
        exact = enumerated(np.asarray(params.initial), np.asarray(params.transition), logs)
        assert abs(evidence[i] - exact.evidence) < 1e-10
        assert abs(scores[i] - exact.evidence) < 1e-10
        np.testing.assert_allclose(smooth[i], exact.marginals, atol=1e-10)
        np.testing.assert_allclose(q.transitions[i], exact.pairs, atol=1e-10)
        np.testing.assert_allclose(q.first[i], exact.marginals[0], atol=1e-10)
        np.testing.assert_allclose(filtered[i][-1], exact.marginals[-1], atol=1e-10)
        score = enumerated_score(params, logs, paths[i])
        assert abs(score - exact.best) < 1e-10 and abs(best[i] - exact.best) < 1e-10
        np.testing.assert_allclose(hard.first[i], np.eye(k)[paths[i][0]], atol=1e-12)


def enumerated_score(params, logs, path):
    initial, transition = np.log(params.initial), np.log(params.transition)
    score = initial[path[0]] + sum(logs[i, z] for i, z in enumerate(path))
    return score + sum(transition[a, b] for a, b in itertools.pairwise(path))


MODEL = jaxem.HMM(jaxem.Normal(), 2)
SERIES = [
    RNG.normal(size=(t, 2)) + 3 * (np.cumsum(RNG.uniform(size=(t, 1)) < 0.1, 0) % 2)
    for t in (60, 25, 40, 3)
]
DATA = jaxem.Sequences(SERIES)


@pytest.fixture(scope="module")
def fitted():
    return jaxem.fit(MODEL, DATA, key=0)


@pytest.mark.parametrize("is_long", [False, True])
def test_a_state_that_cannot_occur_does_not_count(is_long, monkeypatch):
    """A left-to-right chain at a row that only an impossible state explains."""
    monkeypatch.setattr(chain_forms, "is_long", lambda *shape: is_long)
    logs = jnp.asarray([[[-400.0], [0.0]], [[-1.0], [-900.0]], [[-2.0], [-3.0]]], jnp.float32)
    initial = jnp.asarray([[1.0], [0.0]], jnp.float32)
    transition = jnp.asarray([[[0.7], [0.3]], [[0.0], [1.0]]], jnp.float32)
    found = chains.Chain(initial, transition).forward(logs)
    exact = enumerated(
        np.array([1.0, 0.0]), np.asarray(transition)[..., 0], np.asarray(logs[..., 0], float)
    )
    assert abs(float(found.evidence.sum()) - exact.evidence) < 1e-3
    is_last = jnp.asarray([[False], [False], [True]])
    marginals = chains.Chain(initial, transition).backward(found, is_last)[0]
    np.testing.assert_allclose(marginals[..., 0], exact.marginals, atol=1e-6)


def test_float32_is_stable_over_many_rows_and_states():
    k, t = 50, 100_000
    rng = np.random.default_rng(1)
    z = np.repeat(rng.integers(k, size=t // 10), 10)
    logs = -50 * (np.arange(k) != z[:, None]) + rng.normal(size=(t, k))
    transition = np.full((k, k), 0.1 / k) + 0.9 * np.eye(k)

    @jax.jit
    def passes(logs):
        matrix = jnp.asarray(transition / transition.sum(1, keepdims=True), logs.dtype)[..., None]
        chain = chains.Chain(jnp.full((k, 1), 1 / k, logs.dtype), matrix)
        found = chain.forward(logs)
        is_last = jnp.arange(t)[:, None] == t - 1
        marginals, pairs, _ = chain.backward(found, is_last)
        return chains.total(found.evidence)[0], marginals, pairs

    evidence, marginals, pairs = passes(jnp.asarray(logs[..., None]))
    single = passes(jnp.asarray(logs[..., None], jnp.float32))
    assert abs(single[0] / evidence - 1) < 1e-6
    np.testing.assert_allclose(single[1], marginals, atol=1e-4)
    np.testing.assert_allclose(single[2], pairs, rtol=1e-3, atol=1e-2)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def variant(name, params):
    """(a model, three sequences with gaps, params): with params of `MODEL`, with impossible states,
    with a gate, or with durations."""
    x = jaxem.Sequences([*SERIES[:2], with_gaps(BANKS["normal"][1])[0]])
    if name == "zeros":
        transition = jnp.asarray([[0.9, 0.1], [0.0, 1.0]])
        params = jaxem.HMMParams(jnp.asarray([1.0, 0.0]), transition, params.emissions)
    if name == "gate":
        model, series, inputs, params = gated(3)
        return model, jaxem.Sequences(series, inputs=inputs), params
    if name == "segments":
        model = jaxem.SemiMarkov(jaxem.Normal(), 2, longest=4)
        transition, durations = jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), jnp.asarray([1.0, 2.0])
        params = jaxem.SemiMarkovParams(params.initial, transition, durations, params.emissions)
        return model, x, params
    return MODEL, x, params


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "is_long") for name in ("plain", "zeros", "gate")),
        *((name, "takes_levels") for name in ("zeros", "gate")),
        slow("plain", "takes_levels"),
    ],
)
def test_other_forms_are_the_recursions(name, form, monkeypatch, fitted):
    """Those for accelerators and for long series, with missing rows, padding and impossible
    states."""
    model, x, params = variant(name, fitted.params)
    answers = []
    for takes in (False, True):
        monkeypatch.setattr(chain_forms, form, lambda *shape, takes=takes: takes)
        q, evidence = model.posterior(params, x)
        slope = jax.grad(lambda p: model.log_prob(p, x).sum())(params)
        slopes = slope.emissions, jnp.where(params.transition == 0, 0, slope.transition)
        answers.append((q.rows, q.transitions, evidence, *slopes))
    for a, b in zip(*map(jax.tree.leaves, answers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_padding_length_classes_and_neighbours_change_nothing(fitted, monkeypatch):
    scores = fitted.score_samples(DATA)
    for i, rows in enumerate(SERIES):
        alone = jaxem.Sequences([rows])
        assert abs(fitted.score_samples(alone)[0] - scores[i]) < 1e-10
        np.testing.assert_array_equal(fitted.predict(alone)[0], fitted.predict(DATA)[i])
    monkeypatch.setattr(tuning, "PADDED_CELLS", 10)
    monkeypatch.setattr(tuning, "PADDED_RATIO", 1)
    many = [*SERIES, *(SERIES[1][i : i + 4] for i in range(20))]
    classes = jaxem.Sequences(many)
    assert classes.place is not None and len(classes.stacks()) > 1
    monkeypatch.undo()
    data = jaxem.Sequences(many)
    assert data.place is None
    weights = np.r_[1.0, 2.0, 0.0, np.ones(21)]
    options = {"init": fitted.params, "tol": 0, "max_iter": 3, "weights": weights}
    one, other = (jaxem.fit(MODEL, x, **options) for x in (data, classes))
    for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert abs(one.bic() - other.bic()) < 1e-8
    for a, b in zip(one.predict_proba(data), one.predict_proba(classes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_weights_are_repetitions(fitted):
    repeated = jaxem.Sequences([SERIES[0], *SERIES])
    options = {"init": fitted.params, "tol": 0, "max_iter": 3}
    one = jaxem.fit(MODEL, repeated, **options)
    other = jaxem.fit(MODEL, DATA, weights=np.array([2.0, 1, 1, 1]), **options)
    for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert abs(one.log_likelihood - other.log_likelihood) < 1e-9
    assert abs(one.bic() - other.bic()) < 1e-9


def test_the_chunked_pass_is_the_plain_one(fitted, monkeypatch):
    """By matrix products, for many rows."""
    options = {"init": fitted.params, "tol": 0, "max_iter": 3, "weights": [1.0, 2.0, 0.5, 1.0]}
    for x in (DATA, jaxem.Sequences([s[:, :1] for s in SERIES])):
        model = MODEL if x is DATA else jaxem.HMM(jaxem.Normal("diagonal"), 2)
        if x is not DATA:
            options["init"] = jaxem.fit(model, x, key=0, max_iter=3, tol=0).params
        plain = jaxem.fit(model, x, **options)
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "CHUNKED", 1)
            jax.clear_caches()
            fused = jaxem.fit(model, x, **options)
        jax.clear_caches()
        for a, b in zip(*map(jax.tree.leaves, (plain.params, fused.params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("plain", "is_long"), ("zeros", "takes_levels"), ("gate", ""), ("segments", "")),
        *(slow("plain", form) for form in ("", "takes_levels")),
        *(slow("zeros", form) for form in ("", "is_long")),
        *(slow("gate", form) for form in ("takes_levels", "is_long")),
    ],
)
def test_blocks_of_rows_change_nothing(name, form, monkeypatch, fitted):
    """Long sequences in blocks, which bound the memory: sums, evidence and slopes."""
    (model, x, params), weights = variant(name, fitted.params), jnp.asarray([1.0, 2.0, 0.5])
    if form:
        monkeypatch.setattr(chain_forms, form, lambda *shape: True)

    def objective(params):
        fused = model.fused(x)
        sums, evidence = fused.sums(fused.coefficients(params), fused.prepare(x), weights)
        return weights @ evidence, sums

    answers = []
    for block in (2**23, 40):
        monkeypatch.setattr(chain_forms, "CPU_BLOCK", block)
        (evidence, sums), slope = jax.value_and_grad(objective, has_aux=True)(params)
        first = jnp.where(params.initial > 0, slope.initial, 0)
        answers.append((evidence, sums, first, slope.emissions))
    for a, b in zip(*map(jax.tree.leaves, answers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_a_missing_row_contributes_nothing(fitted):
    gap = [s.copy() for s in SERIES]
    gap[0][20:30] = np.nan
    x = jaxem.Sequences(gap)
    steps = jnp.linalg.matrix_power(fitted.params.transition, 10)
    assert jnp.isfinite(fitted.score_samples(x)).all() and x.observations()[0] == 50
    filtered = MODEL.filter(fitted.params, x)[0]
    np.testing.assert_allclose(filtered[29], filtered[19] @ steps, atol=1e-10)
    found = jaxem.fit(MODEL, x, key=0)
    assert found.converged
    rows = sum(map(len, SERIES)) - 10
    assert abs(found.bic() + 2 * found.log_likelihood - 13 * np.log(rows)) < 1e-9
    by_sequence = found.bic(units=True) + 2 * found.log_likelihood - 13 * np.log(len(x))
    assert abs(by_sequence) < 1e-9


def test_a_fleet_is_its_fits(fitted):
    sets = [jaxem.Sequences(SERIES[:2]), jaxem.Sequences(SERIES[2:]), DATA]
    init = jax.tree.map(lambda a: np.stack([a] * 3), jax.device_get(fitted.params))
    init.emissions.mean[...] += 0.3
    fleet = jaxem.fit(MODEL, jaxem.Batch(sets), init=init)
    assert fleet.converged.all()
    paths = fleet.predict(sets)
    for i, x in enumerate(sets):
        alone = jaxem.fit(MODEL, x, init=jax.tree.map(lambda a, i=i: a[i], init))
        assert abs(alone.log_likelihood - fleet.log_likelihood[i]) < 1e-6
        assert abs(fleet.bic()[i] - fleet[i].bic()) < 1e-8
        assert abs(fleet.bic(sets)[i] - fleet[i].bic()) < 1e-6
        assert abs(fleet.bic(units=True)[i] - fleet[i].bic(units=True)) < 1e-6
        for a, b in zip(alone.predict(x), paths[i], strict=True):
            np.testing.assert_array_equal(a, b)
    mapped = jax.vmap(lambda x: jaxem.fit(MODEL, jaxem.Sequences(x), key=0).log_likelihood)
    x = np.stack([SERIES[0][:20], SERIES[1][:20]])[:, None]
    for value, one in zip(mapped(x), x, strict=True):
        assert abs(value - jaxem.fit(MODEL, jaxem.Sequences(one), key=0).log_likelihood) < 1e-6


def test_a_fleet_may_be_larger_than_its_lanes(fitted):
    sets = [jaxem.Sequences([s[:20] + 0.01 * i for s in SERIES[:3]]) for i in range(20)]
    init = jax.tree.map(lambda a: np.stack([a] * 20), jax.device_get(fitted.params))
    few, many = (jaxem.fit(MODEL, jaxem.Batch(sets), init=init, lanes=n) for n in (3, 20))
    np.testing.assert_allclose(few.log_likelihood, many.log_likelihood, rtol=1e-9)
    np.testing.assert_array_equal(few.status, many.status)


def test_probabilities_that_underflow_are_still_parameters():
    """In float32 the free initial probabilities go to a vertex and would underflow."""
    x = jaxem.Sequences([s.astype(np.float32) for s in SERIES[:1]])
    found = jaxem.fit(MODEL, x, key=0, tol=0, max_iter=300)
    assert found.params.initial.dtype == np.float32 and found.params.initial.min() < 1e-20
    assert found.n_parameters == 13


def test_gradients_with_gaps_equal_differences():
    gap = np.stack([s[:25] for s in SERIES[:3]])
    gap[1, 7] = np.nan

    @jax.jit
    def value(x):
        found = jaxem.fit(MODEL, jaxem.Sequences(x), key=0, tol=1e-13, max_iter=5000)
        p = found.params
        total = p.emissions.mean.sum() + p.transition[0, 0] + found.log_likelihood / 10
        return total, found.gradient_ok

    slope, ok = jax.jit(jax.grad(value, has_aux=True))(gap)
    assert ok and np.isfinite(slope).all() and (slope[1, 7] == 0).all()
    for at in ((0, 0, 0), (1, 6, 1), (1, 24, 0)):
        step = np.zeros_like(gap)
        step[at] = 1e-4
        difference = (value(gap + step)[0] - value(gap - step)[0]) / 2e-4
        assert abs(difference - slope[at]) < 1e-4 * (1 + abs(slope[at]))


def rising(values):
    return np.all(np.diff(values) > -1e-9)


@pytest.mark.parametrize("initial", ["free", "stationary"])
def test_no_step_lowers_the_objective_and_the_end_is_stationary(initial):
    prior = jaxem.ChainPrior(initial=1.5, transition=1.2, sticky=2.0)
    model = jaxem.HMM(jaxem.Normal("diagonal"), 3, initial=initial, prior=prior)
    values = [
        float(jaxem.fit(model, DATA, key=1, max_iter=n, tol=0).objective) for n in range(0, 12, 2)
    ]
    assert rising(values)
    found = jaxem.fit(model, DATA, key=1, tol=1e-11)
    assert found.converged

    def objective(logits, mean):
        transition = jax.nn.softmax(logits)
        start = found.params.initial
        if initial == "stationary":
            start = stationary(transition)
        emissions = jaxem.NormalParams(mean, found.params.emissions.covariance)
        p = jaxem.HMMParams(start, transition, emissions)
        return model.log_prob(p, DATA).sum() + model.log_prior(p)

    params = found.params
    value = objective(jnp.log(params.transition), params.emissions.mean)
    assert abs(value - found.objective) < 1e-8
    slopes = jax.grad(objective, (0, 1))(jnp.log(params.transition), params.emissions.mean)
    assert max(float(abs(s).max()) for s in slopes) < 1e-4


def test_structural_zeros_stay_and_are_not_counted(fitted):
    transition = jnp.asarray([[0.9, 0.1], [0.0, 1.0]])
    start = jaxem.HMMParams(jnp.asarray([1.0, 0.0]), transition, fitted.params.emissions)
    found = jaxem.fit(MODEL, DATA, init=start)
    assert found.params.transition[1, 0] == 0 and found.params.initial[1] == 0
    assert found.n_parameters == 2 * 5 + 1 and fitted.n_parameters == 2 * 5 + 3


RULES = {
    "hard": jaxem.EM(jaxem.Hard()),
    "tempered": jaxem.EM(jaxem.Tempered(steps=5)),
    "incremental": jaxem.EM(jaxem.Incremental(blocks=2)),
    "stochastic": jaxem.EM(jaxem.Stochastic(draws=3, steps=5)),
    "gradient": jaxem.EM(m_step=jaxem.Gradient()),
    "squarem": jaxem.EM(accelerator=jaxem.SQUAREM()),
    "anderson": jaxem.EM(accelerator=jaxem.Anderson()),
    "online": jaxem.OnlineEM(batch=2, passes=3),
}


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize("name", RULES)
def test_every_rule_ends_where_em_does(name, fitted):
    found = jaxem.fit(MODEL, DATA, key=0, method=RULES[name])
    assert found.converged
    if name == "hard":
        assert fitted.log_likelihood - 5 < found.objective < found.log_likelihood + 1e-9
    elif name in ("tempered", "stochastic"):  # other optima
        steps = jaxem.fit(MODEL, DATA, init=found.params, tol=0, max_iter=2)
        assert abs(steps.log_likelihood - found.log_likelihood) < 1e-4
    else:
        assert abs(found.log_likelihood - fitted.log_likelihood) < 1e-3


def test_restricted_transitions_are_exact(fitted):
    fixed = jaxem.Restricted(MODEL, fixed={"transition[0]": [0.95, 0.05]})
    found = jaxem.fit(fixed, DATA, init=fitted.params)
    np.testing.assert_allclose(found.params.transition[0], [0.95, 0.05], atol=1e-12)
    assert found.converged and found.n_parameters == 12
    model = jaxem.HMM(jaxem.Normal(), 3)
    tied = jaxem.Restricted(
        model, tied=[("transition[0]", "transition[1]"), ("transition[2, 0]", "transition[2, 1]")]
    )
    found = jaxem.fit(tied, DATA, key=0, tol=1e-11)
    matrix = found.params.transition
    np.testing.assert_allclose(matrix[0], matrix[1], atol=1e-12)
    assert found.converged and abs(matrix[2, 0] - matrix[2, 1]) < 1e-12
    assert found.n_parameters == 2 + 2 + 1 + 15

    def score(first, staying):
        last = jnp.stack([(1 - staying) / 2, (1 - staying) / 2, staying])
        first = jax.nn.softmax(first)
        matrix = jnp.stack([first, first, last])
        params = jaxem.HMMParams(found.params.initial, matrix, found.params.emissions)
        return model.log_prob(params, DATA).sum()

    first, staying = jax.grad(score, (0, 1))(jnp.log(matrix[0]), matrix[2, 2])
    assert abs(first).max() < 1e-4 and abs(staying * matrix[2, 2]) < 1e-4


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_tempered_posteriors_are_powers_of_the_joint(fitted, power):
    rows = SERIES[3]
    logs = np.asarray(MODEL.bank.posterior(fitted.params.emissions, jnp.asarray(rows))[1])
    p = fitted.params
    exact = enumerated(
        np.asarray(p.initial) ** power, np.asarray(p.transition) ** power, power * logs
    )
    q = MODEL.tempered(p, jaxem.Sequences([rows]), power)
    np.testing.assert_allclose(q.rows, exact.marginals, atol=1e-10)
    np.testing.assert_allclose(q.transitions[0], exact.pairs, atol=1e-10)


def test_paths_drawn_have_the_smoothed_frequencies(fitted):
    x = jaxem.Sequences(SERIES[3:])
    drawn = np.stack([MODEL.draw(i, fitted.params, x)[0] for i in range(800)])
    smooth = MODEL.smooth(fitted.params, x)[0]
    np.testing.assert_allclose((drawn == 1).mean(0), smooth[:, 1], atol=0.06)


def test_forecasts_go_to_the_stationary_distribution(fitted):
    states = MODEL.forecast(fitted.params, DATA, 400).states
    last = [one[-1] for one in MODEL.filter(fitted.params, DATA)]
    np.testing.assert_allclose(states[:, 0], np.stack(last) @ fitted.params.transition, atol=1e-10)
    np.testing.assert_allclose(states[0, -1], stationary(fitted.params.transition), atol=1e-6)


def test_draws_are_recovered():
    params = jaxem.HMMParams(
        jnp.asarray([0.5, 0.5]),
        jnp.asarray([[0.9, 0.1], [0.3, 0.7]]),
        jaxem.PoissonParams(jnp.asarray([[2.0], [9.0]])),
    )
    model = jaxem.HMM(jaxem.Poisson(), 2)
    x = model.sample(jax.random.key(0), params, 40, length=100)
    found = jaxem.fit(model, x, key=0)
    order = np.argsort(found.params.emissions.rate[:, 0])
    np.testing.assert_allclose(found.params.emissions.rate[order, 0], [2, 9], rtol=0.05)
    transition = np.asarray(found.params.transition)[order][:, order]
    np.testing.assert_allclose(transition, params.transition, atol=0.03)


def test_files_selection_and_checks(fitted, tmp_path):
    fitted.save(tmp_path / "chain.npz")
    again = jaxem.load(tmp_path / "chain.npz")
    np.testing.assert_array_equal(again.predict(DATA)[0], fitted.predict(DATA)[0])
    models = [jaxem.HMM(jaxem.Normal("diagonal"), k) for k in (1, 2, 3)]
    chosen = jaxem.select(DATA, models, key=0)
    assert chosen.best.model.k == 2
    assert abs(chosen.table[1].score - chosen.results[1].bic()) < 1e-9
    jaxem.check_model(MODEL, DATA)


def test_empty_and_short_sequences_are_defined(fitted):
    x = jaxem.Sequences([SERIES[0], np.empty((0, 2)), SERIES[0][:1]])
    scores = fitted.score_samples(x)
    assert scores[1] == 0 and np.isfinite(scores).all()
    assert [len(p) for p in fitted.predict(x)] == [60, 0, 1]
    same = jaxem.fit(MODEL, x, init=fitted.params, tol=0, max_iter=2)
    other = jaxem.fit(MODEL, x[[0, 2]], init=fitted.params, tol=0, max_iter=2)
    np.testing.assert_allclose(same.params.transition, other.params.transition, atol=1e-12)
    np.testing.assert_allclose(same.params.initial, other.params.initial, atol=1e-12)


class Silent(jaxem.Bank):
    """A bank without draws."""


def test_bad_data_get_a_sentence(fitted):
    with pytest.raises(TypeError, match=r"takes jaxem\.Sequences.*jaxem\.Sequences\(x\)"):
        jaxem.fit(MODEL, SERIES[0], key=0)
    with pytest.raises(ValueError, match=r"data\[1\] has 1 features, data\[0\] has 2"):
        jaxem.Sequences([SERIES[0], SERIES[1][:, :1]])
    with pytest.raises(ValueError, match="all sequences are empty"):
        jaxem.Sequences([np.empty((0, 2))])
    hole = SERIES[0].copy()
    hole[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 value outside.*\(0, 3, 0\): nan"):
        jaxem.fit(MODEL, jaxem.Sequences([hole]), key=0)
    with pytest.raises(TypeError, match="emissions must be a bank"):
        jaxem.HMM(jaxem.Mixture(jaxem.Normal(), 2), 2)
    with pytest.raises(TypeError, match=r"Constrained is for models that define log_joint"):
        rule = jaxem.Constrained(np.eye(2)[:, :1], np.array([0.5]))
        jaxem.fit(MODEL, DATA, key=0, method=jaxem.EM(rule))
    with pytest.raises(ValueError, match="every row is missing"):
        jaxem.Sequences([np.full((3, 2), np.nan)])
    with pytest.raises(ValueError, match="1 features, but the model was fitted with 2"):
        fitted.predict(jaxem.Sequences([SERIES[0][:, :1]]))
    with pytest.raises(NotImplementedError, match="Silent does not define sample"):
        jaxem.HMM(Silent(), 2).sample(jax.random.key(0), fitted.params, 2)
    with pytest.raises(ValueError, match="takes none"):
        jaxem.fit(MODEL, jaxem.Sequences(SERIES, inputs=SERIES), key=0)
    with pytest.raises(ValueError, match="inputs are of 1 sequences, data of 4"):
        jaxem.Sequences(SERIES, inputs=SERIES[:1])


def test_a_second_call_compiles_nothing(fitted):
    jaxem.fit(MODEL, DATA, key=0)
    with compilations() as found:
        jaxem.fit(MODEL, jaxem.Sequences([s + 1 for s in SERIES]), key=1)
    assert not found


def gated(k, seed=0):
    """A model with a gate, sequences with inputs, and random params."""
    rng = np.random.default_rng(seed)
    model = jaxem.HMM(jaxem.Normal(), k, transitions=jaxem.SoftmaxGate())
    lengths = (5, 1, 4)
    series, inputs = ([rng.normal(size=(t, d)) for t in lengths] for d in (1, 2))
    series[0][2] = np.nan
    coefficients = rng.normal(size=(k, k, 3))
    coefficients[:, 0] = 0
    emissions = jaxem.NormalParams(rng.normal(size=(k, 1)), np.ones((k, 1, 1)))
    params = jaxem.HMMParams(rng.dirichlet(np.ones(k)), coefficients, emissions)
    return model, series, inputs, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("k", [2, 3])
def test_inputs_act_on_the_transition_to_the_next_row(k):
    model, series, inputs, params = gated(k)
    x = jaxem.Sequences(series, inputs=inputs)
    evidence = model.log_prob(params, x)
    smooth, paths = model.smooth(params, x), model.viterbi(params, x)
    for i, (rows, given) in enumerate(zip(series, inputs, strict=True)):
        logits = np.einsum("ijm,tm->tij", params.transition, np.c_[np.ones(len(given)), given])
        matrices = np.asarray(jax.nn.log_softmax(logits, -1))
        logs = np.asarray(model.bank.posterior(params.emissions, jnp.nan_to_num(rows))[1])
        logs = np.where(np.isnan(rows), 0, logs)
        scores = {}
        for path in itertools.product(range(k), repeat=len(rows)):
            score = np.log(params.initial[path[0]]) + logs[np.arange(len(rows)), path].sum()
            pairs = enumerate(itertools.pairwise(path))
            scores[path] = float(score + sum(matrices[t, a, b] for t, (a, b) in pairs))
        total = np.logaddexp.reduce(list(scores.values()))
        assert abs(evidence[i] - total) < 1e-10
        first = [sum(np.exp(s - total) for p, s in scores.items() if p[0] == j) for j in range(k)]
        np.testing.assert_allclose(smooth[i][0], first, atol=1e-10)
        assert abs(scores[tuple(paths[i].tolist())] - max(scores.values())) < 1e-10


def test_a_gate_climbs_to_a_stationary_point_whatever_the_units_of_inputs():
    rng = np.random.default_rng(3)
    inputs = [rng.normal(size=(t, 1)) for t in (150, 100)]
    series = []
    for given in inputs:
        z, rows = 0, []
        for one in given[:, 0]:
            rows.append(3 * z + rng.normal())
            z = int(rng.uniform() < 1 / (1 + np.exp(-(2 * one if z == 0 else -1 + one))))
        series.append(np.array(rows)[:, None])
    model = jaxem.HMM(jaxem.Normal(), 2, transitions=jaxem.SoftmaxGate())
    x = jaxem.Sequences(series, inputs=inputs)
    steps = [float(jaxem.fit(model, x, key=0, tol=0, max_iter=n).objective) for n in range(8)]
    assert rising(steps)
    found = jaxem.fit(model, x, key=0, tol=1e-11)
    assert found.converged and found.n_parameters == 1 + 4 + 4

    def score(coefficients):
        p = jaxem.HMMParams(found.params.initial, coefficients, found.params.emissions)
        return model.log_prob(p, x).sum()

    assert abs(jax.grad(score)(found.params.transition)[:, 1]).max() < 1e-3
    other = jaxem.Sequences(series, inputs=[1000 * g for g in inputs])
    again = jaxem.fit(model, other, key=0, tol=1e-11)
    assert abs(again.log_likelihood - found.log_likelihood) < 1e-6
    scaled = found.params.transition / jnp.asarray([1, 1000.0])
    np.testing.assert_allclose(again.params.transition, scaled, rtol=1e-3, atol=1e-6)
    plain = jaxem.fit(jaxem.HMM(jaxem.Normal(), 2), jaxem.Sequences(series), key=0, tol=1e-11)
    constant = jaxem.Sequences(series, inputs=[0 * g for g in inputs])
    without = jaxem.fit(model, constant, key=0, tol=1e-11, max_iter=5000)
    assert abs(without.log_likelihood - plain.log_likelihood) < 1e-5
    assert found.log_likelihood > plain.log_likelihood + 10
    ahead = np.zeros((2, 3, 1))
    states = model.forecast(found.params, x, 3, inputs=ahead).states
    assert states.shape == (2, 3, 2) and np.allclose(states.sum(-1), 1)
    with pytest.raises(ValueError, match="forecasts need inputs"):
        model.forecast(found.params, x, 3)
    prior = jaxem.HMM(jaxem.Normal(), 2, transitions=jaxem.SoftmaxGate(prior=10.0))
    shrunk = jaxem.fit(prior, x, key=0, tol=1e-11)
    assert abs(shrunk.params.transition[..., 1]).sum() < abs(found.params.transition[..., 1]).sum()
    assert abs(shrunk.objective - shrunk.log_likelihood - prior.log_prior(shrunk.params)) < 1e-8


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize("rule", [jaxem.Hard(), jaxem.Stochastic(steps=3)])
def test_rules_take_gates_too(rule):
    model, series, inputs, params = gated(2)
    x = jaxem.Sequences(
        [s[[0, 1]] for s in series[::2]] * 8, inputs=[g[:2] for g in inputs[::2]] * 8
    )
    found = jaxem.fit(model, x, init=params, method=jaxem.EM(rule), max_iter=6, tol=0)
    assert np.isfinite(found.objective)


AUTOREGRESSIONS = [
    jaxem.Autoregression(),
    jaxem.Autoregression(lags=2, shared_variance=True),
    jaxem.Autoregression(intercept=False),
]


@pytest.mark.parametrize("bank", AUTOREGRESSIONS, ids=repr)
def test_one_state_is_least_squares(bank):
    rng = np.random.default_rng(4)
    rows = np.cumsum(rng.normal(size=(80, 2)), 0) * 0.3 + 5
    found = jaxem.fit(jaxem.HMM(bank, 1), jaxem.Sequences([rows]), key=0)
    p, lags = bank.lags, found.params.emissions
    columns = [rows[p - lag : len(rows) - lag] for lag in range(1, p + 1)]
    u = np.concatenate([np.ones((len(rows) - p, 1))] * bank.intercept + columns, 1)
    expected, _, _, _ = np.linalg.lstsq(u, rows[p:], rcond=None)
    np.testing.assert_allclose(lags.coefficients[0], expected, rtol=1e-6, atol=1e-8)
    away = rows[p:] - u @ expected
    covariance = np.asarray(lags.covariance if bank.shared_variance else lags.covariance[0])
    np.testing.assert_allclose(covariance, away.T @ away / len(away), rtol=1e-6)
    assert found.total_weight == len(rows) - p


def test_autoregression_is_conditional_on_its_first_rows_and_leaves_out_what_follows_a_gap():
    rng = np.random.default_rng(5)
    rows = np.cumsum(rng.normal(size=(7, 1)), 0)
    rows[3] = np.nan
    model = jaxem.HMM(jaxem.Autoregression(), 2)
    params = jax.tree.map(
        jnp.asarray,
        jaxem.HMMParams(
            np.array([0.3, 0.7]),
            np.array([[0.8, 0.2], [0.4, 0.6]]),
            jaxem.AutoregressionParams(rng.normal(size=(2, 2, 1)), np.ones((2, 1, 1))),
        ),
    )
    x = jaxem.Sequences([rows])
    logs = np.zeros((6, 2))
    for t in range(1, 7):
        if np.isfinite(rows[t - 1 : t + 1]).all():
            b = np.asarray(params.emissions.coefficients)[:, :, 0]
            away = rows[t, 0] - b[:, 0] - b[:, 1] * rows[t - 1, 0]
            logs[t - 1] = -0.5 * (np.log(2 * np.pi) + away**2)
    exact = enumerated(np.asarray(params.initial), np.asarray(params.transition), logs)
    assert abs(model.log_prob(params, x)[0] - exact.evidence) < 1e-10
    smooth, path = model.smooth(params, x)[0], model.viterbi(params, x)[0]
    assert len(path) == 7 and path[0] == -1 and np.isnan(smooth[0]).all()
    np.testing.assert_allclose(smooth[1:], exact.marginals, atol=1e-10)
    assert x.lagged(1).observations()[0] == 4


def test_two_regimes_are_found_in_float32_too():
    rng = np.random.default_rng(6)
    z = np.repeat([0, 1, 0, 1], 100)
    rows = np.zeros(400)
    for t in range(1, 400):
        rows[t] = (0.9 * rows[t - 1] if z[t] else -0.5 * rows[t - 1] + 1) + 0.5 * rng.normal()
    model, found = jaxem.HMM(jaxem.Autoregression(), 2), {}
    for dtype in (np.float64, np.float32):
        x = jaxem.Sequences([(1000 + rows).astype(dtype)])
        fit = jaxem.fit(model, x, key=0, restarts=8)
        assert fit.converged
        slopes = np.asarray(fit.params.emissions.coefficients[:, 1, 0])
        found[dtype] = np.sort(slopes), fit.predict(x)[0]
    np.testing.assert_allclose(*(slopes for slopes, _ in found.values()), atol=2e-3)
    # Least squares of the rows of each regime, which the path finds but for a few.
    known = [np.polyfit(rows[:-1][z[1:] == i], rows[1:][z[1:] == i], 1)[0] for i in (0, 1)]
    np.testing.assert_allclose(found[np.float64][0], known, atol=0.05)
    path = found[np.float64][1][1:]
    assert max(np.mean(path == z[1:]), np.mean(path != z[1:])) > 0.95


def test_rounding_is_no_fall_in_float32():
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, size=(100, 1, 120, 1)).astype(np.float32)
    fleet = jaxem.fit(
        jaxem.HMM(jaxem.Poisson(), 2), jaxem.Batch(list(map(jaxem.Sequences, x))), key=0
    )
    assert not (fleet.status == jaxem.Status.DECREASED).any()


LEVELS = np.repeat([0.0, 4.0, 0.0], 12)
"""Three states left to right, the third of which looks like the first: clusters cannot tell."""

PARTS = LEVELS[:, None] + np.random.default_rng(7).normal(size=(6, 36, 1))
IN_PARTS = jaxem.Sequences([s[: 36 - i] for i, s in enumerate(PARTS)])
PARTED = jaxem.HMM(jaxem.Normal("tied"), 3)
LEFT_TO_RIGHT = {"init": "left_to_right", "key": 0}


def test_left_to_right_starts_from_parts_in_time():
    found = jaxem.fit(PARTED, IN_PARTS, **LEFT_TO_RIGHT)
    p = found.params
    assert found.converged and found.n_parameters == 3 + 1 + 2
    np.testing.assert_array_equal(p.transition > 0, np.eye(3) + np.eye(3, k=1) > 0)
    np.testing.assert_array_equal(p.initial, [1, 0, 0])
    right = np.concatenate([np.arange(36 - i) // 12 for i in range(6)])
    rows = np.concatenate([s[: 36 - i, 0] for i, s in enumerate(PARTS)])
    means = [rows[right == i].mean() for i in range(3)]
    np.testing.assert_allclose(p.emissions.mean[:, 0], means, atol=0.05)
    assert np.mean(np.concatenate(found.predict(IN_PARTS)) == right) > 0.98
    begin = jaxem.fit(PARTED, IN_PARTS, **LEFT_TO_RIGHT, max_iter=0).params
    np.testing.assert_allclose(begin.transition[0, 0], 1 - 3 / 33.5, rtol=1e-12)
    clusters = jaxem.fit(PARTED, IN_PARTS, key=0, max_iter=0).params.emissions
    imposed = jaxem.HMMParams(begin.initial, begin.transition, clusters)
    other = jaxem.fit(PARTED, IN_PARTS, init=imposed)
    assert other.log_likelihood < found.log_likelihood - 50


def test_templates_start_fleets_of_restarts():
    sets = [IN_PARTS[:3], IN_PARTS[3:]]
    fleet = jaxem.fit(PARTED, jaxem.Batch(sets), **LEFT_TO_RIGHT, restarts=2)
    assert fleet.converged.all()
    np.testing.assert_array_equal(fleet.params.transition[:, 2] > 0, [[False, False, True]] * 2)
    begin = jaxem.fit(PARTED, jaxem.Batch(sets), **LEFT_TO_RIGHT, restarts=2, max_iter=0)
    first, second = np.moveaxis(begin.restarts.params.emissions.mean, 1, 0)
    assert (first != second).all()


@pytest.mark.slow
def test_templates_work_under_jit_and_vmap_and_with_restrictions():
    def alone(rows):
        fit = jaxem.fit(PARTED, jaxem.Sequences(rows), **LEFT_TO_RIGHT)
        return fit.log_likelihood, fit.params.transition

    value, transition = jax.jit(jax.vmap(alone))(PARTS.reshape(2, 3, 36, 1))
    assert abs(value[0] - alone(PARTS[:3])[0]) < 1e-6 and (transition[:, 2, :2] == 0).all()
    fixed = jaxem.Restricted(PARTED, {"emissions.mean[0]": 0.1})
    found = jaxem.fit(fixed, IN_PARTS, **LEFT_TO_RIGHT)
    assert found.converged and found.params.emissions.mean[0] == 0.1


@pytest.mark.parametrize("initial", ["free", pytest.param("stationary", marks=pytest.mark.slow)])
def test_cyclic_starts_order_the_states(initial):
    levels, z = np.array([0.0, 9.0, 4.0]), np.arange(90) // 5 % 3
    noise = np.random.default_rng(8).normal(size=(3, 90))
    x = jaxem.Sequences((levels[z] + noise)[..., None])
    model = jaxem.HMM(jaxem.Normal(), 3, initial=initial)
    allowed = np.eye(3) + np.roll(np.eye(3), 1, 1)
    for seed in range(3):
        found = jaxem.fit(model, x, key=seed, init="cyclic")
        order = np.argmin(abs(found.params.emissions.mean - levels), 1)
        assert found.converged
        np.testing.assert_array_equal(np.roll(order, -1), (order + 1) % 3)
        np.testing.assert_array_equal(found.params.transition > 0, allowed > 0)
        np.testing.assert_allclose(np.diagonal(found.params.transition), 0.8, atol=0.04)


def test_templates_are_for_chains_that_can_have_them():
    gate = jaxem.HMM(jaxem.Normal(), 2, transitions=jaxem.SoftmaxGate())
    still = jaxem.HMM(jaxem.Normal(), 2, initial="stationary")
    for model, init, error, text in (
        (gate, "cyclic", ValueError, "those of SoftmaxGate are above 0: leave init=None"),
        (still, "left_to_right", ValueError, 'the last one alone: leave initial="free"'),
        (jaxem.Mixture(jaxem.Normal(), 2), "cyclic", TypeError, "init='cyclic' is for chains"),
        (MODEL, "kmeans++", TypeError, "HMM has its own start, and takes no responsibilities"),
    ):
        for one in (model, jaxem.Restricted(model)):
            with pytest.raises(error, match=text):
                jaxem.fit(one, DATA, key=0, init=init)


def test_draws_with_a_gate_have_its_probabilities():
    """Inputs of 0 or 1: the frequencies of transitions are known."""
    gate = jaxem.HMM(jaxem.Normal(), 2, transitions=jaxem.SoftmaxGate())
    logits = np.array([[-1.0, 2.0], [1.5, -3.0]])  # of the second state
    params = jaxem.HMMParams(
        jnp.asarray([1.0, 0.0]),
        jnp.stack([jnp.zeros((2, 2)), jnp.asarray(logits)], 1),
        jaxem.NormalParams(jnp.asarray([[0.0], [100.0]]), jnp.ones((2, 1, 1))),
    )
    inputs = np.random.default_rng(0).integers(2, size=(40, 100, 1)).astype(float)
    x = gate.sample(jax.random.key(0), params, 40, inputs=inputs)
    np.testing.assert_array_equal(x.inputs, inputs)
    z, given = np.asarray(x.rows[..., 0] > 50), inputs[:, :-1, 0]
    assert not z[:, 0].any()
    for state in (0, 1):
        for value in (0, 1):
            following = z[:, 1:][(z[:, :-1] == state) & (given == value)]
            p = 1 / (1 + np.exp(-logits[state] @ [1, value]))
            assert abs(following.mean() - p) < 4 * np.sqrt(p * (1 - p) / len(following))
    key = jax.random.key(0)
    for model, options, text in (
        (gate, {}, r"depend on inputs: give inputs=... of shape \(2, 100, 1\)"),
        (gate, {"inputs": inputs[:2], "length": 50}, r"must have shape \(2, 50, 1\), got \(2, 100"),
        (gate, {"inputs": inputs[:2] * np.nan}, "not finite"),
        (MODEL, {"inputs": inputs[:2]}, "inputs are given, HMM takes none"),
        (MODEL, {"length": 0}, "length must be an int of 1 or more"),
    ):
        with pytest.raises(ValueError, match=text):
            model.sample(key, params, 2, **options)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_autoregressive_draws_are_recovered(shared):
    bank = jaxem.Autoregression(lags=2, shared_variance=shared)
    covariance = np.array([[1.0, 0.5], [0.5, 1.0]])
    slopes = np.array([[[0.5, 0.2], [0.0, 0.4], [0.1, 0.0], [0.1, 0.2]], np.zeros((4, 2))])
    slopes[1, :2] = -0.6 * np.eye(2)
    level = np.array([[[5.0, 5.0]], [[-5.0, 0.0]]])
    emissions = jaxem.AutoregressionParams(
        np.concatenate([level, slopes], 1), covariance if shared else np.stack([covariance] * 2)
    )
    transition = np.array([[0.95, 0.05], [0.1, 0.9]])
    params = jaxem.HMMParams(np.array([0.5, 0.5]), transition, emissions)
    model = jaxem.HMM(bank, 2)
    x = model.sample(jax.random.key(1), params, 20, length=102)
    assert x.rows.shape == (20, 102, 2)
    begin = np.asarray(x.rows[:, :2])
    np.testing.assert_array_equal(begin[:, 0], begin[:, 1])
    by_slopes = np.stack([begin[:, 0] @ (s[:2] + s[2:]) for s in slopes])
    assert (abs(level + by_slopes - begin[:, 0]).max(-1).min(0) < 1e-9).all()
    found = jaxem.fit(model, x, init=params)
    # Twice the log-likelihood ratio is about χ² with 29 or 26 degrees of freedom, whose 99.99%
    # points are 66 and 61. Slopes that are wrong by 0.02 give 2,800.
    ratio = 2 * (found.log_likelihood - model.log_prob(jax.tree.map(jnp.asarray, params), x).sum())
    assert found.converged and found.n_parameters == (26 if shared else 29)
    assert 0 < ratio < (61 if shared else 66)
    with pytest.raises(ValueError, match="length must be an int of 3 or more"):
        found.sample(0, 2, length=2)
    assert found.sample(0, 2, length=3).rows.shape == (2, 3, 2)
