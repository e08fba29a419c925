"""`MixtureModel`: any mixture of jaxem as a scikit-learn estimator."""

import dataclasses
import math
import warnings

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import r2_score
from sklearn.utils import RegressorTags, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.data.data import Data
from jaxem.estimators.learn import support
from jaxem.families.normal.normal import Normal
from jaxem.fit import require_model
from jaxem.methods.em import EM
from jaxem.models.mixture import FiniteMixture, Mixture
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.status import FitWarning, Status
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopt import adopt

RULES = {
    "n_init": support.integer(1),
    "tol": support.optional(support.number()),
    "max_iter": support.integer(0),
    "criterion": support.one_of("aitken", "change"),
}

NESTED = "model"
"""The argument whose fields are arguments as well, such as model__k."""


def _is_density(estimator) -> bool:
    return not estimator._is_regression()


class MixtureModel(BaseEstimator):
    """A mixture of jaxem as a scikit-learn estimator: a density and a clusterer, or a regressor.

    Args:
      model: a mixture, such as `jaxem.Mixture(jaxem.Poisson(), k=3)`, or another model with a
        finite latent variable. None: one normal. Its fields are arguments too, as in
        `set_params(model__k=4)` or a grid with "model__components__covariance".
      n_init: the number of starts, which run at once; the best is kept.
      init: as in `jaxem.fit`: None, a rule such as "random", or params.
      method: as in `jaxem.fit`: None for `jaxem.EM()`.
      tol, max_iter, criterion: as in `jaxem.fit`; tol in nats per row.
      random_state: an int, a `RandomState` or None.

    Where the components are regressions, the estimator is a regressor: `fit` needs y, `predict(X)`
    is the mean of the response and `score` its R². `predict_components(X, y)`,
    `responsibilities(X, y)` and `log_likelihood(X, y)` are those of the rows with their responses,
    so that it is a clusterer as well. Else y is ignored, and `predict` gives components.

    Attributes after `fit`: result_, the `jaxem.Result` (its params, status, criteria); converged_,
    n_iter_, n_features_in_, feature_names_in_.

    Computed in the precision of X: float64 with x64 on in the call alone, or float32. One
    ConvergenceWarning where the fit did not converge.
    """

    def __init__(
        self,
        model=None,
        *,
        n_init=1,
        init=None,
        method=None,
        tol=None,
        max_iter=2000,
        criterion="aitken",
        random_state=None,
    ):
        self.model = model
        self.n_init = n_init
        self.init = init
        self.method = method
        self.tol = tol
        self.max_iter = max_iter
        self.criterion = criterion
        self.random_state = random_state

    def fit(self, X, y=None, sample_weight=None):
        """Fits the model. X: (n, d), finite, or NaN where the model takes missing cells; y: (n,),
        the responses of regressions, else ignored; sample_weight: (n,), one weight of 0 or more a
        row. Returns self.

        Raises ValueError or TypeError for arguments or data that cannot be used.
        """
        support.require(self, RULES)
        require_model(self._model())
        model = adopt(self._model())
        options = {"dtype": [np.float64, np.float32], "ensure_min_samples": 2}
        if self._is_regression():
            x, y = validate_data(self, X, y, y_numeric=True, **options)
            data = Data(x, np.asarray(y, x.dtype))
        else:
            x = data = self._validated(model, X, **options)
        weights = support.checked_weights(sample_weight, x)
        random_state = check_random_state(self.random_state)
        model.domain.check(data, name_of(model))
        if len(x) < model.domain.fewest:
            raise ValueError(
                f"data have {len(x)} rows and the model {model.domain.components} components: use "
                f"k <= {len(x)}"
            )
        result, texts = support.fitted(
            model,
            data,
            weights,
            key=int(random_state.randint(2**31 - 1)),
            init=self.init,
            restarts=self.n_init,
            method=EM() if self.method is None else self.method,
            tol=self.tol,
            max_iter=self.max_iter,
            criterion=self.criterion,
        )
        shape = jax.tree.leaves(data)[0].shape  # without the rows that were padded
        names = vars(self).get("feature_names_in_")
        names = None if names is None else [str(name) for name in names]
        self.result_ = dataclasses.replace(result, data_shape=shape).about(data, weights, names)
        self.converged_ = bool(result.converged)
        self.n_iter_ = int(result.n_iter)
        support.warn_unless_converged(result)
        for text in texts if result.status == Status.CONVERGED else []:
            warnings.warn(text, FitWarning, stacklevel=2)
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """`fit`, then `predict_components(X, y)`, (n,)."""
        return self.fit(X, y, sample_weight).predict_components(X, y)

    def predict(self, X):
        """The most probable component of every row of X, (n,), −1 outside the support of the model;
        of regressions the mean of the response, (n,)."""
        if not self._is_regression():
            return self.predict_components(X)
        data = Data(self._rows(X))
        return support.in_blocks(self.result_.predict_response, data)

    def predict_components(self, X, y=None):
        """The most probable component of every row, (n,); −1 outside the support of the model.
        Regressions need y (n,), the responses of the rows."""
        data = self._given(X, y)
        return support.in_blocks(self.result_.predict, data)

    def responsibilities(self, X, y=None):
        """p(component | row), (n, k); a row is NaN outside the support. Regressions need y."""
        data = self._given(X, y)
        return support.in_blocks(self.result_.predict_proba, data)

    def log_likelihood(self, X, y=None):
        """log p(row) in nats, (n,); of regressions log p(y | x), which need y."""
        data = self._given(X, y)
        return support.in_blocks(self.result_.score_samples, data)

    @available_if(_is_density)
    def predict_proba(self, X):
        """`responsibilities`, (n, k). Regressions do not have it."""
        return self.responsibilities(X)

    @available_if(_is_density)
    def score_samples(self, X):
        """`log_likelihood`, (n,). Regressions do not have it."""
        return self.log_likelihood(X)

    def score(self, X, y=None, sample_weight=None):
        """The weighted mean of `log_likelihood` in nats; of regressions R² of `predict(X)`."""
        if self._is_regression():
            return r2_score(y, self.predict(X), sample_weight=sample_weight)
        scores = self.log_likelihood(X).astype(float)
        return float(np.average(scores, weights=sample_weight))

    def bic(self, X, y=None):
        """−2·log-likelihood + parameters·log n of X (n, d), in nats; lower is better."""
        scores = self.log_likelihood(X, y).astype(float)
        return float(-2 * scores.sum() + self.result_.n_parameters * math.log(len(scores)))

    def aic(self, X, y=None):
        """−2·log-likelihood + 2·parameters of X (n, d), in nats; lower is better."""
        scores = self.log_likelihood(X, y).astype(float)
        return float(-2 * scores.sum() + 2 * self.result_.n_parameters)

    def sample(self, n_samples=1):
        """n_samples draws of the fitted model, (n_samples, d). Raises NotImplementedError where the
        model cannot be drawn from."""
        check_is_fitted(self)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        return np.asarray(self.result_.sample(int(seed), n_samples))

    def get_params(self, deep=True):
        """The arguments; with `deep` the fields of the model as well, by names such as model__k."""
        params = super().get_params(deep=False)
        return params | (nested(self.model, NESTED) if deep else {})

    def set_params(self, **params):
        """Sets arguments, and fields of the model by names such as model__components__covariance.
        Returns self. ValueError for other names."""
        plain = {name: value for name, value in params.items() if "__" not in name}
        super().set_params(**plain)
        deep = params.keys() - plain.keys()
        for name in sorted(deep, key=lambda name: (name.count("__"), name)):  # outer ones first
            known = nested(self.model, NESTED)
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator MixtureModel. Valid parameters are: "
                    f"{sorted([*super().get_params(deep=False), *known])}."
                )
            path = name.split("__")[1:]
            self.model = replaced(self.model, path, params[name])
        return self

    def _model(self):
        return Mixture(Normal(), 1) if self.model is None else self.model

    def _is_regression(self) -> bool:
        model = self._model()
        wraps = isinstance(model, Wrapper) and not isinstance(model, Bank)
        model = model.wrapped if wraps else model
        return isinstance(model, FiniteMixture) and "y" in (model.bank.domain.takes or ())

    def _rows(self, X):
        """X, checked, in the precision of the fit."""
        check_is_fitted(self)
        dtype = jax.tree.leaves(self.result_.params)[0].dtype
        if self._is_regression():
            return validate_data(self, X, reset=False, dtype=dtype)
        return self._validated(self.result_.model, X, reset=False, dtype=dtype)

    def _validated(self, model, X, **options):
        """X (n, d), checked as by scikit-learn, but for NaN where the model takes missing cells."""
        x = validate_data(self, X, ensure_all_finite="allow-nan", **options)
        is_missing = np.isnan(x)
        if is_missing.any() and not np.asarray(model.domain.valid(x))[is_missing].all():
            validate_data(self, X, **options)  # its message
        return x

    def _given(self, X, y):
        """The data of the model. ValueError where regressions lack y, or it has another shape."""
        x = self._rows(X)
        if not self._is_regression():
            return x
        if y is None:
            raise ValueError(
                "y is needed: the components of regressions depend on the response; for the mean "
                "of the response use predict(X)"
            )
        y = np.asarray(y, x.dtype)
        if y.shape != (len(x),):
            raise ValueError(f"y must have shape {(len(x),)}, got {y.shape}: one response a row")
        return Data(x, y)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = "density_estimator"
        if self._is_regression():
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
            tags.target_tags.required = True
        return tags


def nested(value, name: str) -> dict:
    """The fields of a dataclass of jaxem, by names that start with `name` and two underscores, and
    those of its fields."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    found = {}
    for field in dataclasses.fields(value):
        if field.init and field.repr:
            inner = vars(value)[field.name]
            found |= {f"{name}__{field.name}": inner} | nested(inner, f"{name}__{field.name}")
    return found


def replaced(value, path: list, new):
    """A dataclass with the field at the end of a path of names replaced."""
    first, *rest = path
    inner = replaced(vars(value)[first], rest, new) if rest else new
    return dataclasses.replace(value, **{first: inner})
