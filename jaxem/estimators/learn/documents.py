"""`LatentDirichletAllocation` with scikit-learn's arguments and attributes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.special import digamma
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from jaxem.data.documents import Documents
from jaxem.estimators.learn import support
from jaxem.models.lda.domain import DocumentsDomain
from jaxem.models.lda.lda import LDA, LDALocal, LDAParams
from jaxem.models.lda.posterior import LDAPosterior, converged_gamma
from jaxem.numerics import tuning
from jaxem.numerics.tree import pytree
from jaxem.passes.collect import Prepared, unprepared

INITIAL_SHAPE = 100.0
"""Entries of components_ start as draws from gamma(shape 100, mean 1), as theirs."""

RULES = {
    "n_components": support.integer(1),
    "doc_topic_prior": support.optional(support.number(0, above=True)),
    "topic_word_prior": support.optional(support.number(0, above=True)),
    "learning_method": support.one_of("batch", "online"),
    "learning_decay": support.number(),
    "learning_offset": support.number(1),
    "max_iter": support.integer(0),
    "batch_size": support.integer(1),
    "total_samples": support.number(0, above=True),
    "perp_tol": support.number(),
    "mean_change_tol": support.number(),
    "max_doc_update_iter": support.integer(1),
    "verbose": support.VERBOSE,
}


class AmountsDomain(DocumentsDomain):
    """`Documents` whose counts are any numbers of 0 or more, such as tf-idf."""

    def whole(self, counts):
        return (counts >= 0) & (counts < np.inf)


@pytree(static=("topics", "inference"))
class AmountsLDA(LDA):
    """`LDA` of amounts of words that need not be whole, with scikit-learn's E-step in a fit: from a
    cold start in every pass, at most `most` steps until the mean change of γ is below `tol`. A
    document keeps the γ of the pass before where F is lower at the new one."""

    tol: Any = 1e-3
    most: Any = 100

    domain = AmountsDomain("amounts of words within the vocabulary, of 0 or more")

    def improve_q(self, params, x, q, weights):
        units = x.units if isinstance(x, Prepared) else self.arranged(x)
        x = unprepared(x)
        given = (weights, q.gamma, q.steps > 0, self.tol, self.most)
        gamma, statistics, value = self.improved(params, x, units, *given)
        return LDALocal(gamma, q.steps + 1), statistics, value


class Expected(NamedTuple):
    """gamma (n, k); evidence (n,), F of every document; counts (k, v): Σ w·amounts·φ."""

    gamma: Any
    evidence: Any
    counts: Any


@jax.jit
def _expected(model, params, x, weights, tol, most):
    cold = model.cold(params, x)
    gamma = converged_gamma(model.table(params, x), cold, jnp.full(len(x), tol, cold.dtype), most)
    q = LDAPosterior(gamma)
    counts = model.statistics(params, x, q, weights).topics
    return Expected(gamma, model.free_energy(params, x, q), counts)


class LatentDirichletAllocation(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Topics by variational Bayes, with the arguments, defaults and attributes of scikit-learn's
    `sklearn.decomposition.LatentDirichletAllocation`, whose place it takes.

    From the same `random_state` the topics start as theirs do. Every E-step begins at an even
    division of a document among topics, theirs at a random one: so bounds are close to theirs,
    but topics are not equal digit by digit. Beyond theirs: `sample_weight`.

    Args:
      n_components: k, the number of topics.
      doc_topic_prior, topic_word_prior: concentrations above 0; None: 1 / k.
      learning_method: "batch", passes over all documents; or "online", steps of `batch_size`
        documents with rate (learning_offset + step)^−learning_decay.
      max_iter: passes over the documents.
      evaluate_every: above 0, a fit ends when the perplexity changes by less than perp_tol in so
        many passes; else it takes max_iter passes.
      total_samples: the number of documents that `partial_fit` stands for.
      mean_change_tol, max_doc_update_iter: an E-step ends when the mean change of a document's γ is
        below the first, and after so many steps as the second at the latest.
      n_jobs: without effect.  verbose: above 0 a line is printed after a fit.
      random_state: an int, a `RandomState` or None.

    Data: counts (n, v), or other numbers of 0 or more, dense or sparse.

    Attributes after `fit`: components_ (k, v), the topics' Dirichlet posterior;
    exp_dirichlet_component_ (k, v), exp E[log topics]; bound_, the perplexity of X; n_iter_,
    n_batch_iter_, doc_topic_prior_, topic_word_prior_, random_state_, n_features_in_,
    feature_names_in_. Source: Hoffman, Blei & Bach 2010.
    """

    def __init__(
        self,
        n_components=10,
        *,
        doc_topic_prior=None,
        topic_word_prior=None,
        learning_method="batch",
        learning_decay=0.7,
        learning_offset=10.0,
        max_iter=10,
        batch_size=128,
        evaluate_every=-1,
        total_samples=1e6,
        perp_tol=1e-1,
        mean_change_tol=1e-3,
        max_doc_update_iter=100,
        n_jobs=None,
        verbose=0,
        random_state=None,
    ):
        self.n_components = n_components
        self.doc_topic_prior = doc_topic_prior
        self.topic_word_prior = topic_word_prior
        self.learning_method = learning_method
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.evaluate_every = evaluate_every
        self.total_samples = total_samples
        self.perp_tol = perp_tol
        self.mean_change_tol = mean_change_tol
        self.max_doc_update_iter = max_doc_update_iter
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X, y=None, sample_weight=None):
        """Topics of the documents X (n, v). y: ignored. sample_weight: (n,), one weight of 0 or
        more a document. Returns self. ValueError or TypeError for what cannot be used."""
        support.require(self, RULES)
        x = self._checked(X, "fit", reset=True)
        weights = support.checked_weights(sample_weight, x)
        weights = np.ones(x.shape[0], x.dtype) if weights is None else weights
        self._begin(x)
        step = self.evaluate_every if self.evaluate_every > 0 else max(self.max_iter, 1)
        perplexity = None
        while self.n_iter_ < self.max_iter:
            passes = min(step, self.max_iter - self.n_iter_)
            self._climb(x, weights, passes)
            self.n_iter_ += passes
            if self.evaluate_every > 0:
                last, perplexity = perplexity, self._perplexity(x, weights)
                if last is not None and abs(last - perplexity) < self.perp_tol:
                    break
        self.bound_ = self._perplexity(x, weights)
        if self.verbose:
            print(f"LatentDirichletAllocation: {self.n_iter_} passes, perplexity {self.bound_:.6g}")
        return self

    def partial_fit(self, X, y=None, sample_weight=None):
        """One pass of "online" over X (n, v), continuing from the topics so far. Returns self.

        Raises ValueError for weights or data that cannot be used."""
        support.require(self, RULES)
        is_first = not hasattr(self, "components_")
        x = self._checked(X, "partial_fit", reset=is_first)
        weights = support.checked_weights(sample_weight, x)
        weights = np.ones(x.shape[0], x.dtype) if weights is None else weights
        if is_first:
            self._begin(x)
        self._online(x, weights, self.total_samples)
        return self

    def transform(self, X, *, normalize=True):
        """E[shares of topics] of the documents X (n, v): (n, k), rows summing to 1; without
        `normalize` the params γ of their Dirichlet posteriors."""
        check_is_fitted(self)
        gamma = self._expected(self._checked(X, "transform")).gamma
        return gamma / gamma.sum(1, keepdims=True) if normalize else gamma

    def fit_transform(self, X, y=None, sample_weight=None, *, normalize=True):
        """`fit`, then `transform` of X with `normalize`."""
        return self.fit(X, y, sample_weight).transform(X, normalize=normalize)

    def score(self, X, y=None):
        """A lower bound on log p(X), in nats, which includes −KL(q(topics) ‖ prior). y: ignored."""
        check_is_fitted(self)
        return self._bound(self._checked(X, "score"))

    def perplexity(self, X, sub_sampling=False):
        """exp(−bound / words) of X (n, v). sub_sampling: whether X stands for total_samples
        documents."""
        check_is_fitted(self)
        x = self._checked(X, "perplexity")
        return self._perplexity(x, None, self.total_samples / x.shape[0] if sub_sampling else 1.0)

    def _begin(self, x):
        k = self.n_components
        self.random_state_ = check_random_state(self.random_state)
        self.n_batch_iter_, self.n_iter_ = 1, 0
        self.doc_topic_prior_ = 1 / k if self.doc_topic_prior is None else self.doc_topic_prior
        self.topic_word_prior_ = 1 / k if self.topic_word_prior is None else self.topic_word_prior
        shape = (k, x.shape[1])
        draws = self.random_state_.gamma(INITIAL_SHAPE, 1 / INITIAL_SHAPE, shape)
        self._set(draws.astype(x.dtype))

    def _set(self, components):
        self.components_ = components
        wide = components.astype(float)
        logs = digamma(wide) - digamma(wide.sum(1, keepdims=True))
        self.exp_dirichlet_component_ = np.exp(logs).astype(components.dtype)

    def _climb(self, x, weights, passes):
        """Passes over all documents."""
        if self.learning_method == "online":
            for _ in range(passes):
                self._online(x, weights, float(weights.sum(dtype=float)))
            return
        documents, n = self._documents(x), padded_documents(x)
        weights = np.concatenate([weights, np.zeros(n - len(weights), weights.dtype)])
        options = {"init": self._params(), "tol": 0, "max_iter": passes}
        result = support.climbed(self._model(), documents, weights, x.dtype, **options)[0]
        self._set(np.asarray(result.params.topics * result.params.mass[:, None], x.dtype))
        self.n_batch_iter_ += passes

    def _online(self, x, weights, total):
        """One pass in steps of batch_size documents, which stand for `total` documents."""
        for rows in gen_batches(x.shape[0], self.batch_size):
            mass = weights[rows].sum(dtype=float)
            if mass == 0:
                continue
            counts = self._expected(x[rows], weights[rows]).counts
            rate = (self.learning_offset + self.n_batch_iter_) ** -self.learning_decay
            fresh = self.topic_word_prior_ + total / mass * counts
            self._set(((1 - rate) * self.components_ + rate * fresh).astype(x.dtype))
            self.n_batch_iter_ += 1

    def _model(self):
        alpha, eta = float(self.doc_topic_prior_), float(self.topic_word_prior_)
        limits = {"tol": float(self.mean_change_tol), "most": int(self.max_doc_update_iter)}
        return AmountsLDA(len(self.components_), alpha, eta, "bayes", **limits)

    def _params(self):
        mass = self.components_.sum(1)
        k, dtype = len(mass), self.components_.dtype
        alpha = np.full(k, self.doc_topic_prior_, dtype)
        return LDAParams(self.components_ / mass[:, None], alpha, mass)

    def _expected(self, x, weights=None) -> Expected:
        """The E-step, with NumPy arrays."""
        n, size = x.shape[0], padded_documents(x)
        weights = np.ones(n, x.dtype) if weights is None else weights
        weights = np.concatenate([weights, np.zeros(size - n, x.dtype)])
        with support.precision_of(x.dtype), tuning.full_products():
            found = _expected(
                self._model(),
                self._params(),
                self._documents(x),
                weights,
                np.asarray(self.mean_change_tol, x.dtype),
                np.asarray(self.max_doc_update_iter, np.int32),
            )
            gamma, evidence, counts = map(np.asarray, found)
        return Expected(gamma[:n], evidence[:n], counts)

    def _bound(self, x, weights=None, factor=1.0) -> float:
        """The bound on log p(x), the documents counted `factor` times."""
        evidence = self._expected(x).evidence.astype(float)
        with support.precision_of(x.dtype):
            prior = float(_log_prior(self._model(), self._params()))
        return factor * float(evidence.sum() if weights is None else evidence @ weights) + prior

    def _perplexity(self, x, weights=None, factor=1.0) -> float:
        sizes = np.asarray(x.sum(1), float).ravel()
        words = factor * (sizes.sum() if weights is None else sizes @ weights)
        return float(np.exp(-self._bound(x, weights, factor) / words))

    def _documents(self, x) -> Documents:
        """The rows of x, and empty documents up to a number that many data sets share."""
        rows = sparse.csr_matrix(x)
        rows.sum_duplicates()
        offsets = np.asarray(rows.indptr, np.int64)
        added = np.full(padded_documents(x) - x.shape[0], offsets[-1])
        cells = np.concatenate([offsets, added]), rows.indices, rows.data
        return Documents.of(cells, x.shape[1])

    def _checked(self, X, name, reset=False):
        dtype = [np.float64, np.float32] if reset else self.components_.dtype
        x = validate_data(self, X, reset=reset, accept_sparse="csr", dtype=dtype)
        check_non_negative(x, f"LatentDirichletAllocation.{name}")
        return x

    @property
    def _n_features_out(self):
        return len(self.components_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32", "float64"]
        return tags


@jax.jit
def _log_prior(model, params):
    return model.log_prior(params)


def padded_documents(x) -> int:
    """The number of documents to which those of x are padded."""
    return support.padded_rows(x.shape[0])
