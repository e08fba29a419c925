"""Latent Dirichlet allocation by variational EM: a mixture of topics within each document."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxem.data.documents import Documents
from jaxem.models.lda import concentration
from jaxem.models.lda.blocks import Table, mean_log, minus_kl_of_dirichlets
from jaxem.models.lda.domain import DocumentsDomain
from jaxem.models.lda.posterior import (
    LDAPosterior,
    arranged,
    converged_gamma,
    one_pass,
    sums_at_gamma,
)
from jaxem.models.lda.start import separated, word_counts, word_counts_of
from jaxem.numerics.tree import pytree
from jaxem.passes.collect import Prepared
from jaxem.passes.linear import FusedPass, roomy
from jaxem.protocol.counts import is_empty
from jaxem.protocol.held import is_held
from jaxem.protocol.model import Model
from jaxem.protocol.priors import DirichletPrior
from jaxem.protocol.spaces import ABOVE_ZERO, SIMPLEX

LOOSE, BRIEF = 1e-3, 20
"""In a fit γ is iterated until its mean change is below LOOSE, scikit-learn's default, at most
BRIEF steps; the E-steps that follow continue from it. More steps do not help while topics are
similar: after 20 passes over 4,000 documents the bound was no higher with 100 steps, at twice the
cost, nor with the fixed points themselves, found by SQUAREM."""

COLD_PASSES, COLD_PERIOD = 10, 10
"""While topics are similar, a warm start of γ holds documents at the topics that they have at
random: after 20 passes over 4,000 documents the bound was 8% lower. So the first COLD_PASSES
passes, and every COLD_PERIOD-th after them, use a cold start, except where that lowers F; the
others use the warm start, γ of the pass before."""

TIGHT, LONG = 0.7, 1000
"""A posterior from a cold start: steps until the mean change of γ is below eps^TIGHT of its mean,
at most LONG."""

SEEDS = 10
"""The number of documents whose words are the start of a topic."""


@pytree(eq=False)
class LDAParams:
    """topics (k, vocabulary), rows summing to 1; alpha (k,).

    mass (k,): with inference="bayes" the topics' posterior is Dirichlet(mass · topics), so topics
    are its mean; else None. eta: the concentration of that prior where it is learnt, a scalar or
    (vocabulary,); else None.
    """

    topics: Any
    alpha: Any
    mass: Any = None
    eta: Any = None


class LDAStatistics(NamedTuple):
    """topics (k, vocabulary): expected counts Σ w·counts·φ; log_theta (k,): Σ w·E[log θ];
    count: Σ w. Additive over documents and linear in their weights, so they may be averaged."""

    topics: Any
    log_theta: Any
    count: Any


class LDALocal(NamedTuple):
    """The q of a fit: γ (n, k) after the last E-step, and the number of E-steps."""

    gamma: Any
    steps: Any


@pytree(static=("topics", "inference"))
class LDA(Model):
    """Latent Dirichlet allocation: θ_d ~ Dirichlet(alpha); for each token z ~ θ_d, word ~ topic z.

    The posterior of a document is mean field, q(θ_d) q(z_d), so evidence, `log_likelihood` and
    `objective` are LOWER BOUNDS, on log p(words | topics, alpha) with the words of a document as a
    sequence, without any term dropped. No step of a fit lowers the bound.

    Args:
      topics: how many, an int of 1 or more.
      alpha: the concentration of topics within a document: a number, one for each topic, or
        "symmetric" or "asymmetric" to learn it. None: 1 / topics, or that of given params.
      eta: the concentration of words within a topic. None: 1 with inference="map", which is maximum
        likelihood, else 1 / topics. With "map" 1 or more; with "bayes" also "symmetric" or
        "asymmetric", to learn it.
      inference: of the topics. "map": point estimates, the mode (Blei, Ng & Jordan 2003); "bayes":
        q(topic) = Dirichlet, and `objective` also holds −KL(q(topics) ‖ prior), as `log_prior`, so
        it is a bound on log p(words | alpha, eta) (Hoffman, Blei & Bach 2010).

    Data: `Documents`; weights are per document. q(θ_d) = Dirichlet(γ_d). A document with a word of
    probability 0 in every topic (possible with eta=1 alone) has evidence −∞; `posterior` leaves
    that word out of γ, which stays finite. A document without words has γ = alpha and evidence 0.

    Raises ValueError or TypeError where an argument is not one of these.
    """

    topics: int
    alpha: Any = None
    eta: Any = None
    inference: str = "map"

    domain = DocumentsDomain("counts 0, 1, 2, ... of words within the vocabulary")

    def __post_init__(self):
        if self.inference not in ("map", "bayes"):
            raise ValueError(f'inference must be "map" or "bayes", got {self.inference!r}')
        object.__setattr__(self, "topics", concentration.checked_topics(self.topics))
        usual = 1 / self.topics
        eta = usual if self.eta is None and self.bayes else self.eta
        if self.alpha is not None:
            alpha = concentration.checked(self.alpha, "alpha", self.topics)
            object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "eta", concentration.checked(eta, "eta"))
        least = 0 if self.bayes else 1
        if isinstance(self.eta, str) and not self.bayes:
            raise ValueError(f'eta={self.eta!r} needs inference="bayes": the mode has no best eta')
        if isinstance(self.eta, (int, float, np.number)) and self.eta < least:
            raise ValueError(
                f'eta must be 1 or more with inference="map", got {self.eta}: below 1 the density '
                'of the topics is unbounded; use inference="bayes"'
            )

    @property
    def bayes(self) -> bool:
        """Whether the topics have a posterior, inference="bayes"."""
        return self.inference == "bayes"

    def init(self, key, x, weights):
        """Each topic is the mean of the word frequencies of a few documents and of all documents.
        A topic equal to an earlier one is redrawn about that: EM never separates equal topics."""
        v, dtype = x.vocabulary, weights.dtype
        chosen = jax.random.choice(key, len(x), (self.topics, SEEDS), p=weights / weights.sum())
        all_words = word_counts(x, weights)
        all_words = (all_words + 1 / v) / (all_words.sum() + 1)
        chosen_words = word_counts_of(x, chosen, dtype)
        total = chosen_words.sum(-1, keepdims=True)
        chosen_words = jnp.where(
            total > 0, chosen_words / jnp.where(total > 0, total, 1), all_words
        )
        mass = eta = None
        if self.bayes:
            eta = self._eta(None, dtype)
            tokens_per_topic = (x.size * weights).sum() / self.topics
            mass = jnp.full(
                self.topics, jnp.broadcast_to(eta, (v,)).sum() + tokens_per_topic, dtype
            )
            eta = jnp.broadcast_to(eta, () if self.eta == "symmetric" else (v,))
        has_alpha = self.alpha is not None and not isinstance(self.alpha, str)
        alpha = self.alpha if has_alpha else 1 / self.topics
        alpha = jnp.broadcast_to(jnp.asarray(alpha, dtype), (self.topics,))
        topics = (chosen_words + all_words) / 2
        topics = separated(jax.random.fold_in(key, 1), topics, flatter=self.bayes)
        return LDAParams(topics, alpha, mass, eta if isinstance(self.eta, str) else None)

    def posterior(self, params, x):
        q = LDAPosterior(self.converged(params, x))
        return q, self.free_energy(params, x, q)

    def statistics(self, params, x, q, weights):
        data = self.table(params, x)
        if q.shares is None:
            topics = sums_at_gamma(data, q.gamma, weights).topics
        else:
            cells = q.shares * (x.counts * weights[:, None])[..., None]
            flat = cells.reshape(-1, self.topics)
            topics = jnp.zeros(data.table.shape, flat.dtype).at[x.words.reshape(-1)].add(flat).T
        return self.sums(topics, mean_log(q.gamma), weights)

    def free_energy(self, params, x, q):
        """F(q, params) of every document (n,), for any q."""
        data, logs = self.table(params, x), mean_log(q.gamma)
        if q.shares is None:
            return sums_at_gamma(data, q.gamma, jnp.ones_like(x.size)).evidence
        is_positive = q.shares > 0
        joint = logs[:, None] + jnp.where(is_positive, data.logs[x.words], 0)
        joint = joint - jnp.log(jnp.where(is_positive, q.shares, 1))
        words = jnp.sum(x.counts[..., None] * jnp.where(is_positive, q.shares * joint, 0), (1, 2))
        return words + minus_kl_of_dirichlets(data.alpha, q.gamma, logs)

    def init_q(self, params, x):
        """The first q, an `LDALocal`: γ of a cold start (`cold`)."""
        return LDALocal(stop_gradient(self.cold(params, x)), jnp.asarray(0, jnp.int32))

    def improve_q(self, params, x, q, weights):
        """(q, statistics, F (n,)) after steps of γ until its mean change is below 1e-3, at most 20.
        They never lower F."""
        units = x.units if isinstance(x, Prepared) else self.arranged(x)
        x = x.x if isinstance(x, Prepared) else x
        from_cold = (q.steps > 0) & ((q.steps < COLD_PASSES) | (q.steps % COLD_PERIOD == 0))
        gamma, statistics, value = self.improved(
            params, x, units, weights, q.gamma, from_cold, LOOSE, BRIEF
        )
        return LDALocal(gamma, q.steps + 1), statistics, value

    def smooth_map(self):
        from jaxem.models.lda.stationary import LDAMap  # only gradients use it

        return LDAMap()

    def fused(self, x):
        """The arrangement of documents by length is computed once for many passes."""
        return FusedPass(prepare=self.arranged, room=roomy(x))

    def maximize(self, params, stats, smooth: bool = False):
        """As in `Model`. smooth: whether learnt concentrations take one Newton step, which is
        differentiable (`concentration`)."""
        alpha = self._alpha(params, stats, smooth)
        if not self.bayes:
            topics = jnp.maximum(stats.topics + (self._eta(params) - 1), 0)
            total = topics.sum(-1, keepdims=True)
            empty = is_empty(total)
            topics = jnp.where(empty, params.topics, topics / jnp.where(empty, 1, total))
            return LDAParams(topics, alpha, params.mass, params.eta)
        topics = stats.topics + self._eta(params)
        mass = topics.sum(-1)
        updated = LDAParams(topics / mass[:, None], alpha, mass, params.eta)
        if params.eta is None:
            return updated
        logs = mean_log(topics).mean(0)
        if self.eta == "asymmetric":
            return replace(updated, eta=concentration.asymmetric(params.eta, logs, smooth))
        return replace(
            updated, eta=concentration.symmetric(params.eta, logs.sum(), logs.size, smooth)
        )

    def restricted(self, held):
        """The M-step with entries of point estimates of topics fixed, and alpha as a whole."""
        leaves = jax.tree.leaves(held, is_leaf=is_held)
        fixed = [h.fixed.any() for h in leaves]
        if not any(fixed) and not any(h.tied for h in leaves):
            return self.maximize
        if held.alpha.fixed.any() and not (self.alpha is None or isinstance(self.alpha, str)):
            raise ValueError(
                f"alpha is given twice, in the model {self!r} and among its fixed params: leave it "
                "out of one of them"
            )
        whole = held.alpha.fixed.all() or not held.alpha.fixed.any()
        others = self.bayes and (held.topics.fixed.any() or any(fixed[2:]))
        if any(h.tied for h in leaves) or not whole or others:
            return None
        return self.maximize

    def log_prior(self, params):
        """log p(topics | eta) at point estimates; −KL(q(topics) ‖ p(topics | eta)) with "bayes"."""
        if not self.bayes:
            flat = self.eta is None
            return 0.0 if flat else DirichletPrior(self.eta).log_density(params.topics)
        eta = jnp.broadcast_to(self._eta(params), params.topics.shape[1:])
        scale = params.topics * params.mass[:, None]
        return jnp.sum(minus_kl_of_dirichlets(eta, scale, mean_log(scale)))

    def spaces(self, params):
        return LDAParams(
            SIMPLEX,
            ABOVE_ZERO,
            None if params.mass is None else ABOVE_ZERO,
            None if params.eta is None else ABOVE_ZERO,
        )

    def degenerate(self, params):
        learnt = [params.alpha] if isinstance(self.alpha, str) else []
        learnt += [params.eta] if self.eta == "symmetric" else []  # asymmetric: may be 0 for a word
        return jnp.any(jnp.asarray([concentration.on_edge(a) for a in learnt], bool))

    def n_parameters(self, params):
        k, v = params.topics.shape
        learnt = {"symmetric": 1, "asymmetric": k}[self.alpha] if isinstance(self.alpha, str) else 0
        return k * (v - 1) + learnt

    def sample(self, key, params, n: int, length: int = 100):
        """n documents of `length` words, as `Documents`; not under jit."""
        v = params.topics.shape[1]
        of_theta, of_z, of_word = jax.random.split(key, 3)
        theta = jax.random.dirichlet(of_theta, params.alpha, (n,))
        z = jax.random.categorical(of_z, jnp.log(theta)[:, None], axis=-1, shape=(n, length))
        words = jax.random.categorical(of_word, jnp.log(params.topics)[z], axis=-1)
        cell, counts = np.unique(np.arange(n)[:, None] * v + np.asarray(words), return_counts=True)
        offsets = np.searchsorted(cell, np.arange(n + 1) * v)
        return Documents.of((offsets, (cell % v).astype(np.int32), counts.astype(float)), v)

    def table(self, params, x) -> Table:
        """The input of the E-step. ValueError where documents and topics differ in vocabulary."""
        v = params.topics.shape[1]
        if v != x.vocabulary:
            raise ValueError(
                f"the documents have a vocabulary of {x.vocabulary} words, the topics one of {v}: "
                f"build them with the vocabulary of the fit, jaxem.Documents(..., vocabulary={v}), "
                'and unknown="drop" to leave out other words'
            )
        mass = params.mass if self.bayes else None
        return Table.of(params.topics, mass, self._fixed_alpha(params), *x.stored)

    def cold(self, params, x):
        """γ (n, k) of a cold start: the tokens of a document are divided evenly among topics."""
        return self._fixed_alpha(params) + x.size[:, None] / self.topics

    def converged(self, params, x):
        """Converged γ (n, k), from a cold start."""
        gamma = self.cold(params, x)
        return converged_gamma(
            self.table(params, x), gamma, _tight(gamma), jnp.asarray(LONG, jnp.int32)
        )

    def arranged(self, x):
        """The documents in the form that `improved` takes."""
        return arranged(*x.stored, self.topics)

    def improved(self, params, x, units, weights, gamma, from_cold, tol, most):
        """(γ (n, k), statistics, evidence (n,)) after at most `most` steps from a given gamma γ, or
        until its mean change is below tol. units: what `arranged` returned. from_cold: whether they
        begin at a cold start, for documents of which F is then not lower."""
        cold = self.cold(params, x)
        limit = jnp.maximum(_tight(cold), tol)
        most = jnp.asarray(most, jnp.int32)
        data = self.table(params, x)
        gamma, (topics, evidence) = one_pass(
            data, units, gamma, cold, from_cold, limit, most, weights
        )
        return gamma, self.sums(topics, mean_log(gamma), weights), evidence

    def _fixed_alpha(self, params):
        """alpha (k,): that of the model where it is a number, else that of params."""
        if self.alpha is None or isinstance(self.alpha, str):
            return params.alpha
        return jnp.broadcast_to(jnp.asarray(self.alpha, params.topics.dtype), (self.topics,))

    def _alpha(self, params, stats, smooth):
        if not isinstance(self.alpha, str):
            return stop_gradient(params.alpha) if self.alpha is None else self._fixed_alpha(params)
        mean = stats.log_theta / jnp.where(stats.count > 0, stats.count, 1)
        if self.alpha == "asymmetric":
            return concentration.asymmetric(params.alpha, mean, smooth)
        one = concentration.symmetric(params.alpha[0], mean.sum(), self.topics, smooth)
        return jnp.full_like(params.alpha, one)

    def _eta(self, params, dtype=None):
        if isinstance(self.eta, str) and params is not None:
            return params.eta
        given = 1 / self.topics if isinstance(self.eta, str) else self.eta
        given = 1.0 if given is None else given
        return jnp.asarray(given, params.topics.dtype if dtype is None else dtype)

    def sums(self, topics, logs, weights):
        """`LDAStatistics` from expected counts of topics (k, vocabulary), logs E[log θ] (n, k) and
        the weights."""
        return LDAStatistics(topics, jnp.einsum("n,nk->k", weights, logs), weights.sum())


def _tight(gamma):
    """The mean change (n,) below which γ has converged."""
    return jnp.finfo(gamma.dtype).eps ** TIGHT * gamma.mean(-1)
