"""Bernoulli components: zeros and ones in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxem.families.exponential_family import ExponentialFamily, log_or_impossible, normalize
from jaxem.numerics.tree import pytree
from jaxem.protocol.priors import BetaPrior
from jaxem.protocol.spaces import UNIT


@pytree(eq=False)
class BernoulliParams:
    """probs (k, d), the probability of a one."""

    probs: Any


@pytree
class Bernoulli(ExponentialFamily):
    """log p(x | k) = Σ_d x log probs_kd + (1 − x) log(1 − probs_kd)

    x: (n, d) of 0 and 1.  prior: a `BetaPrior` of every probability, or None.
    """

    prior: BetaPrior | None = None

    columns = 2
    _separate = True

    def features(self, x):
        return jnp.concatenate([x, 1 - x], axis=1)

    def natural(self, params):
        p = params.probs
        return jnp.concatenate([log_or_impossible(p), log_or_impossible(1 - p)], axis=1)

    def estimate(self, count, total):
        ones, zeros = jnp.split(total, 2, axis=1)
        if self.prior is not None:
            ones = jnp.maximum(ones + self.prior.a - 1, 0)
            zeros = jnp.maximum(zeros + self.prior.b - 1, 0)
        return BernoulliParams(normalize(jnp.stack([ones, zeros], axis=-1))[..., 0])

    def variational(self):
        from jaxem.families.conjugate import BetaBernoulli

        return BetaBernoulli(self)

    def spaces(self, params):
        return BernoulliParams(UNIT)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.probs)

    def sample(self, key, params, z):
        p = params.probs[z]
        return jax.random.bernoulli(key, p).astype(p.dtype)

    def n_parameters(self, params):
        return params.probs.size

    def valid(self, x):
        return (x == 0) | (x == 1)

    def support(self):
        return "0 and 1"
