"""Refits to other weights: bootstrap, jackknife, likelihood ratios and held-out scores."""

import dataclasses
import itertools
from statistics import NormalDist

import jax
import numpy as np
import pytest
from internals import assigned, compilations
from scipy import stats

import jaxem

RNG = np.random.default_rng(3)
X = np.concatenate([RNG.normal(0.0, 1.0, (60, 1)), RNG.normal(4.0, 1.5, (40, 1))])
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), k=2)
N = 400
WIDE = np.concatenate([RNG.normal(0.0, 1.0, (600, 1)), RNG.normal(7.0, 1.5, (400, 1))])
"""Enough rows, and far enough apart, for the errors of large samples."""

WITHIN = 3 / np.sqrt(2 * N)
"""Three relative standard errors of an error from N draws of a normal."""


@pytest.fixture(scope="module")
def fitted():
    return jaxem.fit(MODEL, X, key=0, restarts=2, tol=1e-12)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def test_replicates_are_fits_with_drawn_weights(fitted):
    found = jaxem.bootstrap(fitted, X, N, key=1, tol=1e-10)
    assert found.replicates.weights.shape == (N, 2) and found.status_counts() == {"CONVERGED": N}
    drawn = np.random.default_rng(1).integers(0, len(X), (N, len(X)))
    counts = np.stack([np.bincount(row, minlength=len(X)) for row in drawn[:4]]).astype(float)
    init = jax.tree.map(lambda a: np.stack([a] * 4), fitted.params)
    alone = jaxem.fit(MODEL, jaxem.Batch(np.stack([X] * 4)), weights=counts, init=init, tol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (found.replicates, alone.params)), strict=True):
        np.testing.assert_allclose(a[:4], b, rtol=1e-4)  # both end within 1e-10 nats a unit
    values = np.stack([found.replicates.weights[:, 0], found.replicates.components.mean[:, 0, 0]])
    np.testing.assert_allclose(found.errors.weights[0], values[0].std(ddof=1))
    at = [found.coordinates.index(name) for name in ("weights[0]", "components.mean[0, 0]")]
    np.testing.assert_allclose(found.covariance[np.ix_(at, at)], np.cov(values))
    assert len(found.coordinates) == fitted.n_parameters
    low, high = found.interval(0.9, "percentile")
    np.testing.assert_allclose(
        [low.weights[0], high.weights[0]], np.quantile(values[0], (0.05, 0.95))
    )
    low, high = found.interval(scale="natural")
    np.testing.assert_allclose(low.weights + high.weights, 2 * fitted.params.weights)
    with compilations() as compiled:
        jaxem.bootstrap(fitted, X, N, key=2, tol=1e-10)
    assert not compiled


@pytest.fixture(scope="module")
def wide():
    return jaxem.fit(MODEL, WIDE, key=0, restarts=2, tol=1e-12)


@pytest.mark.parametrize("kind", ["rows", "bayesian", "parametric", "jackknife"])
def test_errors_agree_with_the_sandwich(wide, kind):
    """Those of a parametric bootstrap with the observed information."""
    method = "observed" if kind == "parametric" else "sandwich"
    expected = flat(wide.standard_errors(WIDE, method=method).errors)
    found = jaxem.bootstrap(wide, WIDE, N, key=1, kind=kind, tol=1e-10)
    within = 0.02 if kind == "jackknife" else WITHIN  # no draws; its bias is of order 1/n
    np.testing.assert_allclose(flat(found.errors), expected, rtol=within)
    assert found.relabelled == 0 and kind in str(found)
    assert len(found.statuses) == (len(WIDE) if kind == "jackknife" else N)


def test_weights_are_repetitions(fitted):
    """The jackknife has no random numbers: weight 2 is the same as a row twice."""
    weights = np.where(np.arange(len(X)) % 4 == 0, 2.0, 1.0)
    weights[5] = 0
    rows = np.repeat(X, weights.astype(int), 0)
    options = {"init": fitted.params, "tol": 1e-12}
    weighted = jaxem.fit(MODEL, X, weights=weights, **options)
    repeated = jaxem.fit(MODEL, rows, **options)
    a = jaxem.bootstrap(weighted, X, weights=weights, kind="jackknife", tol=1e-12)
    b = jaxem.bootstrap(repeated, rows, kind="jackknife", tol=1e-12)
    np.testing.assert_allclose(flat(a.errors), flat(b.errors), rtol=1e-5)
    weights = np.where(np.arange(len(WIDE)) % 4 == 0, 2.0, 1.0)
    weighted = jaxem.fit(MODEL, WIDE, weights=weights, key=0, tol=1e-12)
    drawn = jaxem.bootstrap(weighted, WIDE, N, key=1, weights=weights, tol=1e-10)
    expected = flat(weighted.standard_errors(WIDE, weights, method="sandwich").errors)
    np.testing.assert_allclose(flat(drawn.errors), expected, rtol=WITHIN)


def test_collapsed_replicates_are_counted_and_do_not_count():
    """A component of four values, some of them often not drawn, so that its variance vanishes."""
    x = np.concatenate([RNG.normal(0.0, 1.0, (40, 1)), [[9.0], [9.0], [9.0], [9.5]]])
    result = jaxem.fit(MODEL, x, key=0, restarts=4, tol=1e-10).raise_if_failed()
    found = jaxem.bootstrap(result, x, N, key=1)
    lost = ~found.used
    # Three equal values alone, or none: the chance that 9.5 is not drawn is (1 − 1/44)^44, .36.
    assert 0.2 < lost.mean() < 0.6
    assert found.status_counts()["DEGENERATE"] == lost.sum()
    assert f"{lost.sum()} of {N} refits do not count: {lost.sum()} DEGENERATE" in found.notes
    kept = found.replicates.components.mean[found.used, :, 0]
    np.testing.assert_allclose(found.errors.components.mean[:, 0], kept.std(0, ddof=1))


def test_labels_are_matched_by_the_best_permutation():
    cost = np.random.default_rng(0).uniform(size=(200, 4, 4))
    every = list(itertools.permutations(range(4)))
    totals = np.array([[c[np.arange(4), list(p)].sum() for p in every] for c in cost])
    np.testing.assert_array_equal(assigned(cost), np.array(every)[totals.argmin(1)])
    # Refits from the fit keep their labels even where components overlap; other ones do not.
    result = jaxem.fit(MODEL, X, key=0, restarts=2, tol=1e-12)
    swapped = dataclasses.replace(
        result.params,
        weights=result.params.weights[::-1],
        components=jax.tree.map(lambda a: a[::-1], result.params.components),
    )
    mirrored = jaxem.fit(MODEL, X, init=swapped, tol=1e-12)
    a = jaxem.bootstrap(result, X, N, key=1, tol=1e-10)
    b = jaxem.bootstrap(mirrored, X, N, key=1, tol=1e-10)
    np.testing.assert_allclose(a.errors.weights, b.errors.weights[::-1], rtol=1e-4)


def test_the_likelihood_ratio_of_one_component_too_many():
    """Under the smaller model p is uniform: of 3 data sets few have p ≤ .05."""
    models = jaxem.Mixture(jaxem.Poisson(), 1), jaxem.Mixture(jaxem.Poisson(), 2)
    rng = np.random.default_rng(0)
    p = [
        jaxem.likelihood_ratio_test(
            rng.poisson(3.0, (80, 1)).astype(float), *models, 39, key=i, restarts=2
        ).p_value
        for i in range(3)
    ]
    # 2 or more of 3 at p ≤ .05 have the chance .007.
    assert sum(v <= 0.05 for v in p) <= 1 and min(p) >= 1 / 40
    counts = np.arange(12.0)[:, None]
    both = 60 * np.exp(-1.0) / np.array([1, 1, 2, 6, 24, 120] + [720] * 6)
    weights = np.round(both + 60 * (np.abs(counts[:, 0] - 8) <= 2))
    found = jaxem.likelihood_ratio_test(counts, *models, 39, key=0, weights=weights, restarts=2)
    assert found.p_value == 1 / 40 and found.left_out == 0
    expected = 2 * (found.large.log_likelihood - found.small.log_likelihood)
    np.testing.assert_allclose(found.statistic, expected)
    assert found.unconverged == 0 and "converge" not in str(found)
    options = {"weights": weights, "restarts": 2, "max_iter": 2}
    with pytest.warns(jaxem.FitWarning) as caught:
        found = jaxem.likelihood_ratio_test(counts, *models, 39, key=0, **options)
    assert any("in 39 of 39 drawn data sets a fit did not" in str(w.message) for w in caught)
    assert found.unconverged == 39 and "39 of those that count have a fit" in str(found)


def test_held_out_scores_are_those_of_fits_without_the_fold():
    models = {k: jaxem.Mixture(jaxem.Normal("diagonal"), k) for k in (1, 2)}
    weights = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    found = jaxem.cross_validate(X, models, folds=5, key=0, weights=weights, restarts=2, tol=1e-10)
    assert found.best is models[2] and found.names == ("1", "2")
    fold = found.fold[0]
    assert (np.bincount(fold) == len(X) // 5).all()
    for i in (0, 3):
        held = np.where(fold == i, 0, weights)
        mean = held @ X[:, 0] / held.sum()
        variance = held @ (X[:, 0] - mean) ** 2 / held.sum()
        expected = -0.5 * ((X[:, 0] - mean) ** 2 / variance + np.log(2 * np.pi * variance))
        np.testing.assert_allclose(found.scores[0, 0, fold == i], expected[fold == i], rtol=1e-7)
    each = found.scores[:, 0]
    np.testing.assert_allclose(found.mean, each @ weights / weights.sum())
    assert "higher is better" in str(found)
    chosen = jaxem.select(X, list(models.values()), criterion="cv", key=0, restarts=2)
    assert chosen.best is chosen.results[1] and "CV, lower is better" in str(chosen)
    plain = jaxem.cross_validate(X, list(models.values()), key=0, restarts=2)
    np.testing.assert_allclose([row.score for row in chosen.table], -2 * len(X) * plain.mean)


def test_a_unit_without_density_has_the_score_of_minus_infinity():
    """Where one unit alone has a count, its rate is 0 in the other folds."""
    x = np.column_stack([np.arange(20) % 5, np.arange(20) == 7]).astype(float)
    models = {
        "free": jaxem.Mixture(jaxem.Poisson(), 1),
        "prior": jaxem.Mixture(jaxem.Poisson(prior=jaxem.GammaPrior(2.0, 1.0)), 1),
    }
    options = {"folds": 4, "key": 0, "restarts": 1}
    with pytest.warns(jaxem.FitWarning) as caught:
        found = jaxem.cross_validate(x, models, **options)
    fold = found.fold[0, 7]
    assert [str(w.message) for w in caught if "the density is 0" in str(w.message)] == [
        f"the density is 0 of 1 unit in fold {fold} under free, fitted to the other folds, so that "
        "the score is -inf: give the components a prior, or use fewer folds"
    ]
    assert found.mean[0] == -np.inf and np.isnan(found.error[0]) and found.winner == 1
    np.testing.assert_array_equal(np.flatnonzero(found.scores[0, 0] == -np.inf), [7])
    np.testing.assert_array_equal(found.impossible(0)[fold], [[0, 7]])
    assert f"density 0 of 1 unit in fold {fold}" in str(found).split("\n")[3]
    assert np.isfinite([found.mean[1], found.error[1]]).all() and not found.impossible(1)
    with pytest.warns(jaxem.FitWarning, match="density is 0"):
        found = jaxem.cross_validate(x, {"free": models["free"]}, **options)
    assert found.best is None


def test_folds_of_sequences():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, 1)) for length in rng.integers(4, 9, size=9)]
    models = [jaxem.HMM(jaxem.Normal("diagonal"), k) for k in (1, 2)]
    found = jaxem.cross_validate(
        jaxem.Sequences(sequences), models, 3, key=0, restarts=2, max_iter=50
    )
    fold = found.fold[0]
    for i in range(3):
        rows = np.concatenate([s for s, f in zip(sequences, fold, strict=True) if f != i])
        scale = rows.std()
        each = [stats.norm.logpdf(s, rows.mean(), scale).sum() for s in sequences]
        np.testing.assert_allclose(found.scores[0, 0, fold == i], np.array(each)[fold == i])
    np.testing.assert_allclose(found.mean, found.scores[:, 0].mean(1))
    assert np.isfinite(found.mean).all() and (np.bincount(fold) == 3).all()


def test_refusals(fitted):
    with pytest.raises(ValueError, match="kind must be one of"):
        jaxem.bootstrap(fitted, X, key=0, kind="row")
    with pytest.raises(ValueError, match="replicates are random: pass key"):
        jaxem.bootstrap(fitted, X)
    with pytest.raises(ValueError, match="leaves out one repetition"):
        jaxem.bootstrap(fitted, X, weights=np.full(len(X), 0.5), kind="jackknife")
    with pytest.raises(TypeError, match=r"jaxem.bootstrap\(result\[i\], x\[i\]\)"):
        jaxem.bootstrap(jaxem.fit(MODEL, jaxem.Batch(np.stack([X, X])), key=0), X, key=0)
    with pytest.raises(TypeError, match="carries q from step to step"):
        documents = jaxem.Documents(np.ones((4, 5), int))
        jaxem.bootstrap(jaxem.fit(jaxem.LDA(2), documents, key=0), documents, key=0)
    with pytest.raises(TypeError, match="outside"):
        jax.jit(lambda x: jaxem.bootstrap(fitted, x, 9, key=0).covariance)(X)
    with pytest.raises(ValueError, match="folds must be at most the number of units, 100"):
        jaxem.cross_validate(X, [MODEL], folds=101, key=0)
    regression = jaxem.Mixture(jaxem.Regression(), 1)
    data = jaxem.Data(X, X[:, 0] ** 2)
    with pytest.raises(TypeError, match="data sets are drawn as arrays of rows"):
        result = jaxem.fit(regression, data, key=0)
        jaxem.bootstrap(result, data, 9, key=0, kind="parametric")


def test_tables_of_patterns():
    """Independence of two bits has the χ² and G² of their table."""
    counts = np.array([40.0, 15.0, 20.0, 25.0])
    bits = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    one = jaxem.fit(jaxem.Mixture(jaxem.Bernoulli(), 1), bits, key=0, weights=counts)
    found = jaxem.goodness_of_fit(one, bits, counts)
    table = counts.reshape(2, 2)
    expected = (table.sum(1, keepdims=True) * table.sum(0) / table.sum()).ravel()
    np.testing.assert_allclose(found.expected, expected)
    np.testing.assert_allclose(found.x_squared, ((counts - expected) ** 2 / expected).sum())
    np.testing.assert_allclose(found.g_squared, 2 * (counts * np.log(counts / expected)).sum())
    assert found.degrees_of_freedom == 1 and found.cells == 4 and np.isnan(found.entropy_r2)
    # P(χ²₁ > x) = 2 P(z > √x).
    tail = 2 * (1 - NormalDist().cdf(np.sqrt(found.x_squared)))
    np.testing.assert_allclose(found.p_values[1], tail, rtol=1e-6)
    rows = jaxem.goodness_of_fit(one, np.repeat(bits, counts.astype(int), 0))
    np.testing.assert_allclose(rows.g_squared, found.g_squared)
    assert "1 degrees of freedom" in str(found)
    with pytest.raises(TypeError, match="no finite table of patterns"):
        jaxem.goodness_of_fit(jaxem.fit(MODEL, X, key=0), X)


def test_rows_without_a_value_stay_absent_in_refits():
    """The jackknife of the mean of observed cells is its closed form, and blank rows are in no
    held-out mean."""
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, size=(60, 2))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:9] = np.nan
    model = jaxem.Mixture(jaxem.Normal("diagonal", missing=True), 1)
    result = jaxem.fit(model, x, key=0)
    found = jaxem.bootstrap(result, x, kind="jackknife")
    mean = np.nanmean(x, 0)
    np.testing.assert_allclose(found.replicates.components.mean[:, 0].mean(0), mean, rtol=1e-3)
    with_blank, without = (
        jaxem.cross_validate(part, [model], 51, key=0, restarts=1) for part in (x, x[9:])
    )
    assert with_blank.mean[0] == pytest.approx(without.mean[0], abs=3 * without.error[0])


def test_components_of_other_families_keep_their_places():
    rng = np.random.default_rng(1)
    x = np.where(rng.random((150, 1)) < 0.4, 0, rng.poisson(4, (150, 1))).astype(float)
    parts = {"zero": (jaxem.PointMass(0.0), 1), "n": (jaxem.Poisson(), 1)}
    result = jaxem.fit(jaxem.Mixture(jaxem.Components(parts), 2), x, key=0)
    found = jaxem.bootstrap(result, x, n=99, key=1)
    assert found.relabelled is None
    errors = result.standard_errors(x).errors.weights
    # The standard deviation of 99 draws has a relative error of 1 / sqrt(2 * 98).
    np.testing.assert_allclose(found.errors.weights, errors, rtol=4.5 / np.sqrt(196))
