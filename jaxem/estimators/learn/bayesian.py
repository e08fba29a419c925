"""`BayesianGaussianMixture` with scikit-learn's arguments and attributes."""

import numpy as np

from jaxem.estimators.learn import support
from jaxem.estimators.learn.gaussian import checked_part, is_positive
from jaxem.estimators.learn.normals import (
    STRUCTURES,
    GaussianEstimator,
    precision_factors,
)
from jaxem.estimators.learn.steps import RidgedNormal
from jaxem.families.normal.normal import Normal
from jaxem.families.normal.wishart import NormalPosterior
from jaxem.models.bayesian import BayesianMixture, BayesianMixtureParams
from jaxem.protocol.priors import NormalWishartPrior

PRIORS_OF_WEIGHTS = {
    "dirichlet_process": "dirichlet_process",
    "dirichlet_distribution": "dirichlet",
}

POSITIVE = support.optional(support.number(0, above=True))


class BayesianGaussianMixture(GaussianEstimator):
    """A mixture of normals by variational Bayes, with the arguments, defaults and attributes of
    scikit-learn's `sklearn.mixture.BayesianGaussianMixture`, whose place it takes.

    From the same `random_state` it starts as theirs does and takes the same steps. Beyond theirs:
    `sample_weight`, `accelerator`, all `n_init` starts in one program, and a bound without any term
    dropped.

    Args:
      n_components: the most components, k.  covariance_type: "full", "tied", "diag" or "spherical".
      tol: the fit ends when the bound, in nats of all rows, changes by less than this in a step;
        with a ridge the M-step must gain less as well, since the bound may turn elsewhere.
      reg_covar: a ridge, in squared units of the data, that every step adds to the scatter of a
        component, times its count: such a step may lower the bound; 0: exact.
      max_iter, n_init, init_params, random_state, warm_start, verbose, verbose_interval,
        accelerator: as in `GaussianMixture`.
      weight_concentration_prior_type: "dirichlet_process" or "dirichlet_distribution".
      weight_concentration_prior: above 0; None: 1 / k.
      mean_precision_prior: above 0, in rows; None: 1.  mean_prior: (d,); None: the mean of X.
      degrees_of_freedom_prior: above d − 1; None: d.
      covariance_prior: (d, d), diag (d,), spherical a number; None: the covariance of X, with
        reg_covar on its diagonal where it is singular.

    Attributes after `fit`: those of `GaussianMixture`, with lower_bound_ the evidence lower bound
    of all rows in nats (theirs lacks its constants); weight_concentration_ (k,), of a process a
    pair of them; mean_precision_ (k,), degrees_of_freedom_ (k,), tied a number; and the priors with
    an underscore at the end. covariances_ are inverses of expected precisions.

    Source: Attias 2000; Blei & Jordan 2006.
    """

    _rules = {  # noqa: RUF012 - a constant
        "weight_concentration_prior_type": support.one_of(*PRIORS_OF_WEIGHTS),
        "weight_concentration_prior": POSITIVE,
        "mean_precision_prior": POSITIVE,
        "degrees_of_freedom_prior": POSITIVE,
    }

    def __init__(
        self,
        *,
        n_components=1,
        covariance_type="full",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init=1,
        init_params="kmeans",
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=None,
        mean_precision_prior=None,
        mean_prior=None,
        degrees_of_freedom_prior=None,
        covariance_prior=None,
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
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.accelerator = accelerator

    def _prepare(self, x, weights):
        d, kind = x.shape[1], self.covariance_type
        concentration, kappa = self.weight_concentration_prior, self.mean_precision_prior
        df, mean = self.degrees_of_freedom_prior, checked_part(self.mean_prior, "means", (d,))
        if df is not None and df <= d - 1:
            raise ValueError(
                f"The parameter 'degrees_of_freedom_prior' should be greater than {d - 1}, but got "
                f"{df:.3f}."
            )
        shape = {"full": (d, d), "tied": (d, d), "diag": (d,), "spherical": ()}[kind]
        scale = checked_part(self.covariance_prior, f"{kind} covariance_prior", shape)
        if scale is None:
            scale = self._covariance_of(x, weights)
        elif not is_positive(scale, kind):
            is_matrix = kind in ("full", "tied")
            words = "symmetric, positive-definite" if is_matrix else "positive"
            raise ValueError(f"'{kind} covariance_prior' should be {words}")
        self.weight_concentration_prior_ = (
            1 / self.n_components if concentration is None else concentration
        )
        self.mean_precision_prior_ = 1.0 if kappa is None else kappa
        self.mean_prior_ = np.average(x, 0, weights).astype(float) if mean is None else mean
        self.degrees_of_freedom_prior_ = d if df is None else df
        self.covariance_prior_ = scale if scale.ndim else float(scale)
        return {}

    def _covariance_of(self, x, weights):
        """The covariance of the rows in the shape of the prior's, unbiased as theirs."""
        x = np.asarray(x, float)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
        total, kind = w.sum(), self.covariance_type
        centred = x - w @ x / total
        divisor = total - 1 if total > 1 else total
        if kind in ("full", "tied"):
            found = (w[:, None] * centred).T @ centred / divisor
            eigenvalues = np.linalg.eigvalsh(found)
            floor = np.finfo(float).eps * len(found) * eigenvalues[-1]
            return found + self.reg_covar * np.eye(len(found)) * (eigenvalues[0] <= floor)
        found = w @ np.square(centred) / divisor
        found = found if kind == "diag" else found.mean()
        return found + self.reg_covar * (found <= 0)

    def _model(self):
        prior = NormalWishartPrior(
            self.mean_prior_,
            float(self.mean_precision_prior_),
            float(self.degrees_of_freedom_prior_),
            self.covariance_prior_,
        )
        structure = STRUCTURES[self.covariance_type]
        if self.reg_covar == 0:
            bank = Normal(structure, prior=prior)
        else:
            bank = RidgedNormal(structure, prior=prior, ridge=float(self.reg_covar))
        weights = PRIORS_OF_WEIGHTS[self.weight_concentration_prior_type]
        concentration = float(self.weight_concentration_prior_)
        return BayesianMixture(bank, self.n_components, weights, concentration)

    def _start(self, moments, given):
        count, means, covariance = moments
        k, kind = self.n_components, self.covariance_type
        kappa, prior = self.mean_precision_prior_, self.mean_prior_
        concentration = self.weight_concentration_prior_ + count
        if self.weight_concentration_prior_type == "dirichlet_process":
            later = np.cumsum(count[::-1])[::-1] - count
            concentration = 1.0 + count, self.weight_concentration_prior_ + later
        share, away = kappa * count / (kappa + count), means - prior
        df = self.degrees_of_freedom_prior_ + (count.sum() / k if kind == "tied" else count)
        if kind in ("full", "tied"):
            scatter = count[:, None, None] * covariance
            between = share[:, None, None] * away[:, :, None] * away[:, None, :]
            if kind == "tied":
                scatter, between = count.sum() * covariance / k, between.sum(0) / k
        elif kind == "diag":
            scatter = count[:, None] * covariance
            between = share[:, None] * np.square(away)
        else:
            scatter, between = count * covariance, share * np.square(away).mean(1)
        scale = self.covariance_prior_ + scatter + between
        df = np.asarray(df, float)
        covariance = scale / df.reshape(df.shape + (1,) * (scale.ndim - df.ndim))
        precision_factors(covariance, kind)  # raises where it is singular
        means = (kappa * prior + count[:, None] * means) / (kappa + count)[:, None]
        components = NormalPosterior(means, kappa + count, df, covariance)
        return BayesianMixtureParams(concentration, components)

    def _previous(self):
        df = self.degrees_of_freedom_
        components = NormalPosterior(self.means_, self.mean_precision_, df, self.covariances_)
        return BayesianMixtureParams(self.weight_concentration_, components)

    def _tolerance(self, x, weights):
        total = len(x) if weights is None else weights.sum(dtype=float)
        return self.tol / total

    def _store(self, result, dtype):
        params = result.params
        found = params.components
        self._store_covariances(found.covariance, dtype)
        concentration = params.concentration
        is_pair = isinstance(concentration, tuple)
        self.weight_concentration_ = (
            tuple(np.asarray(part, dtype) for part in concentration)
            if is_pair
            else np.asarray(concentration, dtype)
        )
        weights = np.asarray(params.weights, float)
        self.weights_ = (weights / weights.sum()).astype(dtype)
        self.means_ = np.asarray(found.mean, dtype)
        self.mean_precision_ = np.asarray(found.mean_precision, dtype)
        self.degrees_of_freedom_ = np.asarray(found.df, dtype)[()]
        self.lower_bound_ = float(result.objective)
