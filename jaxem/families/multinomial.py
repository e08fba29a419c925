"""Multinomial components: rows of counts over v categories."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import lgamma

from jaxem.families.exponential_family import ExponentialFamily, log_or_impossible, normalize
from jaxem.numerics.tree import pytree
from jaxem.protocol.priors import DirichletPrior
from jaxem.protocol.spaces import SIMPLEX
from jaxem.wrappers.layout import averaged


@pytree(eq=False)
class MultinomialParams:
    """probs (k, v), every row summing to 1."""

    probs: Any


@pytree(static=("trials",))
class Multinomial(ExponentialFamily):
    """log p(x | k) = log N! − Σ_v log x_v! + Σ_v x_v log probs_kv, with N = Σ_v x_v

    Args:
      prior: a `DirichletPrior` of every probability vector, or None.
      trials: N of the rows that `sample` draws; nothing else uses it.

    x: (n, v) counts; rows may differ in N.
    """

    prior: DirichletPrior | None = None
    trials: int | None = None

    _separate = True

    def natural(self, params):
        return log_or_impossible(params.probs)

    def base_measure(self, x):
        return lgamma(x.sum(-1) + 1) - lgamma(x + 1).sum(-1)

    def estimate(self, count, total):
        if self.prior is not None:
            total = jnp.maximum(total + self.prior.concentration - 1, 0)
        return MultinomialParams(normalize(total))

    def restricted(self, held):
        rows = held.probs.leaders

        def maximize(params, stats):
            return self.maximize(params, stats._replace(total=averaged(rows, stats.total)))

        return maximize

    def variational(self):
        from jaxem.families.conjugate import DirichletMultinomial

        return DirichletMultinomial(self)

    def spaces(self, params):
        return MultinomialParams(SIMPLEX)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.probs)

    def sample(self, key, params, z):
        if self.trials is None:
            raise ValueError("to sample, give Multinomial(trials=N), the counts in a row")
        draws = operator.index(self.trials)
        shape = (draws, z.shape[0])
        codes = jax.random.categorical(key, jnp.log(params.probs[z]), axis=-1, shape=shape)
        each = jax.nn.one_hot(codes, params.probs.shape[1], dtype=params.probs.dtype)
        return each.sum(0)

    def n_parameters(self, params):
        k, v = params.probs.shape
        return k * (v - 1)

    def embed(self, x):
        total = jnp.maximum(x.sum(-1, keepdims=True), 1)
        return jnp.sqrt(x / total)

    def valid(self, x):
        return (x >= 0) & (x % 1 == 0) & (x < float("inf"))

    def support(self):
        return "counts 0, 1, 2, ..."
