"""Poisson components: counts in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision, digamma, lgamma, stop_gradient

from jaxem.families.conjugate import Conjugate
from jaxem.families.exponential_family import (
    ExponentialFamily,
    Relative,
    log_or_impossible,
    log_ratio,
)
from jaxem.families.units import column_scale
from jaxem.numerics import divergence
from jaxem.numerics.special import log_poisson
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.priors import GammaPrior, require_kind
from jaxem.protocol.spaces import POSITIVE
from jaxem.protocol.units import Standardized


@pytree(eq=False)
class PoissonParams:
    """rate (k, d), the mean count."""

    rate: Any


@pytree
class Poisson(ExponentialFamily):
    """log p(x | k) = Σ_d x log rate_kd − rate_kd − log x!

    x: (n, d) counts 0, 1, 2, …  prior: a `GammaPrior` of every rate, or None.
    """

    prior: GammaPrior | None = None

    columns = 1
    domain = domains.COUNTS
    _separate = True

    def __post_init__(self):
        require_kind(self, GammaPrior)

    def posterior(self, params, x):
        """Column by column, so that large counts lose no digits."""
        x_of, rate = x[:, None], params.rate
        possible = (rate > 0) | (x_of == 0)
        each = log_poisson(x_of, jnp.where(possible, rate, 1))
        evidence = jnp.where(possible, each, -jnp.inf).sum(-1)
        return None, self.supported(x, evidence)

    def standardize(self, x, weights):
        rate = stop_gradient(column_scale(x, weights))
        volume = rate.sum() - self.base_measure(x)
        volume = volume - jnp.matmul(x, jnp.log(rate), precision=Precision.HIGHEST)
        return Standardized(Relative(self, rate), x, log_volume=volume)

    def natural(self, params):
        return log_or_impossible(params.rate)

    def natural_over(self, params, reference):
        return log_ratio(params.rate, reference)

    def log_partition_over(self, params, reference):
        return (params.rate - reference).sum(-1)

    def log_partition(self, params):
        return params.rate.sum(-1)

    def base_measure(self, x):
        return -lgamma(x + 1).sum(-1)

    def estimate(self, count, total):
        if self.prior is None:
            return PoissonParams(total / count[:, None])
        events = jnp.maximum(total + self.prior.shape - 1, 0)
        return PoissonParams(events / (count[:, None] + self.prior.rate))

    def variational(self):
        return GammaPoisson(self)

    @property
    def informed(self):
        return self._informed if self.prior is None else None

    def _informed(self, x, weights, k):
        """With an exponential prior of rates, whose mean is that of the column."""
        return Poisson(GammaPrior(1.0, 1 / column_scale(x, weights)))

    def spaces(self, params):
        return PoissonParams(POSITIVE)

    def whitened(self, params, step):
        return PoissonParams(step.rate / jnp.sqrt(params.rate))

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.rate)

    def sample(self, key, params, z):
        return jax.random.poisson(key, params.rate[z]).astype(params.rate.dtype)

    def embed(self, x):
        return jnp.sqrt(x)


@pytree(eq=False)
class GammaPosterior:
    """q(rate) = gamma(shape, rate), both (k, d)."""

    shape: Any
    rate: Any


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
