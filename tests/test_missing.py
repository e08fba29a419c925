"""Missing cells in normal components: exact EM on the observed cells, against direct oracles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import STRUCTURES, Status
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, multivariate_t

import jaxem

NAMES = [name for name in STRUCTURES if name.isupper()]
COMMON = ("VVV", "EEE", "VVI", "VII", "EII")
N, D, K = 60, 3, 2


def table(seed=0, n=N, d=D, part=0.25):
    """(complete rows, the same with holes and with one empty row)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.integers(0, 2, size=(n, 1))
    holes = np.where(rng.random((n, d)) < part, np.nan, x)
    holes[4] = np.nan
    return x, holes


WHOLE, HOLES = table()


def matrices(name, params):
    """The covariances as matrices (k, d, d)."""
    k, d = params.mean.shape
    return np.asarray(STRUCTURES[name].matrices(jnp.asarray(params.covariance), k, d))


def densities(mean, covariance, x):
    """log p of the observed cells (n, k), by scipy; 0 for empty rows."""
    out = np.zeros((len(x), len(mean)))
    for i, row in enumerate(x):
        seen = ~np.isnan(row)
        for j in range(len(mean)) if seen.any() else ():
            block = covariance[j][np.ix_(seen, seen)]
            out[i, j] = multivariate_normal(mean[j][seen], block).logpdf(row[seen])
    return out


def random_params(name, seed, k=K, d=D):
    """Params of a structure away from any maximum: an M-step at random responsibilities."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, d)) @ rng.normal(size=(d, d))
    model = jaxem.Mixture(jaxem.Normal(name), k=k)
    start = jaxem.Responsibilities(rng.dirichlet(np.ones(k), 40))
    return jaxem.fit(model, x, init=start, max_iter=0).params


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in COMMON)) for n in NAMES]
)
def test_complete_rows_give_the_plain_fit_and_holes_only_climb(name):
    """Complete rows: the same steps to rounding. With holes: from random params, every M-step
    raises the observed log-likelihood, which is that of scipy's marginal densities."""
    plain, model = (jaxem.Mixture(jaxem.Normal(name, missing=m), k=K) for m in (False, True))
    start = random_params(name, 1)
    fits = [jaxem.fit(m, WHOLE, init=start, max_iter=20, tol=0) for m in (plain, model)]
    for one, other in zip(*(jax.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(*(fit.log_likelihood for fit in fits), rtol=1e-12)

    path = [jaxem.fit(model, HOLES, init=start, max_iter=i, tol=0) for i in range(8)]
    values = np.array([fit.log_likelihood for fit in path])
    assert (np.diff(values) >= -1e-12 * abs(values[1:])).all() and values[-1] > values[0] + 1
    params = path[-1].params
    covariance = matrices(name, params.components)
    logs = densities(np.asarray(params.components.mean), covariance, HOLES)
    expected = np.log(np.exp(logs) @ np.asarray(params.weights))
    np.testing.assert_allclose(path[-1].score_samples(HOLES), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(values[-1], expected.sum(), rtol=1e-12)


MODEL = jaxem.Mixture(jaxem.Normal(missing=True), k=K)


def test_an_empty_row_changes_nothing():
    """It is absent: from the steps, from Σw, and from predictions."""
    without = np.delete(HOLES, 4, axis=0)
    start = random_params("VVV", 2)
    fits = [jaxem.fit(MODEL, x, init=start, tol=1e-10) for x in (HOLES, without)]
    assert fits[0].n_iter == fits[1].n_iter
    assert fits[0].total_weight == fits[1].total_weight == N - 1
    for one, other in zip(*(jax.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    labels = np.asarray(fits[0].predict(HOLES))
    assert (labels == -1).nonzero()[0].tolist() == [4]
    np.testing.assert_allclose(fits[0].predict_proba(HOLES)[4], fits[0].params.weights, rtol=1e-12)
    assert abs(fits[0].score_samples(HOLES)[4]) < 1e-15


def test_errors_name_what_is_wrong():
    empty = HOLES.copy()
    empty[:, 1] = np.nan
    with pytest.raises(ValueError, match="column 1 has no observed value"):
        jaxem.fit(MODEL, empty, key=0)
    with pytest.raises(ValueError, match=r"Normal\(missing=True\) takes NaN"):
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=K), HOLES, key=0)
    infinite = HOLES.copy()
    infinite[7, 0] = np.inf
    with pytest.raises(ValueError, match="finite numbers, or NaN where a value is missing"):
        jaxem.fit(MODEL, infinite, key=0)
    with pytest.raises(ValueError, match="BayesianMixture takes no missing=True"):
        jaxem.fit(jaxem.BayesianMixture(jaxem.Normal(missing=True), k=K), HOLES, key=0)
    with pytest.raises(TypeError, match="missing must be True or False"):
        jaxem.Normal(missing="yes")


@pytest.mark.parametrize("column", [0, 2])
def test_monotone_pattern_has_the_closed_form(column):
    """One column has holes: its regression on the others, from the rows where it is observed, joins
    the moments of the others, from all rows (Anderson 1957)."""
    x = WHOLE.copy()
    x[:25, column] = np.nan
    others = [j for j in range(D) if j != column]
    mean, second = x[:, others].mean(0), np.cov(x[:, others].T, bias=True)
    complete = x[25:]
    design = np.column_stack([np.ones(len(complete)), complete[:, others]])
    slopes, *_ = np.linalg.lstsq(design, complete[:, column], rcond=None)
    residual = np.mean((complete[:, column] - design @ slopes) ** 2)
    expected = np.empty((D, D))
    expected[np.ix_(others, others)] = second
    expected[column, others] = expected[others, column] = second @ slopes[1:]
    expected[column, column] = residual + slopes[1:] @ second @ slopes[1:]
    one = jaxem.Mixture(jaxem.Normal(missing=True), k=1)
    found = jaxem.fit(one, x, key=0, tol=1e-13).raise_if_failed().params.components
    of_mean = np.asarray(found.mean[0])
    np.testing.assert_allclose(found.covariance[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_mean[others], mean, rtol=1e-8)
    np.testing.assert_allclose(of_mean[column], slopes[0] + mean @ slopes[1:], rtol=1e-5)


def test_tiny_data_reach_the_maximum_of_the_observed_likelihood():
    x = table(3, n=14, d=2, part=0.3)[1]
    x[4] = [0.5, np.nan]

    def loss(free):
        root = np.array([[np.exp(free[2]), 0], [free[3], np.exp(free[4])]])
        return -densities(free[None, :2], (root @ root.T)[None], x).sum()

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    one = jaxem.Mixture(jaxem.Normal(missing=True), k=1)
    result = jaxem.fit(one, x, key=0, tol=1e-13).raise_if_failed()
    assert abs(result.log_likelihood + best.fun) < 1e-7
    np.testing.assert_allclose(result.params.components.mean[0], best.x[:2], atol=2e-4)


def test_weights_are_repetitions_and_batches_are_separate_fits():
    start = random_params("VVV", 2)
    counts = np.random.default_rng(5).integers(0, 3, N).astype(float)
    weighted = jaxem.fit(MODEL, HOLES, init=start, weights=counts, max_iter=9, tol=0)
    repeated = np.repeat(HOLES, counts.astype(int), axis=0)
    other = jaxem.fit(MODEL, repeated, init=start, max_iter=9, tol=0)
    np.testing.assert_allclose(weighted.log_likelihood, other.log_likelihood, rtol=1e-12)

    sets = np.stack([table(seed)[1] for seed in range(3)])
    fleet = jaxem.fit(MODEL, jaxem.Batch(sets), key=1, tol=1e-10)
    labels = fleet.predict(sets)
    for i, x in enumerate(sets):
        one = jaxem.fit(MODEL, x, init=jax.tree.map(lambda a: a[i], fleet.params), tol=1e-10)  # noqa: B023
        np.testing.assert_allclose(fleet.log_likelihood[i], one.log_likelihood, atol=1e-5)
        np.testing.assert_array_equal(labels[i], one.predict(x))
    assert (np.asarray(labels)[:, 4] == -1).all()


def test_gradients_through_a_fit_are_finite_differences():
    one = jaxem.Mixture(jaxem.Normal(missing=True), k=1)
    x = jnp.asarray(np.delete(HOLES, 4, axis=0)[:40])

    def quantity(x):
        found = jaxem.fit(one, x, key=0, tol=1e-13).params.components
        return found.covariance[0, 0, 1] + found.mean[0, 2]

    slope = np.asarray(jax.jit(jax.grad(quantity))(x))
    assert np.isfinite(slope).all() and (slope[np.isnan(x)] == 0).all()
    assert (slope[~np.isnan(x)] != 0).all()
    direction = np.random.default_rng(0).normal(size=x.shape)
    ahead, behind = (float(quantity(x + h * direction)) for h in (1e-4, -1e-4))
    expected = (ahead - behind) / 2e-4
    np.testing.assert_allclose((slope * direction).sum(), expected, rtol=1e-4)


def test_float32():
    x = HOLES.astype(np.float32)
    start = random_params("VVV", 2)
    half = jaxem.fit(MODEL, x, init=start, tol=1e-5)
    double = jaxem.fit(MODEL, HOLES, init=start, tol=1e-9)
    assert half.status == Status.CONVERGED and half.params.components.mean.dtype == np.float32
    np.testing.assert_allclose(half.log_likelihood, double.log_likelihood, rtol=1e-5)


def test_labels_and_groups():
    """Known components, and rows that share one, with holes in both."""
    labels = np.where(np.arange(N) % 2, -1, np.arange(N) // 30)
    result = jaxem.fit(MODEL, jaxem.Data(HOLES, labels=labels), key=0, tol=1e-8)
    assert result.converged
    known = np.delete(np.flatnonzero(labels >= 0), 2)  # row 4 is empty
    found = np.asarray(result.predict(jaxem.Data(HOLES, labels=labels)))
    np.testing.assert_array_equal(found[known], labels[known])
    groups = np.arange(N) // 3
    grouped = jaxem.fit(MODEL, jaxem.Data(HOLES, groups=groups), key=0, tol=1e-8)
    components = grouped.params.components
    logs = densities(np.asarray(components.mean), np.asarray(components.covariance), HOLES)
    joint = logs.reshape(-1, 3, K).sum(1) + np.log(np.asarray(grouped.params.weights))
    np.testing.assert_allclose(grouped.log_likelihood, np.log(np.exp(joint).sum(1)).sum())


def test_chains_take_missing_cells():
    """The evidence of a chain over all paths of states, from densities of the observed cells."""
    x = table(7, n=6)[1]
    model = jaxem.HMM(jaxem.Normal(missing=True), k=2)
    long = jaxem.Sequences([HOLES, x])
    result = jaxem.fit(model, long, key=0, tol=1e-6)
    p = result.params
    logs = densities(np.asarray(p.emissions.mean), np.asarray(p.emissions.covariance), x)
    total = 0.0
    for path in np.ndindex(*(2,) * len(x)):
        chance = np.asarray(p.initial)[path[0]]
        for a, b in itertools.pairwise(path):
            chance = chance * np.asarray(p.transition)[a, b]
        total += chance * np.exp(sum(logs[t, z] for t, z in enumerate(path)))
    np.testing.assert_allclose(result.score_samples(long)[1], np.log(total), rtol=1e-9)
    filled = result.impute(long)
    assert [f.shape for f in filled] == [HOLES.shape, x.shape]
    assert all(np.isfinite(f).all() for f in filled)
    draws = result.impute(long, draws=2, key=0)
    assert draws[1].shape == (2, *x.shape)
    np.testing.assert_array_equal(draws[1][0][~np.isnan(x)], x[~np.isnan(x)])


def test_impute():
    """Conditional means of the mixture, by scipy; draws have those means and their spread."""
    result = jaxem.fit(MODEL, HOLES, key=0, tol=1e-6)
    components = result.params.components
    mean, cov = np.asarray(components.mean), np.asarray(components.covariance)
    r = np.asarray(result.predict_proba(HOLES))
    filled = np.asarray(result.impute(HOLES))
    draws = np.asarray(result.impute(HOLES, draws=4000, key=1))
    seen = ~np.isnan(HOLES)
    np.testing.assert_array_equal(filled[seen], HOLES[seen])
    assert (draws[:, seen] == HOLES[seen]).all() and draws.shape == (4000, N, D)
    for i in np.flatnonzero(~seen.all(1)):
        o, m = seen[i], ~seen[i]
        each, second = [], []
        for j in range(K):
            slope = np.linalg.solve(cov[j][np.ix_(o, o)], cov[j][np.ix_(o, m)]).T
            of_j = mean[j][m] + slope @ (HOLES[i, o] - mean[j][o])
            spread = cov[j][np.ix_(m, m)] - slope @ cov[j][np.ix_(o, m)]
            each.append(of_j)
            second.append(np.diag(spread) + of_j**2)
        expected = r[i] @ each
        sd = np.sqrt(r[i] @ second - expected**2)
        np.testing.assert_allclose(filled[i, m], expected, rtol=1e-8, atol=1e-8)
        assert (abs(draws[:, i, m].mean(0) - expected) < 5 * sd / np.sqrt(4000)).all()
        if r[i].min() < 1e-9 or r[i].min() > 0.05:  # else few draws set the spread
            assert (abs(draws[:, i, m].std(0) / sd - 1) < 0.12).all()
    with pytest.raises(TypeError, match="takes no missing cells to impute"):
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=1), WHOLE, key=0).impute(WHOLE)
    with pytest.raises(ValueError, match="draws are random"):
        result.impute(HOLES, draws=3)


def test_check_model():
    assert jaxem.check_model(MODEL, HOLES, key=0)


@pytest.mark.parametrize("name", ["full", "tied", "diagonal", "spherical"])
def test_student_t(name):
    """Complete rows give the plain fit; with holes every step climbs to scipy's marginal densities,
    with degrees of freedom that are estimated."""
    rng = np.random.default_rng(8)
    x = WHOLE + 0.3 * rng.standard_t(2.0, size=WHOLE.shape)
    holes = np.where(np.isnan(HOLES), np.nan, x)
    plain, model = (
        jaxem.Mixture(jaxem.StudentT(covariance=name, missing=m), k=K) for m in (False, True)
    )
    start = jaxem.fit(plain, x, key=1, max_iter=2, tol=0).params
    fits = [jaxem.fit(m, x, init=start, max_iter=9, tol=0) for m in (plain, model)]
    for one, other in zip(*(jax.tree.leaves(fit.params) for fit in fits), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)
    path = [jaxem.fit(model, holes, init=start, max_iter=i, tol=0) for i in range(9)]
    values = np.array([fit.log_likelihood for fit in path])
    assert (np.diff(values) >= -1e-11 * abs(values[1:])).all() and values[-1] > values[0] + 1
    params = path[-1].params
    bank, k = params.components, K
    scale = np.asarray(STRUCTURES[name].matrices(jnp.asarray(bank.scale), k, D))
    mean, df, total = np.asarray(bank.mean), np.asarray(bank.df), 0.0
    for row in holes:
        seen = ~np.isnan(row)
        if seen.any():
            at = np.ix_(seen, seen)
            terms = [multivariate_t(mean[j][seen], scale[j][at], df[j]) for j in range(k)]
            total += np.log(np.asarray(params.weights) @ [t.pdf(row[seen]) for t in terms])
    np.testing.assert_allclose(values[-1], total, rtol=1e-10)
    assert np.isfinite(path[-1].impute(holes, draws=2, key=0)).all()


def test_student_t_is_at_a_maximum():
    """The observed likelihood has no slope where a fit with estimated degrees of freedom ends."""
    rng = np.random.default_rng(8)
    x = np.where(np.isnan(HOLES), np.nan, WHOLE + 0.5 * rng.standard_t(2.0, size=WHOLE.shape))
    model = jaxem.Mixture(jaxem.StudentT(missing=True), k=1)
    result = jaxem.fit(model, x, key=0, tol=1e-12).raise_if_failed()
    slope = jax.jit(jax.grad(lambda p: model.log_prob(p, jnp.asarray(x)).sum()))(result.params)
    for leaf in jax.tree.leaves(slope.components):
        np.testing.assert_allclose(leaf, 0, atol=1e-3)


@pytest.mark.parametrize("structure", ["full", "spherical"])
def test_student_t_starts_at_observed_cells(structure):
    """On two groups far apart it is likelier than the normal fit, which is a case of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)) + 6 * rng.integers(2, size=(120, 1))
    x = np.where(rng.random(x.shape) < 0.3, np.nan, x)
    banks = (jaxem.Normal(structure, missing=True), jaxem.StudentT(None, structure, missing=True))
    normal, student = (
        float(jaxem.fit(jaxem.Mixture(bank, 2), x, key=0, restarts=2).log_likelihood)
        for bank in banks
    )
    assert student > normal - 1e-2  # the normal limit is 1e5 degrees of freedom
