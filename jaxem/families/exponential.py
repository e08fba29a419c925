"""Exponential components: waiting times in d independent columns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families import cells
from jaxem.families.exponential_family import ExponentialFamily, Relative
from jaxem.families.units import column_scale
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.priors import GammaPrior, require_kind
from jaxem.protocol.spaces import POSITIVE
from jaxem.protocol.units import Standardized


@pytree(eq=False)
class ExponentialParams:
    """rate (k, d), the inverse of the mean, in inverse units of the data."""

    rate: Any


@pytree(static=("missing",))
class Exponential(ExponentialFamily):
    """log p(x | k) = Σ_d log rate_kd − rate_kd x

    x: (n, d), not negative.  prior: a `GammaPrior` of every rate, or None.  floor: the smallest
    mean allowed, in units of the data; None: so far below the data's mean that only a component of
    zeros reaches it, and the fit then has the status DEGENERATE.
    missing: whether NaN marks a cell that was not observed, which then drops out. Raises TypeError
    for another prior or missing, ValueError for a floor below 0. Source of the mixture: Hasselblad
    1969.
    """

    prior: GammaPrior | None = None
    floor: Any = None
    missing: bool = False

    columns = 1
    _separate = True

    @property
    def domain(self):
        return cells.domain_of(domains.NONNEGATIVE, self.missing)

    def __post_init__(self):
        require_kind(self, GammaPrior)
        cells.require_flag(self.missing)
        if self.floor is not None:
            finite_number(self.floor, "floor")

    def natural(self, params):
        return -params.rate

    def log_partition(self, params):
        return -jnp.log(params.rate).sum(-1)

    def log_partitions(self, params):
        return -jnp.log(params.rate)

    def estimate(self, count, total):
        events, time = cells.by_column(count), total
        if self.prior is not None:
            events = jnp.maximum(events + self.prior.shape - 1, 0)
            time = time + self.prior.rate
        return ExponentialParams(events / jnp.maximum(time, events * self._floor))

    def spaces(self, params):
        return ExponentialParams(POSITIVE)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.rate)

    def degenerate(self, params):
        return jnp.any(params.rate * self._floor >= 0.999, axis=-1)

    def sample(self, key, params, z):
        rate = params.rate[z]
        return jax.random.exponential(key, rate.shape, rate.dtype) / rate

    def embed(self, x):
        points = jnp.log(jnp.maximum(x, 1e-3))
        return cells.filled_by_mean(points) if self.missing else points

    def standardize(self, x, weights):
        filled, mask = self.filled(x)
        scale = stop_gradient(column_scale(filled, weights, mask))
        prior = self.prior
        if prior is not None:
            prior = GammaPrior(prior.shape, prior.rate / scale)
        floor = 8 * float(jnp.finfo(x.dtype).eps)
        floor = floor if self.floor is None else self.floor / scale
        model = Exponential(prior, floor, self.missing)
        volume = cells.volume(jnp.log(scale), mask)
        return Standardized(Relative(model), x / scale, scale, volume)

    def inward(self, scale, params):
        return ExponentialParams(params.rate * scale)

    def outward(self, scale, params):
        return ExponentialParams(params.rate / scale)

    @property
    def _floor(self):
        return 0.0 if self.floor is None else self.floor
