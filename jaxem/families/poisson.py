"""Poisson components: counts in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import lgamma

from jaxem.families.exponential_family import ExponentialFamily, log_or_impossible
from jaxem.families.units import column_scale
from jaxem.numerics.tree import pytree
from jaxem.protocol.priors import GammaPrior
from jaxem.protocol.spaces import POSITIVE


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
    _separate = True

    def natural(self, params):
        return log_or_impossible(params.rate)

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
        from jaxem.families.conjugate import GammaPoisson

        return GammaPoisson(self)

    @property
    def uninformed(self):
        return self.prior is None

    def informed(self, x, weights, k):
        """With rates that are exponential about the mean of their column."""
        return Poisson(GammaPrior(1.0, 1 / column_scale(x, weights)))

    def spaces(self, params):
        return PoissonParams(POSITIVE)

    def information(self, params):
        return PoissonParams(1 / params.rate)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.rate)

    def sample(self, key, params, z):
        return jax.random.poisson(key, params.rate[z]).astype(params.rate.dtype)

    def n_parameters(self, params):
        return params.rate.size

    def embed(self, x):
        return jnp.sqrt(x)

    def valid(self, x):
        return (x >= 0) & (x % 1 == 0) & (x < float("inf"))

    def support(self):
        return "counts 0, 1, 2, ..."
