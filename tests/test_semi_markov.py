"""Hidden semi-Markov models: against sums over all segmentations, laws, rules and gradients."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import chains, durations, segments, tuning
from scipy import stats

import jaxem

RNG = np.random.default_rng(0)
BANKS = {
    "normal": (jaxem.Normal(), lambda t: RNG.normal(size=(t, 2))),
    "poisson": (jaxem.Poisson(), lambda t: RNG.poisson(3.0, size=(t, 1)).astype(float)),
    "categorical": (jaxem.Categorical(3), lambda t: RNG.integers(3, size=(t, 1)).astype(float)),
    "product": (
        jaxem.Product({"size": (jaxem.Normal(), 0), "count": (jaxem.Poisson(), 1)}),
        lambda t: np.stack([RNG.normal(size=t), RNG.poisson(2.0, size=t)], 1).astype(float),
    ),
}
KINDS = ("poisson", "negative_binomial", "categorical")


def probabilities(kind, params, longest):
    """p(d) (k, longest) of durations 1 … longest."""
    x = np.arange(longest)
    if kind == "categorical":
        return np.asarray(params)
    if kind == "poisson":
        found = stats.poisson.pmf(x, np.asarray(params)[:, None])
    else:
        mean, size = (np.asarray(a)[:, None] for a in (params.mean, params.size))
        found = stats.nbinom.pmf(x, size, size / (size + mean))
    return found / found.sum(1, keepdims=True)


class Exact(NamedTuple):
    evidence: float
    marginals: np.ndarray
    filtered: np.ndarray
    moves: np.ndarray
    ended: np.ndarray
    stayed: np.ndarray
    scores: dict


def segmentations(initial, transition, duration, t):
    """(segments, a tuple of (state, rows); its probability) of all segmentations of t rows."""
    k, longest = duration.shape
    survival = np.cumsum(duration[:, ::-1], 1)[:, ::-1]

    def begin(states, rest, before, p):
        for j in range(k):
            if rest <= longest:
                yield (*before, (j, rest)), p * states[j] * survival[j, rest - 1]
            for d in range(1, min(longest, rest - 1) + 1):
                inner = p * states[j] * duration[j, d - 1]
                yield from begin(transition[j], rest - d, (*before, (j, d)), inner)

    return [(found, p) for found, p in begin(initial, t, (), 1.0) if p > 0]


def enumerated(initial, transition, duration, logs, power=1.0):
    """Sums over all segmentations, with their probabilities raised to a power."""
    (t, k), longest = logs.shape, duration.shape[1]
    scores = {}
    for found, p in segmentations(initial, transition, duration, t):
        path = [z for z, d in found for _ in range(d)]
        scores[found] = power * (np.log(p) + logs[np.arange(t), path].sum())
    evidence = np.logaddexp.reduce(list(scores.values()))
    marginals, moves = np.zeros((t, k)), np.zeros((k, k))
    ended, stayed = np.zeros((k, longest)), np.zeros((k, longest))
    for found, score in scores.items():
        p = np.exp(score - evidence)
        path = [z for z, d in found for _ in range(d)]
        marginals[np.arange(t), path] += p
        for z, d in found:
            stayed[z, : d - 1] += p
        for (z, d), (following, _) in itertools.pairwise(found):
            moves[z, following] += p
            ended[z, d - 1] += p
    return Exact(evidence, marginals, marginals[-1], moves, ended, stayed, scores)


def params_of(model, emissions, seed=0, diagonal=False):
    """Random params, of transitions with a zero diagonal or without."""
    rng = np.random.default_rng(seed)
    k, longest = model.k, model.longest
    transition = rng.dirichlet(np.ones(k), k)
    if not diagonal:
        transition *= 1 - np.eye(k)
        transition /= transition.sum(1, keepdims=True)
    mean = rng.uniform(0.2, longest, k)
    found = {
        "poisson": mean,
        "negative_binomial": jaxem.DurationParams(mean, rng.uniform(0.3, 4, k)),
        "categorical": rng.dirichlet(np.ones(longest), k),
    }[model.durations]
    params = jaxem.SemiMarkovParams(rng.dirichlet(np.ones(k)), transition, found, emissions)
    return jax.tree.map(jnp.asarray, params)


def exact_of(model, params, logs, power=1.0):
    duration = probabilities(model.durations, params.durations, model.longest)
    return enumerated(*map(np.asarray, (params.initial, params.transition)), duration, logs, power)


def with_gaps(draw):
    """Sequences of several lengths, of one row too, with missing rows at all places."""
    series = [draw(t) for t in (6, 1, 5, 4, 2)]
    series[0][[0, 3]] = np.nan
    series[2][4] = np.nan
    series[4][:] = np.nan
    return series


SIZES = [
    ("normal", 2, "poisson", 4, False),
    ("poisson", 3, "negative_binomial", 3, True),
]
SELDOM = [
    ("product", 2, "categorical", 2, False),
    ("categorical", 3, "negative_binomial", 4, False),
    ("normal", 3, "categorical", 4, True),
    ("product", 3, "poisson", 2, False),
    ("poisson", 2, "categorical", 4, True),
]
SIZES += [pytest.param(*size, marks=pytest.mark.slow) for size in SELDOM]


@pytest.mark.parametrize(("name", "k", "kind", "longest", "diagonal"), SIZES)
def test_sums_over_all_segmentations(name, k, kind, longest, diagonal):
    bank, draw = BANKS[name]
    model = jaxem.SemiMarkov(bank, k, kind, longest=longest)
    start = jaxem.Mixture(bank, k)
    rows = draw(40)
    emissions = jaxem.fit(start, rows, key=0, max_iter=2, tol=0).params.components
    params = params_of(model, emissions, diagonal=diagonal)
    series = with_gaps(draw)
    x = jaxem.Sequences(series)
    q, evidence = jax.jit(model.posterior)(params, x)
    smooth, paths = model.smooth(params, x), model.viterbi(params, x)
    filtered = model.filter(params, x)
    hard, best = jax.jit(model.hardened)(params, x)
    for i, rows in enumerate(series):
        seen = ~np.isnan(rows).all(1)
        filled = np.where(seen[:, None], rows, draw(30)[: len(rows)])
        logs = np.asarray(bank.posterior(params.emissions, jnp.asarray(filled))[1])
        exact = exact_of(model, params, np.where(seen[:, None], logs, 0))
        assert abs(evidence[i] - exact.evidence) < 1e-10
        np.testing.assert_allclose(smooth[i], exact.marginals, atol=1e-10)
        np.testing.assert_allclose(q.first[i], exact.marginals[0], atol=1e-10)
        np.testing.assert_allclose(filtered[i][-1], exact.filtered, atol=1e-10)
        for name in ("moves", "ended", "stayed"):
            got = getattr(q.transitions, name)[i]
            np.testing.assert_allclose(got, getattr(exact, name), atol=1e-10)
        value = max(exact.scores.values())
        assert abs(best[i] - value) < 1e-10
        found = next(f for f, score in exact.scores.items() if score == value)
        if not diagonal:  # else two segmentations may be equally probable
            assert list(paths[i]) == [z for z, d in found for _ in range(d)]
        counts = hard.transitions
        assert abs(counts.moves[i].sum() - counts.ended[i].sum()) < 1e-12
        assert counts.ended[i].sum() + counts.stayed[i].sum() == len(rows) - 1
        np.testing.assert_allclose(hard.first[i], np.eye(k)[paths[i][0]], atol=1e-12)


def series_of(lengths, seed=0):
    """Segments in two states with durations of 3 to 6 and of 6 to 12 rows."""
    rng, series = np.random.default_rng(seed), []
    for t in lengths:
        state, states = int(rng.integers(2)), []
        while len(states) < t:
            states += [state] * int(rng.integers(3, 7) if state else rng.integers(6, 13))
            state = 1 - state
        series.append(3 * np.array(states[:t])[:, None] + rng.normal(size=(t, 1)))
    return series


SERIES = series_of((60, 25, 40, 3))
DATA = jaxem.Sequences(SERIES)
MODELS = {kind: jaxem.SemiMarkov(jaxem.Normal(), 2, kind, longest=15) for kind in KINDS}
MODEL = MODELS["poisson"]


@pytest.fixture(scope="module")
def fitted():
    return jaxem.fit(MODEL, DATA, key=0)


def alike(one, other, **tolerances):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_lowers_the_objective_and_the_end_is_stationary(kind):
    model = MODELS[kind]
    values = [float(jaxem.fit(model, DATA, key=1, max_iter=n, tol=0).objective) for n in range(9)]
    assert np.all(np.diff(values) > -1e-9)
    found = jaxem.fit(model, DATA, key=1, tol=1e-11)
    assert found.converged and found.objective >= values[-1] - 1e-9

    def score(durations, mean):
        if kind == "categorical":
            durations = jax.nn.softmax(durations)
        else:
            durations = jax.tree.map(jnp.exp, durations)
        emissions = jaxem.NormalParams(mean, found.params.emissions.covariance)
        p = found.params
        p = jaxem.SemiMarkovParams(p.initial, p.transition, durations, emissions)
        return model.log_prob(p, DATA).sum()

    logs = jax.tree.map(jnp.log, found.params.durations)
    value, slopes = jax.value_and_grad(score, (0, 1))(logs, found.params.emissions.mean)
    assert abs(value - found.log_likelihood) < 1e-8
    assert max(float(abs(s).max()) for s in jax.tree.leaves(slopes)) < 1e-4
    assert found.n_parameters == 4 + 1 + {"poisson": 2, "negative_binomial": 4}.get(kind, 28)


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
def test_hazards_are_exact_in_both_precisions(kind):
    longest, sizes = 40, (1e-2, 0.7, 30.0, 1e5)
    pairs = list(itertools.product((1e-6, 1e-3, 1.0, 40.0, 400.0), sizes))
    mean, size = jnp.asarray(pairs).T
    given = jaxem.DurationParams(mean, size) if kind == "negative_binomial" else mean
    one = durations.KINDS[kind](longest)
    p = probabilities(kind, given, longest)
    tail = np.cumsum(p[:, ::-1], 1)[:, ::-1]
    is_known = p > 1e-280
    expected = p / np.where(is_known, tail, 1)

    @jax.jit
    def found(params):
        slope = jax.grad(lambda q: jnp.log(one.hazards(q)[1][:, 0]).sum())(params)
        return one.hazards(params), slope

    for dtype, rtol in ((np.float64, 1e-6), (np.float32, 1e-4)):
        (ends, stays), slope = found(jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), given))
        assert ends.dtype == dtype and (ends[:, -1] == 1).all() and (stays[:, -1] == 0).all()
        np.testing.assert_allclose(ends + stays, 1, rtol=1e-6)
        np.testing.assert_allclose(ends[is_known], expected[is_known], rtol=rtol, atol=1e-37)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))


@pytest.mark.parametrize(
    "kind", [pytest.param("poisson", marks=pytest.mark.slow), "negative_binomial", "categorical"]
)
def test_the_m_step_of_durations_is_the_optimum_with_its_derivative(kind):
    one, rng = durations.KINDS[kind](8), np.random.default_rng(1)
    ended, stayed = (jnp.asarray(rng.gamma(1.0, size=(3, 8))) for _ in range(2))
    ended = ended.at[2].set(0)  # a state that is not visited
    stayed = stayed.at[2].set(0).at[:, -1].set(0)
    start = one.start(jnp.full(3, 2.5))
    step = jax.jit(one.maximize)
    found = step(start, ended, stayed)
    alike(step(found, ended, stayed), found, rtol=1e-6)
    alike(*(jax.tree.map(lambda a: a[2], p) for p in (start, found)), rtol=1e-12)

    def value(params):
        ends, stays = one.hazards(params)
        of_ends, of_stays = ended * jnp.log(ends), stayed[:, :-1] * jnp.log(stays[:, :-1])
        return of_ends[:2].sum() + of_stays[:2].sum()

    for factor in (0.97, 1.03):
        for i in range(8 if kind == "categorical" else 1):
            other = jax.tree.map(lambda a, i=i, f=factor: a.at[..., i].multiply(f), found)
            if kind == "categorical":
                other = other / other.sum(1, keepdims=True)
            assert value(other) <= value(found)
    forward = jax.jacfwd(step, 1)(found, ended, stayed)
    alike(forward, jax.jacrev(step, 1)(found, ended, stayed), rtol=1e-8, atol=1e-10)
    up, down = (step(found, ended.at[0, 2].add(h), stayed) for h in (1e-5, -1e-5))
    difference = jax.tree.map(lambda a, b: (a - b) / 2e-5, up, down)
    slope = jax.tree.map(lambda a: a[..., 0, 2], forward)
    alike(slope, difference, rtol=1e-3, atol=1e-6)


def test_padding_and_neighbours_change_nothing(fitted, monkeypatch):
    scores = fitted.score_samples(DATA)
    for i in (1, 3):
        alone = jaxem.Sequences([SERIES[i]])
        assert abs(fitted.score_samples(alone)[0] - scores[i]) < 1e-10
        np.testing.assert_array_equal(fitted.predict(alone)[0], fitted.predict(DATA)[i])
    monkeypatch.setattr(tuning, "PADDED_CELLS", 10)
    monkeypatch.setattr(tuning, "PADDED_RATIO", 1)
    many = [*SERIES, *(SERIES[1][i : i + 4] for i in range(20))]
    classes = jaxem.Sequences(many)
    assert classes.place is not None and len(classes.stacks()) > 1
    monkeypatch.undo()
    data, weights = jaxem.Sequences(many), np.r_[1.0, 2.0, 0.0, np.ones(21)]
    options = {"init": fitted.params, "tol": 0, "max_iter": 3}
    one, other = (jaxem.fit(MODEL, x, weights=weights, **options) for x in (data, classes))
    alike(one.params, other.params, rtol=1e-9, atol=1e-12)
    assert abs(one.bic() - other.bic()) < 1e-8
    repeated = jaxem.Sequences([many[0], many[1], many[1], *many[3:]])
    again = jaxem.fit(MODEL, repeated, **options)
    alike(one.params, again.params, rtol=1e-9, atol=1e-12)
    assert abs(one.log_likelihood - again.log_likelihood) < 1e-9


def test_a_fleet_is_its_fits(fitted):
    sets = [jaxem.Sequences(SERIES[:2]), jaxem.Sequences(SERIES[2:]), DATA]
    init = jax.tree.map(lambda a: np.stack([a] * 3), jax.device_get(fitted.params))
    init.emissions.mean[...] += 0.3
    fleet = jaxem.fit(MODEL, jaxem.Batch(sets), init=init)
    assert fleet.converged.all()
    paths = fleet.predict(sets)
    for i, x in list(enumerate(sets))[2:]:
        alone = jaxem.fit(MODEL, x, init=jax.tree.map(lambda a, i=i: a[i], init))
        assert abs(alone.log_likelihood - fleet.log_likelihood[i]) < 1e-6
        assert abs(fleet.bic()[i] - fleet[i].bic()) < 1e-8
        for a, b in zip(alone.predict(x), paths[i], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["poisson", pytest.param("categorical", marks=pytest.mark.slow)])
def test_gradients_with_gaps_equal_differences(kind):
    gap = np.stack([s[:25] for s in SERIES[:3]])
    gap[1, 7] = np.nan
    model = jaxem.SemiMarkov(jaxem.Normal(), 2, kind, longest=6)

    @jax.jit
    def value(x):
        found = jaxem.fit(model, jaxem.Sequences(x), key=0, tol=1e-13, max_iter=5000)
        p = found.params
        durations = p.durations[:, 1] if kind == "categorical" else p.durations
        total = p.emissions.mean.sum() + durations.sum() + found.log_likelihood / 10
        return total, found.gradient_ok

    slope, ok = jax.jit(jax.grad(value, has_aux=True))(gap)
    assert ok and np.isfinite(slope).all() and (slope[1, 7] == 0).all()
    for at in ((0, 0, 0), (1, 6, 0), (1, 24, 0)):
        step = np.zeros_like(gap)
        step[at] = 1e-4
        difference = (value(gap + step)[0] - value(gap - step)[0]) / 2e-4
        assert abs(difference - slope[at]) < 1e-4 * (1 + abs(slope[at]))


RULES = {
    "hard": jaxem.EM(jaxem.Hard()),
    "tempered": jaxem.EM(jaxem.Tempered(schedule=(0.3, 0.6), steps=3)),
    "stochastic": jaxem.EM(jaxem.Stochastic(draws=3, steps=5)),
    "gradient": jaxem.EM(m_step=jaxem.Gradient()),
    "squarem": jaxem.EM(accelerator=jaxem.SQUAREM()),
    "anderson": jaxem.EM(accelerator=jaxem.Anderson()),
    "online": jaxem.OnlineEM(batch=2, passes=3),
    "incremental": jaxem.EM(jaxem.Incremental(blocks=2)),
}
SLOW_RULES = ("anderson", "stochastic", "incremental", "online")


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_RULES else n for n in RULES]
)
def test_every_rule_ends_where_em_does(name, fitted):
    found = jaxem.fit(MODEL, DATA, init=fitted.params, method=RULES[name])
    assert found.converged
    np.testing.assert_array_equal(np.diagonal(found.params.transition), 0)
    if name == "hard":
        assert fitted.log_likelihood - 8 < found.objective < found.log_likelihood + 1e-9
    else:
        assert abs(found.log_likelihood - fitted.log_likelihood) < 1e-3


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_tempered_posteriors_are_powers_of_the_joint(fitted, power):
    rows, p = np.concatenate([SERIES[3], SERIES[3] + 2]), fitted.params
    logs = np.asarray(MODEL.bank.posterior(p.emissions, jnp.asarray(rows))[1])
    exact = exact_of(MODEL, p, logs, power)
    q = jax.jit(MODEL.tempered)(p, jaxem.Sequences([rows]), power)
    np.testing.assert_allclose(q.rows, exact.marginals, atol=1e-10)
    for name in ("moves", "ended", "stayed"):
        got = getattr(q.transitions, name)[0]
        np.testing.assert_allclose(got, getattr(exact, name), atol=1e-10)


def test_paths_drawn_have_the_smoothed_frequencies(fitted):
    rows = np.concatenate([SERIES[3], SERIES[3][::-1] + 1.5])
    x = jaxem.Sequences([rows] * 2000)
    drawn = np.stack(MODEL.draw(0, fitted.params, x))
    smooth = MODEL.smooth(fitted.params, x[:1])[0]
    np.testing.assert_allclose((drawn == 1).mean(0), smooth[:, 1], atol=0.05)
    logs = np.asarray(MODEL.bank.posterior(fitted.params.emissions, jnp.asarray(rows))[1])
    exact = exact_of(MODEL, fitted.params, logs)
    q = MODEL.sampled(jax.random.key(1), fitted.params, x, 2)
    for name in ("moves", "ended", "stayed"):
        got = getattr(q.transitions, name).mean(0)
        np.testing.assert_allclose(got, getattr(exact, name), atol=0.05)


def test_forecasts_are_the_filter_of_missing_rows(fitted):
    states = MODEL.forecast(fitted.params, jaxem.Sequences(SERIES[:2]), 6).states
    longer = jaxem.Sequences([np.concatenate([s, np.full((6, 1), np.nan)]) for s in SERIES[:2]])
    for i, one in enumerate(MODEL.filter(fitted.params, longer)):
        np.testing.assert_allclose(states[i], one[-6:], atol=1e-10)
    assert np.allclose(states.sum(-1), 1)


def test_float32_is_beside_float64(fitted):
    single = jaxem.Sequences([s.astype(np.float32) for s in SERIES])
    found = jaxem.fit(MODEL, single, key=0)
    assert found.converged and found.params.durations.dtype == np.float32
    assert abs(found.log_likelihood - fitted.log_likelihood) < 1e-2
    order, other = (np.argsort(f.params.emissions.mean[:, 0]) for f in (found, fitted))
    means = found.params.durations[order], fitted.params.durations[other]
    np.testing.assert_allclose(*means, rtol=1e-2)
    t, k, longest, rng = 20_000, 5, 30, np.random.default_rng(1)
    z = np.repeat(rng.integers(k, size=t // 10), 10)
    logs = -5 * (np.arange(k) != z[:, None]) + rng.normal(size=(t, k))
    transition = (1 - np.eye(k)) / (k - 1)
    given = jnp.asarray(np.linspace(1, 20, k))
    is_last = jnp.arange(t)[:, None] == t - 1

    kind = durations.KINDS["poisson"](longest)

    @jax.jit
    def passes(logs):
        factors = kind.hazards(given.astype(logs.dtype))
        initial = jnp.full((k, 1), 1 / k, logs.dtype)
        chain = segments.Segments(initial, jnp.asarray(transition, logs.dtype)[..., None], *factors)
        found = chain.forward(logs)
        return chains.total(found.evidence)[0], chain.backward(found, is_last)[:2]

    evidence, (marginals, sums) = passes(jnp.asarray(logs[..., None]))
    single, (of_single, sums_of_single) = passes(jnp.asarray(logs[..., None], jnp.float32))
    assert abs(single / evidence - 1) < 1e-6
    np.testing.assert_allclose(of_single, marginals, atol=1e-3)
    alike(sums_of_single, sums, rtol=1e-3, atol=0.05)


def test_probabilities_of_zero_stay_and_are_not_counted(fitted):
    model = MODELS["categorical"]
    never = np.full((2, 15), 1 / 12)
    never[:, :3] = 0
    transition = jnp.asarray([[0.2, 0.8], [1.0, 0.0]])
    start = jaxem.SemiMarkovParams(
        jnp.asarray([1.0, 0.0]), transition, jnp.asarray(never), fitted.params.emissions
    )
    found = jaxem.fit(model, DATA, init=start)
    assert np.isfinite(found.log_likelihood) and (found.params.durations[:, :3] == 0).all()
    assert found.params.transition[1, 1] == 0 and found.params.transition[0, 0] > 0
    assert found.n_parameters == 4 + 1 + 2 * 11 and (found.params.durations[:, 3:] > 0).all()


@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
def test_restricted_durations_are_exact(fitted):
    tied = jaxem.Restricted(MODEL, tied=["durations"])
    found = jaxem.fit(tied, DATA, init=fitted.params, tol=1e-11)
    same = found.params.durations
    assert found.converged and same[0] == same[1] and found.n_parameters == 4 + 1 + 1

    def score(log):
        p = found.params
        both = jnp.broadcast_to(jnp.exp(log), (2,))
        p = jaxem.SemiMarkovParams(p.initial, p.transition, both, p.emissions)
        return MODEL.log_prob(p, DATA).sum()

    assert abs(jax.grad(score)(jnp.log(same[0]))) < 1e-4
    fixed = jaxem.Restricted(MODEL, fixed={"durations[0]": 4.0})
    found = jaxem.fit(fixed, DATA, init=fitted.params)
    assert found.converged and found.params.durations[0] == 4.0


def test_draws_are_recovered():
    params = jaxem.SemiMarkovParams(
        np.array([0.5, 0.3, 0.2]),
        np.array([[0, 0.7, 0.3], [0.5, 0, 0.5], [0.2, 0.8, 0]]),
        np.array([2.0, 8.0, 4.0]),
        jaxem.PoissonParams(np.array([[1.0], [8.0], [25.0]])),
    )
    params = jax.tree.map(jnp.asarray, params)
    model = jaxem.SemiMarkov(jaxem.Poisson(), 3, longest=20)
    x = model.sample(jax.random.key(0), params, 40, length=100)
    assert len(x) == 40 and x.rows.shape == (40, 100, 1)
    found = jaxem.fit(model, x, key=0, restarts=2)
    # Twice the log-likelihood ratio is about χ² with 11 degrees of freedom, whose 99.99% point is
    # 37. Durations that are wrong by a tenth give 46.
    ratio = 2 * (found.log_likelihood - model.log_prob(params, x).sum())
    assert found.converged and found.n_parameters == 11
    assert 0 < ratio < 37


def test_files_selection_and_checks(fitted, tmp_path):
    fitted.save(tmp_path / "chain.npz")
    again = jaxem.load(tmp_path / "chain.npz")
    assert again.model == MODEL
    np.testing.assert_array_equal(again.predict(DATA)[0], fitted.predict(DATA)[0])
    sized = jaxem.fit(MODELS["negative_binomial"], DATA, key=0)
    sized.save(tmp_path / "sized.npz")
    alike(jaxem.load(tmp_path / "sized.npz").params, sized.params)
    chosen = jaxem.select(DATA, [jaxem.HMM(jaxem.Normal(), 2), MODEL], key=0)
    assert chosen.best.model == MODEL and "SemiMarkov of Normal('full'), 'poisson'" in str(chosen)
    rows = sum(map(len, SERIES))
    assert abs(fitted.bic() + 2 * fitted.log_likelihood - 7 * np.log(rows)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_pass_the_check_of_models(kind):
    jaxem.check_model(MODELS[kind], DATA)


def test_wrong_arguments_get_a_sentence(fitted):
    bank = jaxem.Normal()
    for error, text, arguments, options in (
        (TypeError, "longest must be an int of 2 or more, got none", (bank, 2), {}),
        (ValueError, "longest must be an int of 2 or more, got 1", (bank, 2), {"longest": 1}),
        (TypeError, "longest must be an int of 2 or more, got 2.5", (bank, 2), {"longest": 2.5}),
        (ValueError, "k must be an int of 2 or more, got 1", (bank, 1), {"longest": 5}),
        (ValueError, "did you mean 'poisson'", (bank, 2, "poison"), {"longest": 5}),
        (TypeError, "emissions must be a bank", (jaxem.Mixture(bank, 2), 2), {"longest": 5}),
    ):
        with pytest.raises(error, match=text):
            jaxem.SemiMarkov(*arguments, **options)
    with pytest.raises(TypeError, match=r"SemiMarkov takes jaxem\.Sequences"):
        jaxem.fit(MODEL, SERIES[0], key=0)
    with pytest.raises(ValueError, match="SemiMarkov takes none: leave them out"):
        jaxem.fit(MODEL, jaxem.Sequences(SERIES, inputs=SERIES), key=0)
    p = fitted.params
    wrong = jaxem.SemiMarkovParams(p.initial, p.transition, -p.durations, p.emissions)
    with pytest.raises(ValueError, match="init durations must be between 1e-06 and 150"):
        jaxem.fit(MODEL, DATA, init=wrong)
    model = jaxem.SemiMarkov(jaxem.Autoregression(), 2, longest=5)
    emissions = jaxem.AutoregressionParams(
        np.array([[[1.0], [0.5]], [[0.0], [-0.5]]]), np.full((2, 1, 1), 1e-12)
    )
    p = jaxem.SemiMarkovParams(np.array([1.0, 0.0]), p.transition, p.durations, emissions)
    rows = model.sample(jax.random.key(0), p, 2, length=4).rows
    np.testing.assert_allclose(rows[:, :2], 2, atol=1e-4)


def test_empty_and_short_sequences_are_defined(fitted):
    x = jaxem.Sequences([SERIES[0], np.empty((0, 1)), SERIES[0][:1]])
    scores = fitted.score_samples(x)
    assert scores[1] == 0 and np.isfinite(scores).all()
    assert [len(p) for p in fitted.predict(x)] == [60, 0, 1]
    same = jaxem.fit(MODEL, x, init=fitted.params, tol=0, max_iter=2)
    other = jaxem.fit(MODEL, x[[0, 2]], init=fitted.params, tol=0, max_iter=2)
    alike(same.params, other.params, rtol=1e-9, atol=1e-12)


def test_the_fused_pass_is_the_plain_one(fitted):
    """By matrix products, for many rows."""
    weights = jnp.asarray([1.0, 2.0, 0.5, 1.0])

    @jax.jit
    def passes(params, x):
        q, evidence = MODEL.posterior(params, x)
        plain = MODEL.statistics(params, x, q, weights), evidence
        fused = MODEL.fused(x)
        sums, evidence = fused.sums(fused.coefficients(params), fused.prepare(x), weights)
        return plain, (fused.statistics(params, sums), evidence)

    plain, fused = passes(fitted.params, DATA)
    alike(*(MODEL.maximize(fitted.params, p[0]) for p in (plain, fused)), rtol=1e-9, atol=1e-11)
    alike(plain[0].transitions, fused[0].transitions, rtol=1e-9, atol=1e-11)
    terms = plain[1] - fused[1]  # but for a constant of the bank
    np.testing.assert_allclose(terms, terms[0] * DATA.length / DATA.length[0], atol=1e-9)


@pytest.mark.parametrize("init", ["left_to_right", pytest.param("cyclic", marks=pytest.mark.slow)])
def test_templates_stay(init):
    """The third state looks like the first one where they do not form a cycle."""
    rng, is_cyclic = np.random.default_rng(9), init == "cyclic"
    levels = np.repeat([0.0, 9.0, 4.0] * 4 if is_cyclic else [0.0, 4.0, 0.0], 4)
    x = jaxem.Sequences((levels + rng.normal(size=(6, len(levels))))[..., None])
    model = jaxem.SemiMarkov(jaxem.Normal("tied"), 3, longest=8)
    found = jaxem.fit(model, x, key=0, init=init)
    p = found.params
    follows = np.roll(np.eye(3), 1, 1)
    if not is_cyclic:
        follows[2] = [0, 0, 1]
        np.testing.assert_array_equal(p.initial, [1, 0, 0])
    np.testing.assert_array_equal(p.transition > 0, follows > 0)
    means, true = p.emissions.mean[:, 0], np.arange(len(levels)) // 4 % 3
    known = np.array([x.rows[:, true == i].mean() for i in range(3)])
    shift = int(np.argmin(abs(means[0] - known))) if is_cyclic else 0
    mean = np.roll(known, -shift)[:, None]
    p = dataclasses.replace(p, emissions=dataclasses.replace(p.emissions, mean=mean))
    ratio = 2 * (found.log_likelihood - model.log_prob(p, x).sum())
    assert 0 <= ratio < stats.chi2.ppf(0.9999, 3)  # with the means of the true segments
    assert np.mean((np.stack(found.predict(x)) + shift) % 3 == true) > 0.98
    assert found.converged and found.n_parameters == 3 + 1 + 3 + 2 * is_cyclic


@pytest.mark.slow
def test_durations_of_the_last_state_do_not_count_and_are_frozen_for_gradients():
    x = np.repeat([0.0, 4.0, 0.0], 12)[:, None] + np.random.default_rng(7).normal(size=(4, 36, 1))
    model = jaxem.SemiMarkov(jaxem.Normal("tied"), 3, longest=20)
    model = jaxem.Restricted(model, "durations[2]")

    @jax.jit
    def value(x):
        data, options = jaxem.Sequences(x), {"key": 0, "init": "left_to_right"}
        found = jaxem.fit(model, data, tol=1e-12, **options)
        return found.params.emissions.mean.sum(), found.gradient_ok

    slope, ok = jax.jit(jax.grad(value, has_aux=True))(x)
    step = np.zeros_like(x)
    step[0, 13, 0] = 1e-4
    difference = (value(x + step)[0] - value(x - step)[0]) / 2e-4
    assert ok and abs(difference - slope[0, 13, 0]) < 1e-6
