"""`select`: the table, the winner, and fits that equal those of `fit` alone, padded or not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import quiet
from internals import CLIMBS, Status, compilations, padded
from oracles import normal_density
from zoo import BANKS, COUNTS, LABELS, REAL

import jaxem

SIZES = (1, 2, 3, 4)
FREE = {"full": 6, "spherical": 4}  # numbers of one component and its weight, in two dimensions
OPTIONS = {"key": 0, "restarts": 4}
KNOWN = [
    name
    for name in BANKS
    if not name.endswith("-map") and not name.startswith("each") and name != "student-df"
]


def mixtures(bank, sizes=SIZES):
    return [jaxem.Mixture(bank, k=k) for k in sizes]


ROUND = mixtures(jaxem.Normal("spherical"))
MODELS = [*ROUND, *mixtures(jaxem.Normal("full"))]


def three_groups():
    """Three round groups of 40 units in two dimensions."""
    rng = np.random.default_rng(1)
    return np.concatenate([rng.normal(size=(40, 2)) + at for at in ([0, 0], [8, 0], [0, 8])])


X = three_groups()
WEIGHTS = np.random.default_rng(2).integers(0, 3, len(X)) * 1.0


@pytest.fixture(scope="module")
def selection():
    return jaxem.select(X, MODELS, **OPTIONS)


def by_hand(row, result, weights, criterion):
    """The criterion from scipy's densities alone."""
    params = jax.tree.map(np.asarray, result.params)
    joint = np.exp(normal_density(params.components, X)) * params.weights
    density = joint.sum(1)
    r = joint / density[:, None]
    entropy = -(weights[:, None] * r * np.log(np.where(r > 0, r, 1))).sum()
    free = FREE[row.model.components.covariance] * row.k - 1
    assert row.n_parameters == free
    score = -2 * weights @ np.log(density)
    score += 2 * free if criterion == "aic" else free * np.log(weights.sum())
    return score + 2 * entropy * (criterion == "icl")


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("criterion", ["bic", "aic", "icl"])
def test_the_table_is_right_by_hand(criterion, weights):
    models = MODELS if weights is None else ROUND
    found = quiet(jaxem.select, X, models, criterion=criterion, weights=weights, **OPTIONS)
    w = np.ones(len(X)) if weights is None else weights
    assert found.criterion == criterion and len(found.results) == len(models)
    for row, model, result in zip(found.table, models, found.results, strict=True):
        assert row.model is model and row.k == model.k
        assert row.status == result.status and row.log_likelihood == result.log_likelihood
        np.testing.assert_allclose(row.score, by_hand(row, result, w, criterion), rtol=1e-9)
    sound = [row.score for row in found.table if row.status in (1, 2)]
    assert found.table[found.winner].score == min(sound)


def test_the_winner_is_the_structure_that_made_the_data(selection):
    assert selection.best is selection.results[2]
    assert selection.best.model == jaxem.Mixture(jaxem.Normal("spherical"), k=3)
    one = np.random.default_rng(3).normal(size=X.shape) * [1, 9]
    assert quiet(jaxem.select, one, MODELS, **OPTIONS).best.model == MODELS[4]  # full, k=1


def assert_same(result, expected):
    """Every restart, the one chosen, and what the result is asked for."""
    np.testing.assert_array_equal(result.restarts.status, expected.restarts.status)
    assert np.all(result.status == expected.status) and result.model == expected.model
    for mine, theirs in ((result, expected), (result.restarts, expected.restarts)):
        for name in ("log_likelihood", "objective"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-9)
        np.testing.assert_allclose(mine.n_iter, theirs.n_iter, atol=1)
        chex.assert_trees_all_close(mine.params, theirs.params, rtol=1e-6, atol=1e-7)
        kinds = (jax.tree.map(lambda a: (type(a), a.shape), t) for t in (mine, theirs))
        assert jax.tree.leaves(next(kinds)) == jax.tree.leaves(next(kinds))


@pytest.mark.parametrize("at", [1, 6])
def test_padded_fits_are_those_of_fit(selection, at):
    expected = jaxem.fit(MODELS[at], X, **OPTIONS)
    assert_same(selection.results[at], expected)
    np.testing.assert_allclose(selection.table[at].score, expected.bic(X), rtol=1e-9)


def test_other_rules_and_orders_are_those_of_fit():
    models = mixtures(jaxem.Normal("tied"), (3, 2))
    options = {**OPTIONS, "init": "random_rows"}
    assert padded.groups(models, REAL, 4, jaxem.EM()) == [[0, 1]]
    found = quiet(jaxem.select, REAL, models, **options)
    assert_same(found.results[1], quiet(jaxem.fit, models[1], REAL, **options))


@pytest.mark.parametrize("name", [name for name in KNOWN if padded._known(BANKS[name][0])])
def test_padded_starts_are_those_of_fit(name):
    bank, x = BANKS[name]
    models, options = mixtures(bank, (1, 3)), OPTIONS | {"max_iter": 0}
    assert padded.groups(models, x, 4, jaxem.EM()) == [[0, 1]]
    for model, result in zip(models, jaxem.select(x, models, **options).results, strict=True):
        alone = jaxem.fit(model, x, **options)
        chex.assert_trees_all_close(
            result.restarts.params, alone.restarts.params, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("name", KNOWN)
def test_absent_components_change_no_step(name):
    """Two EM steps from one start, with two absent components and without, in every bank."""
    bank, x = BANKS[name]
    small, large = mixtures(bank, (2, 4))
    w, key = jnp.ones(len(x)), jax.random.key(0)
    banked = padded._banked(small, large, x, w.dtype)
    start = small.init(key, x, w)
    more = padded.over(banked, lambda a: jnp.concatenate([a, a[:1], a[:1]]), start.components)
    padded_start = padded.PaddedParams(jnp.pad(start.weights, (0, 2)), more, jnp.asarray(2))

    @jax.jit
    def step(params, padded_params):
        model = padded.Padded(large, banked)
        steps = (small, params), (model, padded_params)
        return [jaxem.EM().evaluate(m, p, x, w) for m, p in steps]

    plain, padding = step(start, padded_start)
    plain, padding = step(plain.proposal, padding.proposal)
    np.testing.assert_allclose(padding.objective, plain.objective, rtol=1e-12)
    np.testing.assert_allclose(padding.magnitude, plain.magnitude, rtol=1e-12)
    got = padding.proposal
    np.testing.assert_allclose(got.weights, [*plain.proposal.weights, 0, 0], rtol=1e-9)
    here = padded.over(banked, lambda a: a[:2], got.components)
    chex.assert_trees_all_close(here, plain.proposal.components, rtol=1e-7, atol=1e-9)


def test_a_component_that_empties_is_seen_and_an_absent_one_is_not():
    model = padded.Padded(jaxem.Mixture(jaxem.Poisson(), k=3), (True,))
    params = padded.PaddedParams(
        jnp.array([1.0, 0, 0]), jaxem.PoissonParams(jnp.ones((3, 1))), jnp.asarray(1)
    )
    assert not model.degenerate(params)
    assert model.degenerate(padded.PaddedParams(params.weights, params.components, 2))


def test_only_models_that_allow_it_are_climbed_together():
    def together(models, x=X, restarts=4):
        return padded.groups(models, x, restarts, jaxem.EM())

    assert together(MODELS) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert together([*MODELS[::2], jaxem.Mixture(jaxem.StudentT(), k=2)]) == [[0, 1], [2, 3]]
    prior = jaxem.NormalPrior(0.0, 0.1, 6.0, 2.0)
    assert not together(mixtures(jaxem.Normal(prior=prior)))
    product = jaxem.Product({"a": (jaxem.Normal(prior=prior), 0), "b": (jaxem.Poisson(), 1)})
    assert not together(mixtures(product))
    assert not together(
        [jaxem.Mixture(jaxem.Poisson(), k, jaxem.DirichletPrior(2.0)) for k in SIZES]
    )
    assert not together(mixtures(BANKS["each"].model), COUNTS)
    assert not together(MODELS, jaxem.Labelled(REAL, LABELS))
    assert not together([jaxem.Mixture(jaxem.Factors(1), k) for k in (1, 2)], REAL)
    assert not together([MODELS[0], MODELS[0]])
    floors = [jaxem.Mixture(jaxem.Normal(floor=f), k=k) for f, k in ((0.1, 1), (0.2, 2))]
    assert not together(floors)
    assert not together(MODELS, restarts=jaxem.Restarts(4))
    assert together(MODELS, np.zeros((10_000, 2)))
    assert not together(MODELS, np.zeros((10_000_000, 2)))


def test_models_that_differ_in_k_compile_one_program():
    counts = COUNTS[:-3, :2]
    models = mixtures(jaxem.Poisson(), (1, 2, 3))
    with compilations() as compiled:
        found = quiet(jaxem.select, counts, models, key=0, restarts=2)
    assert compiled.count(CLIMBS) == 1
    with compilations() as compiled:
        quiet(jaxem.select, counts, models, key=1, restarts=2)
    assert not compiled
    assert found.table[0].k == 1


def test_models_of_any_kind_side_by_side():
    models = {
        "map": jaxem.Mixture(jaxem.Poisson(prior=jaxem.GammaPrior(2.0, 0.5)), k=2),
        "own": jaxem.Mixture(BANKS["each"].model, k=2),
    }
    options = {"key": 0, "restarts": 1, "max_iter": 9, "tol": 0}
    found = jaxem.select(COUNTS, models, **options)
    assert [row.name for row in found.table] == list(models)
    for model, result in zip(models.values(), found.results, strict=True):
        alone = jaxem.fit(model, COUNTS, **options)
        assert result.log_likelihood == alone.log_likelihood
    lines = str(found).splitlines()
    assert lines[2].split() == ["parameters", "log-likelihood", "bic", "status"]
    assert lines[3].split()[0] == "map" and lines[4].split()[0] == "own"
    assert lines[3].endswith("MAX_ITER")


def test_a_collapse_never_wins():
    x = X.copy()
    x[80:] = x[80]  # 40 units at one place: a component there has an unbounded likelihood
    with pytest.warns(jaxem.FitWarning, match="models did not converge") as caught:
        found = jaxem.select(x, MODELS, **OPTIONS)
    assert len(caught) == 1 and "DEGENERATE" in str(caught[0].message)
    collapsed = [row for row in found.table if row.status == Status.DEGENERATE]
    assert collapsed and min(row.score for row in collapsed) < found.table[found.winner].score
    assert found.table[found.winner].status == Status.CONVERGED
    assert found.best.converged
    text = str(found)
    assert text.count("!") == len(collapsed) + 1 and "never chosen" in text
    assert quiet(jaxem.fit, MODELS[6], x, **OPTIONS).status == found.table[6].status


def test_where_nothing_is_sound_nothing_wins():
    with pytest.warns(jaxem.FitWarning, match="none is sound, so best is None"):
        found = jaxem.select(np.ones_like(X), MODELS, **OPTIONS)
    assert all(row.status == Status.DEGENERATE for row in found.table)
    assert found.best is None and found.winner is None
    assert "none is sound" in str(found)


def test_one_warning_for_all_the_models():
    with pytest.warns(jaxem.FitWarning) as caught:
        found = jaxem.select(X, MODELS, max_iter=1, **OPTIONS)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "8 of 8 models did not converge" in str(caught[0].message)
    assert "MAX_ITER: the iteration limit" in str(caught[0].message)
    assert found.best is not None and str(found).count("~") == 9
    jaxem.select(X, MODELS, max_iter=1, tol=0, **OPTIONS)  # as asked: no warning


def test_the_printed_table(selection):
    lines = str(selection).splitlines()
    assert lines[0] == "BIC, lower is better"
    assert lines[2].split() == ["k", "1", "2", "3", "4"]
    assert lines[3].split()[0] == "Normal('spherical')" and lines[4].split()[0] == "Normal('full')"
    cells = [cell for line in lines[3:5] for cell in line.split()[1:]]
    starred = [cell for cell in cells if cell.endswith("*")]
    assert starred == [f"{selection.table[2].score:.2f}*"]
    assert [float(cell.strip("*")) for cell in cells] == [
        round(r.score, 2) for r in selection.table
    ]
    assert lines[-1] == "* Normal('spherical'), k=3"


def test_a_bound_chooses_among_bayesian_mixtures():
    x = X[::4]
    models = [jaxem.BayesianMixture(jaxem.Normal("spherical"), k) for k in (1, 2)]
    found = quiet(jaxem.select, x, models, criterion="bound", key=0, restarts=2)
    scores = [-2 * float(result.objective) for result in found.results]
    assert [row.score for row in found.table] == scores
    assert found.winner == int(np.argmin(scores))
    assert [row.k for row in found.table] == [1, 2] and found.table[0].n_parameters is None
    assert "BayesianMixture(Normal('spherical'), k=2)" in str(found)
    with pytest.raises(TypeError, match='use criterion="bound"'):
        jaxem.select(x, models, **OPTIONS)
    with pytest.raises(TypeError, match=r"\"bound\".*Normal\('spherical'\), k=3 is none"):
        jaxem.select(X, [MODELS[2]], criterion="bound", **OPTIONS)


def test_a_bound_of_every_data_set():
    bank = jaxem.Normal("spherical", prior=jaxem.NormalPrior.from_data(X, 2, "spherical"))
    models = [jaxem.BayesianMixture(bank, k) for k in (1, 2)]
    sets = jaxem.Batch([X[:80:4], X[::6]])
    found = quiet(jaxem.select, sets, models, criterion="bound", key=0, restarts=2)
    for j, result in enumerate(found.results):
        np.testing.assert_array_equal(found.scores[:, j], -2 * result.objective)
    assert found.winner.tolist() == found.scores.argmin(1).tolist()
    assert [(row.k, row.n_parameters) for row in found.table] == [(1, None), (2, None)] * 2
    frame = found.results[0].to_dataframe()  # integrated params have no number
    assert len(found.to_dataframe()) == 4 and list(frame) == [
        *("status", "log_likelihood", "n_iter", "objective")
    ]


def test_topics_are_named_by_their_number():
    documents = jaxem.Documents(np.random.default_rng(0).poisson(1.0, (12, 9)))
    found = quiet(
        jaxem.select, documents, [jaxem.LDA(1), jaxem.LDA(2)], key=0, restarts=1, max_iter=3
    )
    assert [row.k for row in found.table] == [1, 2] and "LDA(topics=2)" in str(found)


def test_saved_and_read(selection, tmp_path):
    selection.save(tmp_path / "selection.npz")
    again = jaxem.load(tmp_path / "selection.npz")
    assert str(again) == str(selection) and again.best.model == selection.best.model
    assert [row.status for row in again.table] == [row.status for row in selection.table]
    np.testing.assert_array_equal(again.best.predict(X[:9]), selection.best.predict(X[:9]))


def sets_of_one_to_three_groups():
    """Four data sets of 72 to 80 units, which are padded to one length."""
    return [
        np.concatenate([X[:40], -X[:32]]),
        X[:80],
        X[20:100],
        np.concatenate([X[:34], X[80:]]),
    ]


@pytest.fixture(scope="module")
def batch_selection():
    return jaxem.select(jaxem.Batch(sets_of_one_to_three_groups()), ROUND[:3], **OPTIONS)


def test_a_model_for_every_data_set(batch_selection):
    """As `fit` of each model; mixtures that differ in k are fitted by one padded program."""
    found, sets = batch_selection, sets_of_one_to_three_groups()
    assert padded.groups(ROUND[:3], jaxem.Batch(sets), 4, jaxem.EM()) == [[0, 1, 2]]
    assert found.winner.tolist() == [0, 1, 2, 1] and len(found) == 4
    assert [best.model.k for best in found.best] == [1, 2, 3, 2]
    assert [best.data_shape[0] for best in found.best] == lengths(sets)
    assert [(row.data_set, row.k) for row in found.table[2:5]] == [(0, 3), (1, 1), (1, 2)]
    assert [row.score for row in found.table] == found.scores.ravel().tolist()
    for j, result in enumerate(found.results):
        np.testing.assert_allclose(found.scores[:, j], result.bic(sets), rtol=1e-6)
    alone = quiet(jaxem.fit, ROUND[1], jaxem.Batch(sets), **OPTIONS)
    assert_same(found.results[1], alone)
    lines = str(found).splitlines()
    assert lines[0] == "BIC, lower is better; 4 data sets"
    assert lines[2].split() == ["data", "set", "0", "1", "2", "3"]
    assert lines[3].count("*") == 1 and lines[4].count("*") == 2


def test_icl_and_weights_of_every_data_set(batch_selection):
    sets = jaxem.Batch(sets_of_one_to_three_groups())
    weights = [np.full(len(x), 2.0) for x in sets.data]
    options = {**OPTIONS, "criterion": "icl", "weights": weights}
    found = quiet(jaxem.select, sets, ROUND[:3], **options)
    expected = batch_selection.results[2].icl(sets, weights)
    np.testing.assert_allclose(found.scores[:, 2], expected, rtol=1e-5)


def lengths(sets):
    return [len(x) for x in sets]


def test_many_data_sets_print_counts():
    x = np.stack([X[:30]] * 15)
    x[0] = 1.0
    other = jaxem.Mixture(jaxem.StudentT(), k=1)
    with pytest.warns(jaxem.FitWarning, match="2 of 30 fits.*in 1 data sets none is sound") as said:
        found = jaxem.select(jaxem.Batch(x), [ROUND[0], other], key=0, restarts=1)
    assert len(said) == 1 and said[0].filename == __file__
    assert found.winner[0] == -1 and found.best[0] is None and (found.winner[1:] == 0).all()
    text = str(found)
    assert text.splitlines()[2].split() == ["chosen", "converged", "MAX_ITER", "not", "sound"]
    assert text.splitlines()[3].split()[-4:] == ["14", "14", "0", "1"]
    assert "no fit is sound in 1 data sets" in text


@pytest.mark.slow
def test_the_criterion_is_an_array_under_vmap():
    x = np.stack([X[:80], X[20:100]])

    def choose(x):
        scores = [jaxem.fit(m, x, key=0, restarts=2).bic() for m in ROUND[:2]]
        return jnp.argmin(jnp.stack(scores))

    found = quiet(jaxem.select, jaxem.Batch(x), ROUND[:2], key=0, restarts=2)
    np.testing.assert_array_equal(jax.vmap(choose)(x), found.winner)


def test_frozen(selection):
    with pytest.raises(AttributeError):
        selection.winner = 0


BAD = {
    "no models": (X, [], {}, ValueError, "models are empty"),
    "one model": (X, MODELS[0], {}, TypeError, "models must be a list of models"),
    "models first": (MODELS, X, {}, TypeError, "models.0.: model is an array"),
    "no model": (X, [MODELS[0], 3], {}, TypeError, "models.1.: int is no model"),
    "a bank": (X, [jaxem.Normal()], {}, TypeError, "use jaxem.Mixture"),
    "criterion": (X, MODELS, {"criterion": "BICC"}, ValueError, "criterion must be one of 'bic'"),
    "no key": (X, MODELS, {"key": None}, ValueError, "pass key="),
    "restarts": (X, MODELS, {"restarts": 0}, ValueError, "restarts must be an int"),
    "n_init": (X, MODELS, {"n_init": 3}, TypeError, "did you mean 'restarts'"),
    "init": (X, MODELS, {"init": jaxem.Labels(np.zeros(120))}, TypeError, "belongs to one k"),
    "batch": (jaxem.Batch([X, X[:2]]), MODELS, {}, ValueError, r"data\[1\] has 2 units"),
    "too few": (X[:3], MODELS, {}, ValueError, "use k <= 3"),
    "weights": (X, MODELS, {"weights": np.ones(3)}, ValueError, "weights must have shape"),
    "negative": (X, ROUND, {"weights": -np.ones(120)}, ValueError, "negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_explained(case):
    x, models, options, kind, match = BAD[case]
    with pytest.raises(kind, match=match):
        jaxem.select(x, models, **{**OPTIONS, **options})


def test_under_jit_it_says_what_to_use_instead():
    with pytest.raises(TypeError, match=r"use jaxem\.fit"):
        jax.jit(lambda x: jaxem.select(x, MODELS, **OPTIONS).winner)(X)
    with pytest.raises(TypeError, match=r"use jaxem\.fit"):
        jax.jit(lambda x: jaxem.select(jaxem.Batch([x]), MODELS, **OPTIONS).winner)(X)
