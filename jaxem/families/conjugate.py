"""Discrete families whose parameters are distributed: their conjugate posteriors as banks.

E[log p(x | k)] is linear in the same features as log p(x | k), with E[η] and E[A] for η and A.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import digamma, lgamma

from jaxem.families.bernoulli import Bernoulli
from jaxem.families.categorical import Categorical
from jaxem.families.exponential_family import ExponentialFamily
from jaxem.families.multinomial import Multinomial, MultinomialParams
from jaxem.families.poisson import Poisson
from jaxem.numerics import divergence
from jaxem.numerics.tree import pytree
from jaxem.protocol.model import IMPOSSIBLE
from jaxem.protocol.priors import BetaPrior, DirichletPrior
from jaxem.protocol.spaces import POSITIVE


@pytree(eq=False)
class GammaPosterior:
    """q(rate) = gamma(shape, rate), both (k, d)."""

    shape: Any
    rate: Any


@pytree(eq=False)
class BetaPosterior:
    """q(probability of a one) = beta(a, b), both (k, d)."""

    a: Any
    b: Any


@pytree(eq=False)
class DirichletPosterior:
    """q(probs) = Dirichlet(concentration): (k, v) or (k, d, v), 1 beyond a column's levels."""

    concentration: Any


class Conjugate(ExponentialFamily):
    """What the banks below share: they see data as their `family` does.

    `estimate` gives the posterior; where no unit belongs to a component it is the prior.
    """

    def variational(self):
        return self

    def maximize(self, params, stats):
        return self.estimate(stats.count, stats.total)

    def features(self, x):
        return self.family.features(x)

    def base_measure(self, x):
        return self.family.base_measure(x)

    def embed(self, x):
        return self.family.embed(x)

    def valid(self, x):
        return self.family.valid(x)

    def support(self):
        return self.family.support()

    def check(self, x):
        self.family.check(x)

    def check_params(self, params):
        if not all((leaf > 0).all() for leaf in jax.tree.leaves(params)):
            raise ValueError(f"init components must be above 0, got {params}")

    def spaces(self, params):
        return jax.tree.map(lambda _: POSITIVE, params)

    @property
    def _prior(self):
        """Even over all probabilities where the family has none."""
        return DirichletPrior(1.0) if self.family.prior is None else self.family.prior


@pytree
class GammaPoisson(Conjugate):
    """The variational bank of `Poisson`: E[log λ] = ψ(shape) − log rate, E[λ] = shape/rate."""

    family: Poisson

    def natural(self, params):
        return digamma(params.shape) - jnp.log(params.rate)

    def log_partition(self, params):
        return (params.shape / params.rate).sum(-1)

    def estimate(self, count, total):
        prior = self._prior
        rate = jnp.broadcast_to(count[:, None] + prior.rate, total.shape)
        return GammaPosterior(total + prior.shape, rate)

    def log_prior(self, params):
        prior = self._prior
        return -divergence.gamma(params.shape, params.rate, prior.shape, prior.rate)

    def predictive(self, params, x):
        """Negative binomial: log of the gamma mixture of Poissons."""
        a, b = params.shape, params.rate
        x = x[:, None]
        each = lgamma(a + x) - lgamma(a) - lgamma(x + 1) - a * jnp.log1p(1 / b) - x * jnp.log1p(b)
        return each.sum(-1)

    def sample(self, key, params, z):
        mix, draw = jax.random.split(key)
        shape = params.shape[z]
        rate = jax.random.gamma(mix, shape, dtype=shape.dtype) / params.rate[z]
        return jax.random.poisson(draw, rate).astype(shape.dtype)

    @property
    def _prior(self):
        if self.family.prior is None:
            raise ValueError(
                "Poisson in a BayesianMixture needs a prior: fit takes one from the data and keeps "
                "it in result.model; elsewhere pass Poisson(prior=jaxem.GammaPrior(shape, rate))"
            )
        return self.family.prior


@pytree
class BetaBernoulli(Conjugate):
    """The variational bank of `Bernoulli`: E[log p] = ψ(a) − ψ(a + b)."""

    family: Bernoulli

    def natural(self, params):
        whole = digamma(params.a + params.b)
        return jnp.concatenate([digamma(params.a) - whole, digamma(params.b) - whole], axis=1)

    def estimate(self, count, total):
        ones, zeros = jnp.split(total, 2, axis=1)
        return BetaPosterior(ones + self._prior.a, zeros + self._prior.b)

    def log_prior(self, params):
        prior = jnp.stack(jnp.broadcast_arrays(self._prior.a, self._prior.b), axis=-1)
        return -divergence.dirichlet(jnp.stack([params.a, params.b], axis=-1), prior)

    def predictive(self, params, x):
        a, b = params.a, params.b
        x = x[:, None]
        return (jnp.log(jnp.where(x == 1, a, b)) - jnp.log(a + b)).sum(-1)

    def sample(self, key, params, z):
        p = (params.a / (params.a + params.b))[z]
        return jax.random.bernoulli(key, p).astype(p.dtype)

    @property
    def _prior(self):
        return BetaPrior(1.0, 1.0) if self.family.prior is None else self.family.prior


@pytree
class DirichletCategorical(Conjugate):
    """The variational bank of `Categorical`: E[log p] = ψ(concentration) − ψ(its sum)."""

    family: Categorical

    def natural(self, params):
        a, real = params.concentration, self._real(params.concentration.shape[1])
        whole = digamma(jnp.where(real, a, 0).sum(-1, keepdims=True))
        return jnp.where(real, digamma(a) - whole, IMPOSSIBLE).reshape(a.shape[0], -1)

    def estimate(self, count, total):
        counts = total.reshape(count.shape[0], -1, self.family.widest)
        real = self._real(counts.shape[1])
        return DirichletPosterior(jnp.where(real, counts + self._prior.concentration, 1))

    def log_prior(self, params):
        a = params.concentration
        return -divergence.dirichlet(a, self._prior.concentration, self._real(a.shape[1]))

    def predictive(self, params, x):
        logs = jnp.log(self._mean(params)).reshape(params.concentration.shape[0], -1)
        x = self.features(x)[:, None] > 0
        return jnp.where(x, logs, 0).sum(-1)

    def sample(self, key, params, z):
        codes = jax.random.categorical(key, jnp.log(self._mean(params)[z]), axis=-1)
        return codes.astype(params.concentration.dtype)

    def _mean(self, params):
        a, real = params.concentration, self._real(params.concentration.shape[1])
        a = jnp.where(real, a, 0)
        return a / a.sum(-1, keepdims=True)

    def _real(self, d):
        return np.arange(self.family.widest) < self.family.per_column(d)[:, None]


@pytree
class DirichletMultinomial(Conjugate):
    """The variational bank of `Multinomial`: E[log p] = ψ(concentration) − ψ(its sum)."""

    family: Multinomial

    def natural(self, params):
        a = params.concentration
        return digamma(a) - digamma(a.sum(-1, keepdims=True))

    def estimate(self, count, total):
        return DirichletPosterior(total + self._prior.concentration)

    def log_prior(self, params):
        return -divergence.dirichlet(params.concentration, self._prior.concentration)

    def predictive(self, params, x):
        a = params.concentration
        x, whole = x[:, None], a.sum(-1)
        n = x.sum(-1)
        constant = lgamma(n + 1) - lgamma(x + 1).sum(-1) + lgamma(whole) - lgamma(whole + n)
        return constant + (lgamma(a + x) - lgamma(a)).sum(-1)

    def sample(self, key, params, z):
        mix, draw = jax.random.split(key)
        probs = jax.random.dirichlet(mix, params.concentration[z])
        one = jnp.arange(z.shape[0])
        return self.family.sample(draw, MultinomialParams(probs), one)
