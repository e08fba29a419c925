"""Categorical components: codes from 0 in d independent columns (latent class analysis)."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import digamma

from jaxem.families import cells
from jaxem.families.conjugate import Conjugate, DirichletPosterior
from jaxem.families.exponential_family import ExponentialFamily, log_or_impossible, normalize
from jaxem.numerics import divergence
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.held import Held, averaged
from jaxem.protocol.model import IMPOSSIBLE
from jaxem.protocol.priors import DirichletPrior, require_kind
from jaxem.protocol.spaces import SIMPLEX


@pytree(eq=False)
class CategoricalParams:
    """probs (k, d, v): the probability of code v in column d, 0 beyond a column's levels."""

    probs: Any


@pytree(static=("levels", "missing"))
class Categorical(ExponentialFamily):
    """log p(x | k) = Σ_d log probs[k, d, x_d]

    Args:
      levels: the number of codes, an int for all columns or a tuple with one entry a column.
      prior: a `DirichletPrior` of every probability vector, or None.
      missing: whether NaN marks a cell that was not observed, which then drops out.

    x: (n, d) codes 0 … levels − 1, floating-point numbers where cells are NaN. Raises TypeError for
    another prior or levels that are no ints, ValueError for levels below 1. Source: the latent
    class model of Goodman 1974.
    """

    levels: int | tuple[int, ...]
    prior: DirichletPrior | None = None
    missing: bool = False

    _separate = True

    @property
    def domain(self):
        return cells.domain_of(domains.codes(self.levels), self.missing)

    def __post_init__(self):
        object.__setattr__(self, "levels", _levels(self.levels))
        require_kind(self, DirichletPrior)
        cells.require_flag(self.missing)

    def features(self, x):
        codes = x[:, :, None] == jnp.arange(self.widest)
        dtype = jnp.result_type(float) if jnp.issubdtype(x.dtype, jnp.integer) else x.dtype
        return codes.reshape(x.shape[0], -1).astype(dtype)

    def natural(self, params):
        return log_or_impossible(params.probs.reshape(params.probs.shape[0], -1))

    def masks(self, mask, m):
        return jnp.repeat(mask, m // mask.shape[1], axis=1)

    def log_partitions(self, params):
        return jnp.zeros(params.probs.shape[:2], params.probs.dtype)

    def estimate(self, count, total):
        counts = total.reshape(count.shape[0], -1, self.widest)
        if self.prior is not None:
            counts = jnp.maximum(counts + self.prior.concentration - 1, 0)
        is_level = jnp.arange(self.widest) < self.per_column(counts.shape[1])[:, None]
        return CategoricalParams(normalize(jnp.where(is_level, counts, 0), is_level))

    def restricted(self, held):
        one = held.probs
        k, d, v = one.group.shape
        rows = Held(one.fixed.reshape(k * d, v), one.group.reshape(k * d, v)).leaders

        def maximize(params, stats):
            total = averaged(rows, stats.total.reshape(k * d, v)).reshape(k, d * v)
            if self.missing:
                count = averaged(rows, stats.count.ravel()).reshape(k, d)
                stats = stats._replace(count=count)
            return self.maximize(params, stats._replace(total=total))

        return maximize

    def variational(self):
        return DirichletCategorical(self)

    def spaces(self, params):
        return CategoricalParams(SIMPLEX)

    def log_prior(self, params):
        if self.prior is None:
            return 0.0
        return self.prior.log_density(params.probs, self.per_column(params.probs.shape[1]))

    def sample(self, key, params, z):
        codes = jax.random.categorical(key, jnp.log(params.probs[z]), axis=-1)
        return codes.astype(params.probs.dtype)

    def n_parameters(self, params):
        k, d, _ = params.probs.shape
        return k * sum(int(v) - 1 for v in self.per_column(d))

    def embed(self, x):
        points = self.features(x)
        if not self.missing:
            return points
        mask = self.masks(x == x, points.shape[1])
        return cells.filled_by_mean(jnp.where(mask, points, jnp.nan))

    @property
    def widest(self):
        """The number of codes of the column that has most."""
        return self.levels if isinstance(self.levels, int) else max(self.levels)

    def per_column(self, d):
        """The number of codes of each of d columns, an array (d,)."""
        return np.asarray((self.levels,) * d if isinstance(self.levels, int) else self.levels)


def _levels(levels):
    many = isinstance(levels, (tuple, list))
    try:
        numbers = tuple(operator.index(v) for v in (levels if many else (levels,)))
    except TypeError as error:
        raise TypeError(f"levels must be an int or a tuple of ints, got {levels!r}") from error
    if not numbers or min(numbers) < 1:
        raise ValueError(f"levels must be 1 or more, got {levels!r}")
    return numbers if many else numbers[0]


@pytree
class DirichletCategorical(Conjugate):
    """The variational bank of `Categorical`: E[log p] = ψ(concentration) − ψ(its sum)."""

    family: Categorical

    def natural(self, params):
        a, is_level = params.concentration, self._is_level(params.concentration.shape[1])
        digamma_of_sum = digamma(jnp.where(is_level, a, 0).sum(-1, keepdims=True))
        return jnp.where(is_level, digamma(a) - digamma_of_sum, IMPOSSIBLE).reshape(a.shape[0], -1)

    def log_partitions(self, params):
        return jnp.zeros(params.concentration.shape[:2], params.concentration.dtype)

    def estimate(self, count, total):
        counts = total.reshape(count.shape[0], -1, self.family.widest)
        is_level = self._is_level(counts.shape[1])
        return DirichletPosterior(jnp.where(is_level, counts + self._prior.concentration, 1))

    def log_prior(self, params):
        a = params.concentration
        return -divergence.dirichlet(a, self._prior.concentration, self._is_level(a.shape[1]))

    def predictive(self, params, x):
        logs = jnp.log(self._mean(params)).reshape(params.concentration.shape[0], -1)
        x = self.features(x)[:, None] > 0
        return jnp.where(x, logs, 0).sum(-1)

    def sample(self, key, params, z):
        codes = jax.random.categorical(key, jnp.log(self._mean(params)[z]), axis=-1)
        return codes.astype(params.concentration.dtype)

    def _mean(self, params):
        a, is_level = params.concentration, self._is_level(params.concentration.shape[1])
        a = jnp.where(is_level, a, 0)
        return a / a.sum(-1, keepdims=True)

    def _is_level(self, d):
        """Which codes (d, v) are levels of their column."""
        return np.arange(self.family.widest) < self.family.per_column(d)[:, None]
