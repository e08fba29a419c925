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

    A family defines `features(x) -> (n, m)`, `natural(params) -> (k, m)`,
    `log_partition(params) -> (k,)`, `base_measure(x) -> (n,)` (0 by default) and
    `estimate(count (k,), total (k, m)) -> params`, the maximum likelihood estimate, or the maximum
    a posteriori one, from Σw and Σw·φ(x).
    """

    columns = 0
    """The number of features on which an entry of params (k, d) depends alone; 0: on others too."""

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
        """The terms of log p(x) that do not depend on params, shape (n,)."""
        return 0.0

    def estimate(self, count, total):
        """params from the sums of weights and of weighted features; count is above 0."""
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
        evidence = jnp.where(linear <= IMPOSSIBLE / 1e6, -jnp.inf, evidence)
        return None, self.supported(x, evidence)

    def supported(self, x, evidence):
        """`evidence` (n, k), −∞ or NaN for units outside the support: `Domain.outside`."""
        return self.domain.outside(x, evidence)

    def statistics(self, params, x, q, weights):
        total = jnp.matmul(weights.T, self.features(x), precision=Precision.HIGHEST)
        return MeanStatistics(weights.sum(0), total)

    def linear(self, x):
        size = jax.eval_shape(self.features, x).shape[1]

        def features(columns):
            rows = self.features(columns.T).T
            return jnp.concatenate([rows, jnp.ones((1, rows.shape[1]), rows.dtype)])

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
        """The family without its base measure, which is in the log volume."""
        if type(self).posterior is not ExponentialFamily.posterior:
            return Standardized(self, x)
        return Standardized(Relative(self), x, log_volume=-jnp.asarray(self.base_measure(x)))

    def inward(self, units, params):
        return params

    def outward(self, units, params):
        return params

    def maximize(self, params, stats):
        updated = self.estimate(safe(stats.count), stats.total)
        return keep_empty(stats.count, updated, params)

    def restricted(self, held):
        """Fixed entries in any way. Tied entries share their statistics, where every entry is
        estimated from its own features (`columns`) and the hyperparameters are scalars."""
        (held_leaf,) = jax.tree.leaves(held, is_leaf=is_held)
        if not held_leaf.tied:
            return self.maximize if self.columns else by_rows(self, held)
        are_scalars = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self))
        if not (self.columns and are_scalars):
            return by_rows(self, held)
        (k, d), group = held_leaf.group.shape, held_leaf.group.ravel()

        def maximize(params, stats):
            total = stats.total.reshape(k, self.columns, d).swapaxes(1, 2).reshape(k * d, -1)
            count = averaged(group, jnp.repeat(stats.count, d))
            updated = self.estimate(safe(count), averaged(group, total))
            updated = jax.tree.map(lambda leaf: leaf.reshape(k, d), updated)
            empty = is_empty(count).reshape(k, d)
            return jax.tree.map(lambda a, b: jnp.where(empty, a, b), params, updated)

        return maximize

    def log_prior(self, params):
        return 0.0


@pytree
class Relative(Wrapper, ExponentialFamily):
    """A family without its base measure, which does not depend on params: the model of a fit.

    The base measure is summed once, as a log volume, so that its rounding error is in no difference
    of objectives.
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

    def supported(self, x, evidence):
        return evidence

    def variational(self):
        return self

    def features(self, x):
        return self.family.features(x)

    def natural(self, params):
        return self.family.natural(params)

    def log_partition(self, params):
        return self.family.log_partition(params)


def normalize(counts, possible=1.0):
    """counts divided by their sum over the last axis; where all are 0, `possible` divided by its
    sum."""
    total = counts.sum(-1, keepdims=True)
    uniform = jnp.broadcast_to(jnp.asarray(possible, counts.dtype), counts.shape)
    uniform = uniform / uniform.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), uniform)


def log_or_impossible(probability):
    """log p, and `IMPOSSIBLE` where p is 0."""
    positive = probability > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probability, 1)), IMPOSSIBLE)
