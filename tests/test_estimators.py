"""The estimators of `jaxem.sklearn`: scikit-learn's checks, its fits, and what theirs lack."""

import pickle
import warnings

import jax
import numpy as np
import pytest
import scipy.sparse
from internals import CLIMBS, compilations
from sklearn import cluster, decomposition, mixture
from sklearn.base import clone, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

import jaxem
import jaxem.sklearn as ours

OTHERS = [
    ours.BayesianGaussianMixture(),
    ours.KMeans(),
    ours.LatentDirichletAllocation(),
    ours.MixtureModel(),
    ours.MixtureModel(jaxem.Mixture(jaxem.Regression(prior=jaxem.CoefficientPrior(1e-4)), k=1)),
]
"""The estimators whose checks are all run by `pytest -m slow`: each compiles some 20 programs."""

QUICK = (
    *("check_get_params_invariance", "check_set_params", "check_estimator_cloneable"),
    *("check_parameters_default_constructible", "check_no_attributes_set_in_init"),
    *("check_estimators_unfitted", "check_estimators_pickle"),
)
"""Those that are run by default: without fits, but for the last one."""

KINDS = ["full", "tied", "diag", "spherical"]
RNG = np.random.default_rng(7)
X = RNG.normal(size=(120, 2)) @ [[1, 0.4], [0, 2]] + 4.0 * RNG.integers(2, size=(120, 1)) + 50
WEIGHTS = RNG.integers(0, 3, 120).astype(float)
COUNTS = RNG.poisson(np.where(X.mean() < X, 9.0, 2.0)).astype(float)
SLOPE = np.where(RNG.uniform(size=120) < 0.5, -3.0, 3.0)
Y = SLOPE * (X[:, 0] - 50) + RNG.normal(size=120)


def known_failures(estimator):
    """The checks that scikit-learn's own KMeans fails too: seeds are drawn by row."""
    if not isinstance(estimator, ours.KMeans):
        return {}
    reason = "seeds are drawn by row: a weight of 2 is not a row twice"
    names = ("on_dense_data", "on_sparse_data")
    return {f"check_sample_weight_equivalence_{name}": reason for name in names}


quietly = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::jaxem.FitWarning"),
]


def quick_checks():
    """A list of (estimator, check) of the checks in `QUICK`."""
    found = []
    for estimator in OTHERS:
        for instance, check in estimator_checks_generator(estimator):
            if check.func.__name__ in QUICK:
                name = f"{type(estimator).__name__}-{check.func.__name__}"
                found.append(pytest.param(instance, check, marks=quietly, id=name))
    return found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([ours.GaussianMixture()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("estimator", "check"), quick_checks())
def test_some_of_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
@parametrize_with_checks(OTHERS, expected_failed_checks=known_failures)
def test_all_of_scikit_learns_checks(estimator, check):
    check(estimator)


def close(a, b, rtol=1e-6, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def same_attributes(a, b, names, **tolerances):
    for name in names:
        close(vars(a)[name], vars(b)[name], **tolerances)


NORMAL = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "n_iter_")


@pytest.mark.parametrize("reg_covar", [0, 0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_mixture_is_that_of_scikit_learn(kind, reg_covar):
    """With x64 off outside, from their start, in float64; and the setting of JAX is untouched. With
    a ridge a fit may go on where theirs ends: then they take as many steps."""
    options = {"covariance_type": kind, "reg_covar": reg_covar, "random_state": 1}
    with jax.enable_x64(False):
        for init in ("kmeans", "random"):
            theirs = mixture.GaussianMixture(2, init_params=init, **options).fit(X)
            found = ours.GaussianMixture(2, init_params=init, **options).fit(X)
            more = found.n_iter_ - theirs.n_iter_
            assert more == 0 or (more > 0 and reg_covar)
            if more:
                with pytest.warns(ConvergenceWarning):
                    theirs.set_params(tol=0, max_iter=found.n_iter_).fit(X).converged_ = True
            same_attributes(found, theirs, NORMAL)
            assert found.means_.dtype == np.float64 and found.converged_ and theirs.converged_
            assert not jax.config.jax_enable_x64
        close(found.score_samples(X), theirs.score_samples(X))
        close(found.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
        close((found.bic(X), found.aic(X)), (theirs.bic(X), theirs.aic(X)))
        assert (found.predict(X) == theirs.predict(X)).all()
        close(found.score(X), found.lower_bound_)
        assert abs(found.lower_bound_ - theirs.lower_bound_) < found.tol
        for mine, other in zip(found.sample(9), theirs.sample(9), strict=True):
            close(mine, other)
    start = mixture.GaussianMixture(2, init_params="kmeans", max_iter=1, **options)
    with pytest.warns(ConvergenceWarning):
        start.fit(X)
    moved = np.abs(start.means_ - theirs.means_).max()
    assert moved > 1e-3  # the fits above are no starts


def test_given_starts_and_seeds():
    """All parts of a start, and starts by k-means++ and by single rows."""
    parts = {
        "weights_init": [0.3, 0.7],
        "means_init": X[[3, 8]],
        "precisions_init": np.stack([np.eye(2), np.diag([1.0, 0.5])]),
    }
    theirs, found = (m.GaussianMixture(2, reg_covar=0, **parts).fit(X) for m in (mixture, ours))
    same_attributes(found, theirs, NORMAL)
    for rule in ("k-means++", "random_from_data"):
        options = {"init_params": rule, "random_state": 2}
        theirs, found = (m.GaussianMixture(2, **options).fit(X) for m in (mixture, ours))
        same_attributes(found, theirs, NORMAL)
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            ours.GaussianMixture(2, reg_covar=0, **options).fit(X)
    for name, value, words in (
        ("weights_init", [0.3, 0.6], "normalized"),
        ("means_init", X[:3], r"shape of \(2, 2\), but got \(3, 2\)"),
        ("precisions_init", np.stack([np.eye(2), -np.eye(2)]), "positive-definite"),
        ("tol", -1, "tol of GaussianMixture must be a finite number of at least 0, got -1"),
        ("covariance_type", "diagonal", "must be one of 'full'"),
    ):
        with pytest.raises(ValueError, match=words):
            ours.GaussianMixture(2, **{name: value}).fit(X)


@pytest.mark.parametrize("kind", KINDS)
def test_bayesian_mixture_takes_the_steps_of_scikit_learn(kind):
    process = "dirichlet_process" if kind in ("full", "diag") else "dirichlet_distribution"
    options = {"covariance_type": kind, "weight_concentration_prior_type": process}
    options |= {"n_components": 3, "reg_covar": 0.1, "tol": 0, "max_iter": 6, "random_state": 0}
    with pytest.warns(ConvergenceWarning):
        theirs = mixture.BayesianGaussianMixture(**options).fit(X)
    with pytest.warns(ConvergenceWarning) as caught:
        found = ours.BayesianGaussianMixture(**options).fit(X)
    assert len(caught) == 1 and not found.converged_
    names = ("weight_concentration_", "mean_precision_", "degrees_of_freedom_")
    same_attributes(found, theirs, (*NORMAL, *names))
    priors = ("weight_concentration_prior_", "mean_prior_", "covariance_prior_")
    same_attributes(found, theirs, priors)
    close(found.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
    close(found.score(X), theirs.score(X))


def step_gain(fitted, x):
    """What one further M-step of scikit-learn gains: Σ w' KL(N' ‖ N) + KL(w' ‖ w), in nats."""
    parts = {"weights": "weights", "means": "means", "precisions": "precisions"}
    start = {f"{name}_init": vars(fitted)[f"{part}_"] for name, part in parts.items()}
    after = mixture.GaussianMixture(4, reg_covar=fitted.reg_covar, max_iter=1, **start)
    with warnings.catch_warnings(action="ignore"):
        after.fit(x)
    away, product = after.means_ - fitted.means_, fitted.precisions_ @ after.covariances_
    distance = np.einsum("ki,kij,kj->k", away, fitted.precisions_, away)
    each = distance + np.trace(product, axis1=1, axis2=2) - 3 - np.linalg.slogdet(product)[1]
    return after.weights_ @ (each / 2 + np.log(after.weights_ / fitted.weights_))


def test_no_fit_ends_where_the_objective_with_a_ridge_turns():
    """There its change is below tol far from a fixed point: scikit-learn ends there."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(m, s, (100, 3)) for m, s in ((0, 1), (1.5, 0.5), (3, 0.8))])
    options, short = {"n_components": 4, "reg_covar": 0.1}, x / 20
    for seed in range(3):
        found, theirs = (
            m.GaussianMixture(4, reg_covar=0.01, random_state=seed).fit(short)
            for m in (ours, mixture)
        )
        assert found.converged_ and step_gain(found, short) < found.tol
        assert theirs.converged_ and step_gain(theirs, short) > theirs.tol
    # The bound of this fit turns at step 50, where means are off by as much as 1.4.
    found = ours.BayesianGaussianMixture(random_state=1, **options).fit(x)
    theirs = mixture.BayesianGaussianMixture(random_state=1, tol=1e-9, max_iter=999, **options)
    assert found.converged_ and np.abs(found.means_ - theirs.fit(x).means_).max() < 1e-3


def test_the_bound_of_a_bayesian_mixture_is_whole():
    options = {"n_components": 3, "reg_covar": 0, "tol": 1e-6, "max_iter": 500, "random_state": 0}
    found = ours.BayesianGaussianMixture(**options).fit(X)
    prior = jaxem.NormalWishartPrior(
        found.mean_prior_, 1.0, float(found.degrees_of_freedom_prior_), found.covariance_prior_
    )
    model = jaxem.BayesianMixture(jaxem.Normal(prior=prior), 3, "dirichlet_process", 1 / 3)
    bound = jax.jit(lambda params: model.elbo(params, X).value)(found._previous())
    close(found.lower_bound_, bound, rtol=1e-9)
    theirs = mixture.BayesianGaussianMixture(**options).fit(X)
    close(found.means_, theirs.means_, rtol=1e-3)  # both end near one optimum


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_repetitions(dtype):
    """Of mixtures of both kinds from one start; in the precision of the data."""
    x, repeated = X.astype(dtype), np.repeat(X, WEIGHTS.astype(int), 0).astype(dtype)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    start = {"weights_init": [0.5, 0.5], "means_init": X[[3, 8]]}
    start["precisions_init"] = np.stack([np.eye(2)] * 2)
    one = ours.GaussianMixture(2, **start).fit(x, sample_weight=WEIGHTS)
    other = ours.GaussianMixture(2, **start).fit(repeated)
    assert one.means_.dtype == one.covariances_.dtype == dtype
    same_attributes(one, other, ("means_", "covariances_", "weights_"), rtol=tolerance)
    assert np.abs(ours.GaussianMixture(2, **start).fit(x).means_ - one.means_).max() > 1e-3
    one = ours.KMeans(3, init=X[:3], n_init=1).fit(x, sample_weight=WEIGHTS)
    other = ours.KMeans(3, init=X[:3], n_init=1).fit(repeated)
    same_attributes(one, other, ("cluster_centers_", "inertia_"), rtol=tolerance)
    close(one.score(x, sample_weight=WEIGHTS), -one.inertia_, rtol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_in_a_start(kind):
    """max_iter=0 returns the start, without a warning; that of one component is not random."""
    repeated = np.repeat(X, WEIGHTS.astype(int), 0)
    options = {"covariance_type": kind, "max_iter": 0}
    one = ours.GaussianMixture(**options).fit(X, sample_weight=WEIGHTS)
    other = mixture.GaussianMixture(**options).fit(repeated)
    same_attributes(one, other, NORMAL)


@pytest.mark.parametrize("init", ["k-means++", "random", X[:3]], ids=["++", "random", "given"])
def test_kmeans_is_that_of_scikit_learn(init):
    for tol in (0, 0.05):
        for weights in (None, WEIGHTS):
            options = {"init": init, "n_init": 1, "tol": tol, "random_state": 4}
            theirs = cluster.KMeans(3, **options).fit(X, sample_weight=weights)
            found = ours.KMeans(3, **options).fit(X, sample_weight=weights)
            same_attributes(found, theirs, ("cluster_centers_", "inertia_"))
            assert (found.labels_ == theirs.labels_).all()
            assert 0 <= theirs.n_iter_ - found.n_iter_ <= 1
    close(found.transform(X[:9]), theirs.transform(X[:9]))
    sparse = ours.KMeans(3, **options).fit(scipy.sparse.csr_array(X), sample_weight=weights)
    close(sparse.cluster_centers_, found.cluster_centers_)
    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        ours.KMeans(3, random_state=0).fit(np.repeat(X[:2], 60, 0))


def documents():
    rng = np.random.default_rng(1)
    topics, shares = rng.dirichlet(np.full(30, 0.1), 3), rng.dirichlet(np.full(3, 0.3), 80)
    return np.stack([rng.multinomial(60, p) for p in shares @ topics]).astype(float)


def test_topics_are_those_of_scikit_learn():
    """From one start: the same E-step at equal topics, and as good a bound after the passes."""
    x = documents()
    options = {"random_state": 0, "max_iter": 20}
    theirs = decomposition.LatentDirichletAllocation(3, **options).fit(x)
    found = ours.LatentDirichletAllocation(3, **options).fit(scipy.sparse.csr_matrix(x))
    start = ours.LatentDirichletAllocation(3, random_state=0, max_iter=0).fit(x)
    gained = (start.bound_ - found.bound_) / (start.bound_ - theirs.bound_)
    assert gained > 0.97 and found.n_iter_ == 20
    close(found.score(x), -np.log(found.bound_) * x.sum())
    online = ours.LatentDirichletAllocation(3, learning_method="online", **options).fit(x)
    assert start.bound_ - online.bound_ > 0.5 * (start.bound_ - theirs.bound_)
    same = clone(found).set_params(mean_change_tol=1e-9, max_doc_update_iter=5000).fit(x)
    theirs.set_params(mean_change_tol=1e-9, max_doc_update_iter=5000)
    same.components_ = theirs.components_
    close(same.transform(x), theirs.transform(x), atol=1e-6)
    close(same.score(x), theirs.score(x))
    close(same.perplexity(x, sub_sampling=True), theirs.perplexity(x, sub_sampling=True))


def test_topics_of_weighted_documents_and_steps():
    x, weights = documents(), RNG.integers(0, 3, 80).astype(float)
    options = {"n_components": 3, "random_state": 0}
    one = ours.LatentDirichletAllocation(**options).fit(x, sample_weight=weights)
    other = ours.LatentDirichletAllocation(**options).fit(np.repeat(x, weights.astype(int), 0))
    close(one.components_, other.components_, rtol=1e-6)
    close(one.bound_, other.bound_)
    whole = ours.LatentDirichletAllocation(**options, learning_method="online", batch_size=40)
    whole.set_params(max_iter=1, total_samples=80).fit(x)
    parts = clone(whole)
    parts.partial_fit(x[:40]).partial_fit(x[40:])
    close(parts.components_, whole.components_)
    assert whole.n_batch_iter_ == parts.n_batch_iter_ == 3
    early = ours.LatentDirichletAllocation(**options, max_iter=100, evaluate_every=2, perp_tol=1.0)
    assert early.fit(x).n_iter_ < 100


def test_one_warning_and_clear_errors():
    options = {"random_state": 0, "tol": 0, "max_iter": 3}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ours.GaussianMixture(2, **options).fit(X)
    assert [w.category for w in caught] == [ConvergenceWarning]
    assert not found.converged_ and found.n_iter_ == 3
    with pytest.raises(ValueError, match="accelerator='auto' needs reg_covar=0, got 1e-06"):
        ours.GaussianMixture(2, accelerator="auto").fit(X)
    for estimator in (ours.GaussianMixture(2), mixture.GaussianMixture(2)):
        with pytest.raises(TypeError, match="Sparse data was passed"):
            estimator.fit(scipy.sparse.csr_matrix(X))
        with pytest.raises(ValueError, match="contains NaN"):
            estimator.fit(np.where(X > 55, np.nan, X))
    for wrong, words in (
        (-np.ones(120), "negative"),
        (np.zeros(120), "above zero"),
        (np.ones(3), r"\(3,\), expected \(120,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            ours.GaussianMixture(2).fit(X, sample_weight=wrong)


def test_accelerated_fits_end_at_the_maximum_and_warm_ones_go_on():
    start = {"reg_covar": 0, "random_state": 0}
    options = {"tol": 1e-8, "max_iter": 2000}
    plain = ours.GaussianMixture(2, **start, **options).fit(X)
    quick = ours.GaussianMixture(2, accelerator=jaxem.SQUAREM(), **start, **options).fit(X)
    assert quick.converged_
    close(quick.lower_bound_, plain.lower_bound_, rtol=1e-7)
    warm = ours.GaussianMixture(2, warm_start=True, tol=0, max_iter=4, **start)
    with pytest.warns(ConvergenceWarning):
        warm.fit(X)
    first = warm.lower_bound_
    with pytest.warns(ConvergenceWarning):
        warm.fit(X)
    cold = ours.GaussianMixture(2, tol=0, max_iter=8, **start)
    with pytest.warns(ConvergenceWarning):
        cold.fit(X)
    same_attributes(warm, cold, ("means_", "covariances_", "weights_"))
    assert warm.lower_bound_ > first


def test_a_constant_column_has_the_ridge_as_its_variance():
    x = np.c_[X, np.full(120, 3.0)]
    theirs, found = (m.GaussianMixture(2, random_state=0).fit(x) for m in (mixture, ours))
    close(found.covariances_[:, 2, 2], 1e-6, rtol=1e-9)
    same_attributes(found, theirs, ("means_", "weights_"))
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        ours.GaussianMixture(2, random_state=0, reg_covar=0).fit(x)


def test_data_of_similar_size_share_programs():
    ours.GaussianMixture(2, random_state=0).fit(X).predict(X)
    with compilations() as compiled:
        ours.GaussianMixture(2, random_state=0).fit(X[:100]).predict(X[:95])
    assert compiled == []
    with compilations() as compiled:
        ours.GaussianMixture(2, random_state=0).fit(X[:40])
    assert CLIMBS in compiled


def test_in_pipelines_grids_and_frames():
    steps = make_pipeline(StandardScaler(), ours.GaussianMixture(random_state=0))
    grid = GridSearchCV(steps, {"gaussianmixture__n_components": [1, 2]}, cv=2).fit(X)
    assert grid.best_params_["gaussianmixture__n_components"] == 2
    theirs = make_pipeline(StandardScaler(), mixture.GaussianMixture(random_state=0))
    theirs = GridSearchCV(theirs, {"gaussianmixture__n_components": [1, 2]}, cv=2).fit(X)
    close(grid.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b"])
    found = ours.KMeans(2, random_state=0).set_output(transform="pandas").fit(frame)
    assert list(found.transform(frame).columns) == ["kmeans0", "kmeans1"]
    assert list(found.feature_names_in_) == ["a", "b"]


def test_any_mixture_is_an_estimator():
    model = jaxem.Mixture(jaxem.Poisson(), k=2)
    estimator = ours.MixtureModel(model, random_state=0, n_init=2)
    found = pickle.loads(pickle.dumps(clone(estimator).fit(COUNTS)))
    q, evidence = jax.jit(model.posterior)(found.result_.params, COUNTS)
    close(found.score_samples(COUNTS), evidence)
    close(found.bic(COUNTS), found.result_.bic())
    close(found.predict_proba(COUNTS), q.responsibilities)
    assert (found.predict(COUNTS) == np.argmax(q.responsibilities, 1)).all()
    assert found.converged_ and found.sample(5).shape == (5, 2)
    weighted = clone(estimator).fit(COUNTS, sample_weight=WEIGHTS)
    close(weighted.result_.total_weight, WEIGHTS.sum())
    grid = GridSearchCV(estimator, {"model__k": [1, 2]}, cv=2).fit(COUNTS)
    assert grid.best_params_ == {"model__k": 2} and estimator.model.k == 2
    deep = estimator.get_params()
    assert deep["model__components"] == jaxem.Poisson() and deep["model__k"] == 2
    estimator.set_params(model__components=jaxem.Normal(), model__components__covariance="tied")
    assert estimator.model == jaxem.Mixture(jaxem.Normal("tied"), k=2)
    with pytest.raises(ValueError, match="Invalid parameter 'model__q'"):
        estimator.set_params(model__q=1)
    with pytest.raises(ValueError, match="5 rows and the model 6 components"):
        found.set_params(model__k=6).fit(COUNTS[:5])
    with pytest.raises(ValueError, match="counts"):
        found.fit(COUNTS - 100)


def test_missing_cells_and_the_rows_of_a_result():
    """The data are padded with rows that the result does not count."""
    x = COUNTS.copy()
    x[::5, 0] = np.nan
    model = jaxem.Mixture(jaxem.Poisson(missing=True), k=2)
    found = ours.MixtureModel(model, random_state=0).fit(x[:100])
    result = found.result_
    assert result.data_shape == (100, 2)
    assert result.summary().split("\n")[2].split() == ["units", "100"]
    close(result.entropy(), result.entropy(x[:100]))
    close(result.bic(), found.bic(x[:100]))
    close(found.score_samples(x), result.score_samples(x))
    assert np.isfinite(found.score_samples(x)).all() and found.predict(x).min() == 0
    for model in (jaxem.Mixture(jaxem.Poisson(), k=2), None):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            ours.MixtureModel(model).fit(x)
    parts = {"a": (jaxem.Poisson(missing=True), [0]), "b": (jaxem.Poisson(), [1])}
    with pytest.raises(ValueError, match="Input X contains NaN"):
        ours.MixtureModel(jaxem.Mixture(jaxem.Product(parts), k=2)).fit(x[:, ::-1])
    with pytest.raises(ValueError, match="Input X contains infinity"):
        found.predict(x + np.inf)
    with pytest.raises(TypeError, match=r"got the class: write Mixture\(\.\.\."):
        ours.MixtureModel(jaxem.Mixture).fit(x)


def test_regressions_regress_and_cluster():
    x = X[:, :1] - 50
    estimator = ours.MixtureModel(jaxem.Mixture(jaxem.Regression(), k=2), n_init=4, random_state=0)
    assert is_regressor(estimator) and not is_regressor(ours.MixtureModel())
    labels = estimator.fit_predict(x, Y)
    is_up = np.asarray(estimator.result_.params.components.coefficients)[:, 1] > 0
    apart = np.abs(Y) > 3
    assert (is_up[labels] == (SLOPE > 0))[apart].mean() > 0.95
    assert (estimator.predict_components(x, Y) == labels).all()
    mean = np.asarray(estimator.result_.predict_response(jaxem.Data(x)))
    close(estimator.predict(x), mean)
    close(estimator.score(x, Y), 1 - np.square(Y - mean).sum() / np.square(Y - Y.mean()).sum())
    scores = estimator.result_.score_samples(jaxem.Data(x, Y))
    close(estimator.log_likelihood(x, Y), scores)
    assert not hasattr(estimator, "predict_proba")
    with pytest.raises(ValueError, match="y is needed"):
        estimator.responsibilities(x)
