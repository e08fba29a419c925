"""Poisson components: counts in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision, digamma, lgamma, stop_gradient

from jaxem.families import cells
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
    """rate (k, d), the mean count per unit."""

    rate: Any


@pytree(static=("missing",))
class Poisson(ExponentialFamily):
    """log p(x | k) = Σ_d x log rate_kd − rate_kd − log x!

    x: (n, d) counts 0, 1, 2, …  prior: a `GammaPrior` of every rate, or None.  missing: whether
    NaN marks a cell that was not observed, which then drops out.  Raises TypeError for another
    prior or missing. Source of the mixture: Hasselblad 1969.
    """

    prior: GammaPrior | None = None
    missing: bool = False

    columns = 1
    _separate = True

    def __post_init__(self):
        require_kind(self, GammaPrior)
        cells.require_flag(self.missing)

    @property
    def domain(self):
        return cells.domain_of(domains.COUNTS, self.missing)

    def posterior(self, params, x):
        """Column by column, so that large counts lose no digits."""
        filled, mask = self.filled(x)
        x_of, rate = filled[:, None], params.rate
        possible = (rate > 0) | (x_of == 0)
        each = log_poisson(x_of, jnp.where(possible, rate, 1))
        evidence = jnp.where(possible, cells.masked(mask, each), -jnp.inf).sum(-1)
        return None, self.supported(x, evidence)

    def standardize(self, x, weights):
        filled, mask = self.filled(x)
        rate = stop_gradient(column_scale(filled, weights, mask))
        total = rate.sum() if mask is None else jnp.where(mask, rate, 0).sum(-1)
        volume = total - self.base_measure(filled)
        volume = volume - jnp.matmul(filled, jnp.log(rate), precision=Precision.HIGHEST)
        return Standardized(Relative(self, rate), x, log_volume=volume)

    def natural(self, params):
        return log_or_impossible(params.rate)

    def natural_over(self, params, reference):
        return log_ratio(params.rate, reference)

    def log_partition_over(self, params, reference):
        return self.log_partitions_over(params, reference).sum(-1)

    def log_partitions_over(self, params, reference):
        return params.rate - reference

    def log_partition(self, params):
        return params.rate.sum(-1)

    def log_partitions(self, params):
        return params.rate

    def base_measure(self, x):
        return -lgamma(x + 1).sum(-1)

    def estimate(self, count, total):
        count = cells.by_column(count)
        if self.prior is None:
            return PoissonParams(total / count)
        events = jnp.maximum(total + self.prior.shape - 1, 0)
        return PoissonParams(events / (count + self.prior.rate))

    def variational(self):
        return GammaPoisson(self)

    @property
    def informed(self):
        return self._informed if self.prior is None else None

    def _informed(self, x, weights, k):
        """With an exponential prior of rates, whose mean is that of the column."""
        filled, mask = self.filled(x)
        scale = column_scale(filled, weights, mask)
        return Poisson(GammaPrior(1.0, 1 / scale), self.missing)

    def spaces(self, params):
        return PoissonParams(POSITIVE)

    def whitened(self, params, step):
        return PoissonParams(step.rate / jnp.sqrt(params.rate))

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.rate)

    def sample(self, key, params, z):
        return jax.random.poisson(key, params.rate[z]).astype(params.rate.dtype)

    def embed(self, x):
        return cells.filled_by_mean(jnp.sqrt(x)) if self.missing else jnp.sqrt(x)


@pytree(eq=False)
class GammaPosterior:
    """q(rate) = gamma(shape, rate), both (k, d); the mean shape/rate is a count per unit."""

    shape: Any
    rate: Any


@pytree
class GammaPoisson(Conjugate):
    """The variational bank of `Poisson`: E[log λ] = ψ(shape) − log rate, E[λ] = shape/rate."""

    family: Poisson

    def natural(self, params):
        return digamma(params.shape) - jnp.log(params.rate)

    def log_partition(self, params):
        return self.log_partitions(params).sum(-1)

    def log_partitions(self, params):
        return params.shape / params.rate

    def estimate(self, count, total):
        prior = self._prior
        rate = jnp.broadcast_to(cells.by_column(count) + prior.rate, total.shape)
        return GammaPosterior(total + prior.shape, rate)

    def log_prior(self, params):
        prior = self._prior
        return -divergence.gamma(params.shape, params.rate, prior.shape, prior.rate)

    def predictive(self, params, x):
        """Negative binomial: log of the gamma mixture of Poissons."""
        a, b = params.shape, params.rate
        x, mask = self.filled(x)
        x = x[:, None]
        each = lgamma(a + x) - lgamma(a) - lgamma(x + 1) - a * jnp.log1p(1 / b) - x * jnp.log1p(b)
        return cells.masked(mask, each).sum(-1)

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
