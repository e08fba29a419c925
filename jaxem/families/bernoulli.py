"""Bernoulli components: zeros and ones in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import digamma

from jaxem.families import cells
from jaxem.families.conjugate import Conjugate
from jaxem.families.exponential_family import ExponentialFamily, log_or_impossible, normalize
from jaxem.numerics import divergence
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.priors import BetaPrior, require_kind
from jaxem.protocol.spaces import UNIT


@pytree(eq=False)
class BernoulliParams:
    """probs (k, d), the probability of a one."""

    probs: Any


@pytree(static=("missing",))
class Bernoulli(ExponentialFamily):
    """log p(x | k) = Σ_d x log probs_kd + (1 − x) log(1 − probs_kd)

    x: (n, d) of 0 and 1.  prior: a `BetaPrior` of every probability, or None.  missing: whether
    NaN marks a cell that was not observed, which then drops out.  Raises TypeError for another
    prior or missing. Source: the latent class model of Lazarsfeld & Henry 1968.
    """

    prior: BetaPrior | None = None
    missing: bool = False

    columns = 2
    _separate = True

    def __post_init__(self):
        require_kind(self, BetaPrior)
        cells.require_flag(self.missing)

    @property
    def domain(self):
        return cells.domain_of(domains.BITS, self.missing)

    def features(self, x):
        return jnp.concatenate([x, 1 - x], axis=1)

    def natural(self, params):
        p = params.probs
        return jnp.concatenate([log_or_impossible(p), log_or_impossible(1 - p)], axis=1)

    def log_partitions(self, params):
        return jnp.zeros_like(params.probs)

    def estimate(self, count, total):
        ones, zeros = jnp.split(total, 2, axis=1)
        if self.prior is not None:
            ones = jnp.maximum(ones + self.prior.a - 1, 0)
            zeros = jnp.maximum(zeros + self.prior.b - 1, 0)
        return BernoulliParams(normalize(jnp.stack([ones, zeros], axis=-1))[..., 0])

    def variational(self):
        return BetaBernoulli(self)

    def spaces(self, params):
        return BernoulliParams(UNIT)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.probs)

    def sample(self, key, params, z):
        p = params.probs[z]
        return jax.random.bernoulli(key, p).astype(p.dtype)

    def embed(self, x):
        points = super().embed(x)
        return cells.filled_by_mean(points) if self.missing else points


@pytree(eq=False)
class BetaPosterior:
    """q(probability of a one) = beta(a, b), both (k, d)."""

    a: Any
    b: Any


@pytree
class BetaBernoulli(Conjugate):
    """The variational bank of `Bernoulli`: E[log p] = ψ(a) − ψ(a + b)."""

    family: Bernoulli

    def natural(self, params):
        whole = digamma(params.a + params.b)
        return jnp.concatenate([digamma(params.a) - whole, digamma(params.b) - whole], axis=1)

    def log_partitions(self, params):
        return jnp.zeros_like(params.a)

    def estimate(self, count, total):
        ones, zeros = jnp.split(total, 2, axis=1)
        return BetaPosterior(ones + self._prior.a, zeros + self._prior.b)

    def log_prior(self, params):
        prior = jnp.stack(jnp.broadcast_arrays(self._prior.a, self._prior.b), axis=-1)
        return -divergence.dirichlet(jnp.stack([params.a, params.b], axis=-1), prior)

    def predictive(self, params, x):
        a, b = params.a, params.b
        x, mask = self.filled(x)
        each = jnp.log(jnp.where(x[:, None] == 1, a, b)) - jnp.log(a + b)
        return cells.masked(mask, each).sum(-1)

    def sample(self, key, params, z):
        p = (params.a / (params.a + params.b))[z]
        return jax.random.bernoulli(key, p).astype(p.dtype)

    @property
    def _prior(self):
        return BetaPrior(1.0, 1.0) if self.family.prior is None else self.family.prior
