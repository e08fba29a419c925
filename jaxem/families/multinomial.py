"""Multinomial components: rows of counts over v categories."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision, digamma, lgamma, stop_gradient

from jaxem.families.conjugate import Conjugate, DirichletPosterior
from jaxem.families.exponential_family import (
    ExponentialFamily,
    Relative,
    log_or_impossible,
    log_ratio,
    normalize,
)
from jaxem.families.units import column_scale
from jaxem.numerics import divergence
from jaxem.numerics.special import log_poisson
from jaxem.numerics.sums import excess
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.held import averaged
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.priors import DirichletPrior, require_kind
from jaxem.protocol.spaces import SIMPLEX
from jaxem.protocol.units import Standardized


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

    x: (n, v) counts; rows may differ in N. Raises TypeError for another prior, TypeError or
    ValueError for trials that are no int of 1 or more. Source of the mixture: Nigam, McCallum,
    Thrun & Mitchell 2000.
    """

    prior: DirichletPrior | None = None
    trials: int | None = None

    domain = domains.COUNTS
    _separate = True

    def __post_init__(self):
        require_kind(self, DirichletPrior)
        if self.trials is not None:
            finite_number(self.trials, "trials", 1)
            if not isinstance(self.trials, (int, np.integer)):
                raise TypeError(f"trials must be an int of 1 or more, got {self.trials!r}")

    def posterior(self, params, x):
        """As the log density of Poissons of rates N · probs, given their sum N, so that large
        counts lose few digits."""
        x_of, total, probs = x[:, None], x.sum(-1)[:, None], params.probs
        possible = (probs > 0) | (x_of == 0)
        rate = total[:, :, None] * jnp.where(possible, probs, 1)
        each = jnp.where(possible, log_poisson(x_of, rate), -jnp.inf).sum(-1)
        evidence = each - log_poisson(total, total) + total * excess(probs)
        return None, self.supported(x, evidence)

    def standardize(self, x, weights):
        mean = column_scale(x, weights)
        is_used = jnp.any((weights > 0)[:, None] & (x > 0), axis=0)
        probs = stop_gradient(jnp.where(is_used, normalize(jnp.where(is_used, mean, 0)), 1))
        of_reference = jnp.matmul(x, jnp.log(probs), precision=Precision.HIGHEST)
        volume = -self.base_measure(x) - of_reference
        return Standardized(Relative(self, probs), x, log_volume=volume)

    def natural(self, params):
        return log_or_impossible(params.probs)

    def natural_over(self, params, reference):
        """As in `ExponentialFamily`, of probabilities divided by their sum, so that their rounding
        errors count little. reference: (v,) probabilities."""
        return log_ratio(params.probs, reference) - jnp.log1p(excess(params.probs))[:, None]

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
        return DirichletMultinomial(self)

    def spaces(self, params):
        return MultinomialParams(SIMPLEX)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior.log_density(params.probs)

    def sample(self, key, params, z):
        """Counts (n, v) of `trials` draws each. ValueError without trials."""
        if self.trials is None:
            raise ValueError("to sample, give Multinomial(trials=N), the counts in a row")
        draws = operator.index(self.trials)
        shape = (draws, z.shape[0])
        codes = jax.random.categorical(key, jnp.log(params.probs[z]), axis=-1, shape=shape)
        each = jax.nn.one_hot(codes, params.probs.shape[1], dtype=params.probs.dtype)
        return each.sum(0)

    def embed(self, x):
        total = jnp.maximum(x.sum(-1, keepdims=True), 1)
        return jnp.sqrt(x / total)


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
        component = jnp.arange(z.shape[0])  # every unit has probabilities of its own
        return self.family.sample(draw, MultinomialParams(probs), component)
