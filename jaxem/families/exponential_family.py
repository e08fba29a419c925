"""Exponential families as banks: log p(x | k) = base(x) + φ(x)·η_k − A_k, two matrix products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.tree import pytree
from jaxem.passes.linear import Linear, roomy
from jaxem.protocol.counts import is_empty, keep_empty, safe
from jaxem.protocol.held import averaged, is_held
from jaxem.protocol.model import IMPOSSIBLE, Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.units import Standardized
from jaxem.protocol.wrapper import Wrapper


class MeanStatistics(NamedTuple):
    """Σw (k,) and Σw·φ(x) (k, m)."""

    count: Any
    total: Any


class ExponentialFamily(Bank):
    """A bank whose density is linear in features of the data.

    A family writes `features(x) -> (n, m)`, `natural(params) -> (k, m)`,
    `log_partition(params) -> (k,)`, `base_measure(x) -> (n,)` (0 by default) and
    `estimate(count (k,), total (k, m)) -> params`, the maximum likelihood estimate, or the maximum
    a posteriori one, from Σw and Σw·φ(x).
    """

    columns = 0
    """Features for every entry of params (k, d), which depends on these alone; 0: not so."""

    def features(self, x):
        """φ(x), shape (n, m); the data themselves by default."""
        return x

    def natural(self, params):
        """η_k, shape (k, m)."""
        raise NotImplementedError

    def log_partition(self, params):
        """A_k, shape (k,)."""
        return 0.0

    def base_measure(self, x):
        """The part of log p(x) that no parameter changes, shape (n,)."""
        return 0.0

    def estimate(self, count, total):
        """params from the sums of weights and of weighted features; no count is 0."""
        raise NotImplementedError

    def init(self, key, x, weights):
        return self.maximize(None, self.statistics(None, x, None, weights))

    def posterior(self, params, x):
        eta = self.natural(params)
        eta = jnp.where(eta == -jnp.inf, IMPOSSIBLE, eta)
        linear = jnp.matmul(self.features(x), eta.T, precision=Precision.HIGHEST)
        evidence = linear - self.log_partition(params)
        base = jnp.asarray(self.base_measure(x))
        evidence = evidence + (base[:, None] if base.ndim else base)
        return None, jnp.where(linear > IMPOSSIBLE / 1e6, evidence, -jnp.inf)

    def statistics(self, params, x, q, weights):
        total = jnp.matmul(weights.T, self.features(x), precision=Precision.HIGHEST)
        return MeanStatistics(weights.sum(0), total)

    def linear(self, x):
        size = jax.eval_shape(self.features, x).shape[1]

        def features(columns):
            own = self.features(columns.T).T
            return jnp.concatenate([own, jnp.ones((1, own.shape[1]), own.dtype)])

        def coefficients(params, level):
            eta = self.natural(params)
            eta = jnp.where(eta == -jnp.inf, IMPOSSIBLE, eta)
            level = level - jnp.asarray(self.log_partition(params))
            return jnp.concatenate([eta, level[:, None]], axis=1)

        def base(x):
            measure = jnp.asarray(self.base_measure(x))
            return measure if measure.ndim else None

        return Linear(
            size=size + 1,
            one=size,
            room=roomy(x),
            columns=lambda x: x.T,
            features=features,
            coefficients=coefficients,
            base=base,
            statistics=lambda params, sums: MeanStatistics(sums[-1], sums[:-1].T),
            terms=lambda params: None,
            lowest=IMPOSSIBLE / 1e6,
        )

    def standardize(self, x, weights):
        """Relative to the base measure, which is a part of the log volume."""
        if type(self).posterior is not ExponentialFamily.posterior:
            return Standardized(self, x)
        return Standardized(Relative(self), x, log_volume=-jnp.asarray(self.base_measure(x)))

    def inward(self, units, params):
        return params

    def outward(self, units, params):
        return params

    def maximize(self, params, stats):
        new = self.estimate(safe(stats.count), stats.total)
        return keep_empty(stats.count, new, params)

    def restricted(self, held):
        """Entries that are held one by one; those that are equal share their statistics, where
        every entry is estimated from its own (`columns`) by one rule for all."""
        (one,) = jax.tree.leaves(held, is_leaf=is_held)
        if not one.tied:
            return self.maximize if self.columns else by_rows(self, held)
        alike = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self))
        if not (self.columns and alike):
            return by_rows(self, held)
        (k, d), group = one.group.shape, one.group.ravel()

        def maximize(params, stats):
            total = stats.total.reshape(k, self.columns, d).swapaxes(1, 2).reshape(k * d, -1)
            count = averaged(group, jnp.repeat(stats.count, d))
            new = self.estimate(safe(count), averaged(group, total))
            new = jax.tree.map(lambda leaf: leaf.reshape(k, d), new)
            empty = is_empty(count).reshape(k, d)
            return jax.tree.map(lambda a, b: jnp.where(empty, a, b), params, new)

        return maximize

    def log_prior(self, params):
        return 0.0


@pytree
class Relative(Wrapper, ExponentialFamily):
    """A family relative to its base measure, which no parameter changes: what a fit climbs.

    The base measure is summed once, as a log volume, and its rounding is in no difference of two
    objectives.
    """

    family: Any

    posterior = ExponentialFamily.posterior
    linear = ExponentialFamily.linear
    standardize = None

    @property
    def wrapped(self):
        return self.family

    def base_measure(self, x):
        return 0.0

    def variational(self):
        return self

    def features(self, x):
        return self.family.features(x)

    def natural(self, params):
        return self.family.natural(params)

    def log_partition(self, params):
        return self.family.log_partition(params)


def normalize(counts, possible=1.0):
    """Shares of the last axis; even ones over what is `possible` where every count is 0."""
    total = counts.sum(-1, keepdims=True)
    even = jnp.broadcast_to(jnp.asarray(possible, counts.dtype), counts.shape)
    even = even / even.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), even)


def log_or_impossible(probability):
    """log p, and `IMPOSSIBLE` where p is 0."""
    positive = probability > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probability, 1)), IMPOSSIBLE)
