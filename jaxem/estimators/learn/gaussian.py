"""`GaussianMixture` with scikit-learn's arguments and attributes."""

import math

import numpy as np
from sklearn.utils import check_array

from jaxem.estimators.learn.normals import (
    GaussianEstimator,
    precision_factors,
    shape_of,
)
from jaxem.families.normal.gaussian import NormalParams
from jaxem.models.mixing import MixtureParams
from jaxem.models.mixture import Mixture


class GaussianMixture(GaussianEstimator):
    """A mixture of normals by EM, with the arguments, defaults and attributes of scikit-learn's
    `sklearn.mixture.GaussianMixture`, whose place it takes.

    From the same `random_state` it starts as theirs does, takes the same steps and stops by the
    same rule. Where a ridge makes the likelihood fall after a rise, theirs ends and this goes on.
    Beyond theirs: `sample_weight`, `accelerator`, all `n_init` starts in one program.

    Args:
      n_components: k, an int of 1 or more.
      covariance_type: "full", "tied", "diag" or "spherical".
      tol: the fit ends when the mean log-likelihood of a row, in nats, changes by less than this in
        a step. With an accelerator: when the estimate of the gain that remains is below it.
      reg_covar: a ridge, in squared units of the data, that every M-step adds to the diagonal of
        the covariances. Such steps may lower the likelihood, and do not end at a maximum of any
        objective; 0: exact maximum likelihood.
      max_iter: the most EM steps.  n_init: the number of starts.
      init_params: "kmeans", "k-means++", "random" or "random_from_data".
      weights_init (k,), means_init (k, d), precisions_init (of the shape of covariances): parts of
        the start, or None.
      random_state: an int, a `RandomState` or None, of the starts and of `sample`.
      warm_start: whether `fit` continues from the last fit.
      verbose: above 0 a line is printed after a fit.  verbose_interval: unused.
      accelerator: None; or "auto", `jaxem.SQUAREM()` or `jaxem.Anderson()`, with reg_covar=0.

    Attributes after `fit`: weights_ (k,), means_ (k, d), covariances_, precisions_ and
    precisions_cholesky_ (full (k, d, d), tied (d, d), diag (k, d), spherical (k,)), converged_,
    n_iter_, n_features_in_, feature_names_in_; lower_bound_, the mean log-likelihood of a row AT
    these params (theirs is that before the last M-step).

    Computed in the precision of X: float64 with x64 on in this call alone, or float32.
    Source: Dempster, Laird & Rubin 1977.
    """

    _is_late = True
    _rules = {}  # noqa: RUF012 - those of the base are all

    def __init__(
        self,
        n_components=1,
        *,
        covariance_type="full",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init=1,
        init_params="kmeans",
        weights_init=None,
        means_init=None,
        precisions_init=None,
        random_state=None,
        warm_start=False,
        verbose=0,
        verbose_interval=10,
        accelerator=None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.accelerator = accelerator

    def bic(self, X):
        """−2·log-likelihood + parameters·log n of X (n, d), in nats; lower is better."""
        return -2 * self.score(X) * len(X) + self._n_parameters() * math.log(len(X))

    def aic(self, X):
        """−2·log-likelihood + 2·parameters of X (n, d), in nats; lower is better."""
        return -2 * self.score(X) * len(X) + 2 * self._n_parameters()

    def _n_parameters(self):
        k, d = self.means_.shape
        of_structure = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2}
        of_structure |= {"diag": k * d, "spherical": k}
        return of_structure[self.covariance_type] + k * d + k - 1

    def _prepare(self, x, weights):
        k, d, kind = self.n_components, x.shape[1], self.covariance_type
        given = {
            "weights": checked_part(self.weights_init, "weights", (k,)),
            "means": checked_part(self.means_init, "means", (k, d)),
            "precisions": checked_part(self.precisions_init, "precisions", shape_of(kind, k, d)),
        }
        weights, precisions = given["weights"], given["precisions"]
        if weights is not None and ((weights < 0) | (weights > 1)).any():
            raise ValueError(
                "The parameter 'weights' should be in the range [0, 1], but got max value "
                f"{weights.max():.5f}, min value {weights.min():.5f}"
            )
        if weights is not None and abs(1 - weights.sum()) > OFF_ONE:
            raise ValueError(
                "The parameter 'weights' should be normalized, but got sum(weights) = "
                f"{weights.sum():.5f}"
            )
        if precisions is not None and not is_positive(precisions, kind):
            is_matrix = kind in ("full", "tied")
            words = "symmetric, positive-definite" if is_matrix else "positive"
            raise ValueError(f"'{kind} precision' should be {words}")
        return {name: value for name, value in given.items() if value is not None}

    def _model(self):
        return Mixture(self._normal(), self.n_components)

    def _start(self, moments, given):
        count, means, covariance = (None,) * 3 if moments is None else moments
        if "precisions" in given:
            p = given["precisions"]
            covariance = np.linalg.inv(p) if self.covariance_type in ("full", "tied") else 1 / p
        else:
            precision_factors(covariance, self.covariance_type)  # raises where it is singular
        weights = given["weights"] if "weights" in given else count / count.sum()
        return MixtureParams(weights, NormalParams(given.get("means", means), covariance))

    def _previous(self):
        normal = NormalParams(self.means_, self.covariances_)
        return MixtureParams(self.weights_, normal)

    def _store(self, result, dtype):
        params = result.params
        self._store_covariances(params.components.covariance, dtype)
        self.weights_ = np.asarray(params.weights, dtype)
        self.means_ = np.asarray(params.components.mean, dtype)
        self.lower_bound_ = float(result.log_likelihood) / float(result.total_weight)


OFF_ONE = 1e-6
"""How far from 1 the sum of given weights may be."""


def checked_part(value, name, shape):
    """A given array in float64, None for None; ValueError where its shape is another one."""
    if value is None:
        return None
    value = check_array(value, dtype=np.float64, ensure_2d=False, allow_nd=True)
    if value.shape != shape:
        raise ValueError(
            f"The parameter '{name}' should have the shape of {shape}, but got {value.shape}"
        )
    return value


def is_positive(precisions, kind) -> bool:
    """Whether precisions are symmetric and positive definite, or above 0."""
    if kind in ("diag", "spherical"):
        return bool((precisions > 0).all())
    symmetric = np.allclose(precisions, precisions.swapaxes(-1, -2))
    return symmetric and bool((np.linalg.eigvalsh(precisions) > 0).all())
