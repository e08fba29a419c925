"""The base of the two Gaussian estimators, and NumPy functions of covariances in four structures.

Starts are those of scikit-learn: from the same `random_state` the same responsibilities. They are
computed on the host, where few rows need no compiled program.

Shapes of covariances and precisions: full (k, d, d), tied (d, d), diag (k, d), spherical (k,).
"""

import jax
import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.estimators.learn import support
from jaxem.estimators.learn.steps import ByChange, RidgedNormal
from jaxem.families.normal.normal import Normal
from jaxem.methods.em import EM

STRUCTURES = {"full": "full", "tied": "tied", "diag": "diagonal", "spherical": "spherical"}
"""scikit-learn's names of covariance structures, and those of `Normal`."""

SINGULAR = (
    "Fitting the mixture model failed because some components have ill-defined empirical "
    "covariance (for instance caused by singleton or collapsed samples). Try to decrease the "
    "number of components, increase reg_covar, or scale the input data."
)

GIVEN_PARTS = 3
"""The parts of a start of a `GaussianMixture`: weights, means and precisions."""

RULES = {
    "n_components": support.integer(1),
    "covariance_type": support.one_of(*STRUCTURES),
    "tol": support.number(),
    "reg_covar": support.number(),
    "max_iter": support.integer(0),
    "n_init": support.integer(1),
    "init_params": support.one_of("kmeans", "k-means++", "random", "random_from_data"),
    "warm_start": support.BOOLEAN,
    "verbose": support.VERBOSE,
    "verbose_interval": support.integer(1),
}


def moments(x, resp, weights, reg_covar, kind):
    """The M-step of scikit-learn: counts (k,), means (k, d) and covariances with the ridge, in
    float64; resp (n, k): responsibilities times weights (n,), which may be None for 1."""
    x, resp = np.asarray(x, float), np.asarray(resp, float)
    count = resp.sum(0) + 10 * np.finfo(float).eps
    means = resp.T @ x / count[:, None]
    d = x.shape[1]
    if kind == "tied":
        # As theirs, from all rows: those of a start by few rows have no component.
        weighted = x if weights is None else weights[:, None] * x
        second = weighted.T @ x - (count * means.T) @ means
        return count, means, second / count.sum() + reg_covar * np.eye(d)
    if kind == "full":
        centred = (x - mean for mean in means)
        second = [(r[:, None] * c).T @ c for r, c in zip(resp.T, centred, strict=True)]
        return count, means, np.stack(second) / count[:, None, None] + reg_covar * np.eye(d)
    second = np.stack([r @ np.square(x - m) for r, m in zip(resp.T, means, strict=True)])
    variances = second / count[:, None] + reg_covar
    return count, means, variances.mean(1) if kind == "spherical" else variances


def precision_factors(covariance, kind):
    """U of every precision U Uᵀ, upper triangular, or the inverse standard deviations; ValueError
    where a covariance is not positive definite."""
    covariance = np.asarray(covariance, float)
    if kind in ("diag", "spherical"):
        if not np.all(covariance > 0):
            raise ValueError(SINGULAR)
        return 1 / np.sqrt(covariance)
    try:
        return np.linalg.inv(np.linalg.cholesky(covariance)).swapaxes(-1, -2)
    except np.linalg.LinAlgError as error:
        raise ValueError(SINGULAR) from error


def of_factors(factors, kind):
    """The precisions with these factors."""
    return factors**2 if kind in ("diag", "spherical") else factors @ factors.swapaxes(-1, -2)


def shape_of(kind, k, d):
    """The shape of covariances."""
    return {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]


class GaussianEstimator(DensityMixin, BaseEstimator):
    """A mixture of normals as a scikit-learn estimator.

    A subclass has `_rules`, `Rule`s of its own arguments; `_prepare(x, weights)`, which checks the
    others and returns what is given of the start, as a dict; `_model()`; `_start(moments, given)`,
    params as a tree of NumPy arrays in float64, from the `moments` of a start, None where all is
    given; `_previous()`, the params of its attributes; and `_store(result, dtype)`, which sets the
    attributes.
    """

    _is_late = False
    """Whether the change of the bound is measured before the M-step."""

    def fit(self, X, y=None, sample_weight=None):
        """Fits the mixture by EM from `n_init` starts, which run at once, and keeps the best.

        X: (n, d), finite. y: ignored. sample_weight: (n,), one weight of 0 or more a row: 0 = row
        absent, 2 = row present twice. Returns self. Raises ValueError or TypeError for arguments or
        data that cannot be used. One ConvergenceWarning where the fit did not converge.
        """
        support.require(self, RULES | self._rules)
        x = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        k = self.n_components
        if x.shape[0] < k:
            raise ValueError(
                "Expected n_samples >= n_components "
                f"but got n_components = {k}, n_samples = {x.shape[0]}"
            )
        weights = support.checked_weights(sample_weight, x)
        given = self._prepare(x, weights)
        if self.accelerator is not None and self.reg_covar:
            raise ValueError(
                f"accelerator={self.accelerator!r} needs reg_covar=0, got {self.reg_covar}: with a "
                "ridge no step is known to raise the likelihood"
            )
        is_warm = self.warm_start and hasattr(self, "converged_")
        many = 1 if is_warm else self.n_init
        random_state = check_random_state(self.random_state)
        starts = [
            self._previous() if is_warm else self._begin(x, weights, random_state, given)
            for _ in range(many)
        ]
        result, _ = support.fitted(
            self._model(),
            x,
            weights,
            init=stacked(starts) if many > 1 else starts[0],
            restarts=many,
            tol=self._tolerance(x, weights),
            max_iter=self.max_iter,
            **self._method(),
        )
        self._store(result, x.dtype)
        self.converged_ = bool(result.converged)
        self.n_iter_ = int(result.n_iter)
        if self.verbose:
            print(f"{type(self).__name__}: {self.n_iter_} iterations, {self.lower_bound_=:.6g}")
        support.warn_unless_converged(result)
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """`fit`, then the most probable component of every row (n,)."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X):
        """The most probable component of every row of X (n, d): integers (n,)."""
        return np.argmax(self._log_joint(X), axis=1)

    def predict_proba(self, X):
        """p(component | row), (n, k), every row summing to 1."""
        joint = self._log_joint(X)
        shares = np.exp(joint - joint.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def score_samples(self, X):
        """log p(row) in nats, (n,)."""
        joint = self._log_joint(X)
        top = joint.max(1)
        return top + np.log(np.exp(joint - top[:, None]).sum(1))

    def score(self, X, y=None):
        """The mean of `score_samples` over the rows of X, in nats. y: ignored."""
        return float(self.score_samples(X).mean(dtype=float))

    def sample(self, n_samples=1):
        """(X (n_samples, d), components (n_samples,)): draws with the fitted weights, means and
        covariances, ordered by component. ValueError where n_samples is no int of 1 or more."""
        check_is_fitted(self)
        if not support.integer(1).accepts(n_samples):
            raise ValueError(
                f"Invalid value for 'n_samples': {n_samples}. The sampling requires at least one "
                "sample."
            )
        rng, (k, d) = check_random_state(self.random_state), self.means_.shape
        shares = np.asarray(self.weights_, float)
        counts = rng.multinomial(n_samples, shares / shares.sum())
        covariance = np.asarray(self.covariances_, float)
        if self.covariance_type == "tied":
            covariance = np.broadcast_to(covariance, (k, d, d))
        draws = []
        for mean, c, n in zip(self.means_, covariance, counts, strict=True):
            if c.ndim == 2:
                draws.append(rng.multivariate_normal(mean, c, int(n)))
            else:
                draws.append(mean + rng.standard_normal(size=(n, d)) * np.sqrt(c))
        return np.vstack(draws), np.repeat(np.arange(k), counts)

    def _log_joint(self, X):
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return support.log_joint(self._model(), self._previous(), x)

    def _normal(self):
        """The bank of components, with the ridge where there is one."""
        structure = STRUCTURES[self.covariance_type]
        if self.reg_covar == 0:
            return Normal(structure)
        return RidgedNormal(structure, ridge=float(self.reg_covar))

    def _method(self):
        """Options of `fit`."""
        if self.accelerator is not None:
            return {"method": EM(accelerator=self.accelerator), "criterion": "aitken"}
        method = ByChange(is_late=self._is_late, is_ascent=self.reg_covar == 0)
        return {"method": method, "criterion": "change"}

    def _begin(self, x, weights, random_state, given):
        """Params to start from."""
        if len(given) == GIVEN_PARTS:
            return self._start(None, given)
        resp = self._responsibilities(x, weights, random_state)
        found = moments(x, resp, weights, self.reg_covar, self.covariance_type)
        return self._start(found, given)

    def _tolerance(self, x, weights):
        """tol in nats per unit of weight."""
        return self.tol

    def _responsibilities(self, x, weights, random_state):
        """Those of scikit-learn for `init_params`, (n, k), times the weights of the rows."""
        n, k = len(x), self.n_components
        resp = np.zeros((n, k))
        if self.init_params == "kmeans":
            rule = KMeans(n_clusters=k, n_init=1, random_state=random_state)
            resp[np.arange(n), rule.fit(x, sample_weight=weights).labels_] = 1
        elif self.init_params == "random":
            resp = random_state.uniform(size=(n, k))
            resp /= resp.sum(1, keepdims=True)
        elif self.init_params == "random_from_data":
            share = None if weights is None else weights / weights.sum(dtype=float)
            if share is not None and (share > 0).sum() < k:
                raise ValueError(f"sample_weight is above 0 in fewer rows than n_components={k}")
            resp[random_state.choice(n, size=k, replace=False, p=share), np.arange(k)] = 1
        else:
            options = {"random_state": random_state, "sample_weight": weights}
            resp[kmeans_plusplus(x, k, **options)[1], np.arange(k)] = 1
        return resp if weights is None else resp * weights[:, None]

    def _store_covariances(self, covariance, dtype):
        factors = precision_factors(covariance, self.covariance_type)
        self.covariances_ = np.asarray(covariance, dtype)
        self.precisions_cholesky_ = factors.astype(dtype)
        self.precisions_ = of_factors(factors, self.covariance_type).astype(dtype)


def stacked(starts):
    """A list of equal trees as one, whose leaves have a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
