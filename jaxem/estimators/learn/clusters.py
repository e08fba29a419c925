"""`KMeans` with scikit-learn's arguments and attributes."""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.estimators.kmeans import Centres, Lloyd, LloydMemory, assign
from jaxem.estimators.learn import support
from jaxem.estimators.learn.normals import stacked
from jaxem.numerics.tree import pytree

STARTS_OF_RANDOM_INIT = 10
"""n_init="auto" where starts are not by k-means++."""

RULES = {
    "n_clusters": support.integer(1),
    "max_iter": support.integer(1),
    "tol": support.number(),
    "verbose": support.VERBOSE,
    "copy_x": support.BOOLEAN,
    "algorithm": support.one_of("lloyd", "elkan"),
}


class ShiftMemory(NamedTuple):
    """labels (n,): as in `LloydMemory`. shift: the squared length of the last step of all centres.
    limit: the shift with which a climb ends."""

    labels: Any
    shift: Any
    limit: Any


@pytree
class LloydWithin(Lloyd):
    """`Lloyd` that also ends after a step shorter than tol, scikit-learn's rule: the squared length
    is at most tol times the mean variance of the features."""

    tol: Any = 0.0

    def start(self, model, params, x, weights):
        labels = super().start(model, params, x, weights).labels
        share = (weights / weights.sum())[:, None]
        variance = (share * jnp.square(x - (share * x).sum(0))).sum(0).mean()
        return ShiftMemory(labels, jnp.asarray(jnp.inf, x.dtype), self.tol * variance)

    def evaluate(self, model, params, x, weights, memory=()):
        """The step of `Lloyd`."""
        memory = memory or self.start(model, params, x, weights)
        found = super().evaluate(model, params, x, weights, LloydMemory(memory.labels))
        shift = jnp.square(found.proposal - params).sum()
        gain = jnp.where(memory.shift <= memory.limit, 0, found.signal.gain)
        return found._replace(
            memory=ShiftMemory(found.memory.labels, shift, memory.limit),
            signal=found.signal._replace(gain=gain),
        )


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means by Lloyd's algorithm, with the arguments, defaults and attributes of scikit-learn's
    `sklearn.cluster.KMeans`, whose place it takes. All starts run at once, in one program.

    Args:
      n_clusters: k, an int of 1 or more.
      init: "k-means++", "random", an array (k, d), or a function init(X, k, random_state=...).
      n_init: the number of starts; "auto": 1 for "k-means++" and an array, else 10.
      max_iter: the most steps.
      tol: a fit ends when no row changes its centre, or when the squared length of a step of all
        centres is at most tol times the mean variance of the features.
      random_state: an int, a `RandomState` or None.
      verbose: above 0 a line is printed after a fit.  copy_x, algorithm: without effect; the
        algorithm is Lloyd's, whose answers are those of Elkan's, and X is never changed.

    Data: (n, d), dense or sparse; sparse data are made dense. `sample_weight` (n,), of 0 or more.

    Attributes after `fit`: cluster_centers_ (k, d), labels_ (n,), inertia_ (Σ w·squared distance to
    the centre of the row), n_iter_, n_features_in_, feature_names_in_.

    One ConvergenceWarning where fewer than k distinct rows are left. Sources: Lloyd 1982; Arthur &
    Vassilvitskii 2007.
    """

    def __init__(
        self,
        n_clusters=8,
        *,
        init="k-means++",
        n_init="auto",
        max_iter=300,
        tol=1e-4,
        verbose=0,
        random_state=None,
        copy_x=True,
        algorithm="lloyd",
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm

    def fit(self, X, y=None, sample_weight=None):
        """The best of all starts. X: (n, d). y: ignored. sample_weight: (n,), or None for 1.

        Returns self. ValueError or TypeError for arguments or data that cannot be used.
        """
        support.require(self, RULES)
        many = self._starts()
        x = self._data(X, reset=True)
        k = self.n_clusters
        if len(x) < k:
            raise ValueError(f"n_samples={len(x)} should be >= n_clusters={k}.")
        weights = support.checked_weights(sample_weight, x)
        random_state = check_random_state(self.random_state)
        starts = [self._start(x, weights, random_state) for _ in range(many)]
        result, _ = support.fitted(
            Centres(k),
            x,
            weights,
            init=stacked(starts) if many > 1 else starts[0],
            restarts=many,
            method=LloydWithin(tol=float(self.tol)),
            max_iter=self.max_iter,
            criterion="change",
        )
        self.cluster_centers_ = np.asarray(result.params, x.dtype)
        self.n_iter_ = max(int(result.n_iter), 1)
        self.labels_ = self._labels(x)
        self.inertia_ = self._inertia(x, weights, self.labels_)
        self._n_features_out = k
        distinct = len(np.unique(self.labels_))
        if distinct < k:
            warnings.warn(
                f"Number of distinct clusters ({distinct}) found smaller than n_clusters ({k}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.verbose:
            print(f"KMeans: {self.n_iter_} iterations, {self.inertia_=:.6g}")
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """`fit`, then labels_ (n,)."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def predict(self, X):
        """The index of the nearest centre of every row of X (n, d): int32 (n,)."""
        check_is_fitted(self)
        return self._labels(self._data(X, reset=False))

    def transform(self, X):
        """The distances of all rows from all centres, (n, k), in the units of X."""
        check_is_fitted(self)
        return euclidean_distances(self._data(X, reset=False), self.cluster_centers_)

    def fit_transform(self, X, y=None, sample_weight=None):
        """`fit`, then `transform` of X."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X, y=None, sample_weight=None):
        """−Σ w·squared distance of a row of X to its nearest centre. y: ignored.

        Raises ValueError for weights or data of another shape."""
        check_is_fitted(self)
        x = self._data(X, reset=False)
        return -self._inertia(x, support.checked_weights(sample_weight, x), self._labels(x))

    def _starts(self) -> int:
        """The number of starts; ValueError where init or n_init cannot be used."""
        is_named = isinstance(self.init, str)
        if is_named and self.init not in ("k-means++", "random"):
            raise ValueError(
                'init of KMeans must be "k-means++", "random", an array (k, d) or a function, got '
                f"{self.init!r}"
            )
        is_array = not is_named and not callable(self.init)
        is_auto = isinstance(self.n_init, str) and self.n_init == "auto"
        if not is_auto and not support.integer(1).accepts(self.n_init):
            raise ValueError(
                f'n_init of KMeans must be "auto" or an int of 1 or more, got {self.n_init!r}'
            )
        if is_array and not is_auto and self.n_init > 1:
            warnings.warn(
                "Explicit initial center position passed: performing only one init in KMeans "
                f"instead of n_init={self.n_init}.",
                RuntimeWarning,
                stacklevel=3,
            )
        if is_array:
            return 1
        if not is_auto:
            return self.n_init
        return 1 if is_named and self.init == "k-means++" else STARTS_OF_RANDOM_INIT

    def _start(self, x, weights, random_state):
        """Centres (k, d) to start from."""
        k, shape = self.n_clusters, (self.n_clusters, x.shape[1])
        if isinstance(self.init, str) and self.init == "k-means++":
            options = {"sample_weight": weights, "random_state": random_state}
            return kmeans_plusplus(x, k, **options)[0]
        if isinstance(self.init, str):
            share = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
            if (share > 0).sum() < k:
                raise ValueError(f"sample_weight is above 0 in fewer rows than n_clusters={k}")
            return x[random_state.choice(len(x), size=k, replace=False, p=share)]
        given = self.init(x, k, random_state=random_state) if callable(self.init) else self.init
        centres = check_array(given, dtype=x.dtype)
        if centres.shape != shape:
            raise ValueError(
                f"The shape of the initial centers {centres.shape} does not match the number of "
                f"clusters and features {shape}."
            )
        return centres

    def _data(self, X, reset):
        """X as a dense array in float32 or float64."""
        options = {"accept_sparse": "csr", "dtype": [np.float64, np.float32]}
        x = validate_data(self, X, reset=reset, order="C", **options)
        return x.toarray() if sparse.issparse(x) else x

    def _labels(self, x):
        centres = np.asarray(self.cluster_centers_, x.dtype)
        return support.by_rows(_labels, Centres(len(centres)), centres, x).astype(np.int32)

    def _inertia(self, x, weights, labels) -> float:
        squares = np.square(np.asarray(x, float) - self.cluster_centers_[labels]).sum(1)
        return float(squares.sum() if weights is None else squares @ weights)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _labels(model, centres, x):
    return assign(x, centres).labels
