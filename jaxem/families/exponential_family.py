"""Exponential families as banks: log p(x | k) = base(x) + φ(x)·η_k − A_k, two matrix products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families import cells
from jaxem.numerics.tree import pytree
from jaxem.passes.linear import Linear, roomy
from jaxem.protocol.counts import is_empty, keep_empty, safe
from jaxem.protocol.held import averaged, is_held
from jaxem.protocol.model import IMPOSSIBLE, Bank
from jaxem.protocol.restriction import by_rows
from jaxem.protocol.units import Standardized
from jaxem.protocol.wrapper import Wrapper


class MeanStatistics(NamedTuple):
    """Σw (k,), or by column (k, d) where cells may be missing, and Σw·φ(x) (k, m)."""

    count: Any
    total: Any


class ExponentialFamily(Bank):
    """A bank whose log density is linear in features φ(x): log p(x | k) = base(x) + φ(x)·η_k − A_k.

    A family defines `features(x) -> (n, m)`, `natural(params) -> (k, m)`,
    `log_partition(params) -> (k,)`, `base_measure(x) -> (n,)`, which are φ, η, A and base, and
    `estimate(count (k,), total (k, m)) -> params`, the maximum likelihood estimate, or the maximum
    a posteriori one, from Σw and Σw·φ(x).

    A family of independent columns takes missing cells where it has a field `missing` and defines
    `log_partitions(params) -> (k, d)`, whose sum is A_k; `count` of `estimate` is then (k, d). Its
    features of missing cells count as 0, and masks of the cells are further features, with −A by
    column as coefficients.

    Functions that a family does not define raise NotImplementedError where they are needed. Source:
    Dempster, Laird & Rubin 1977, section 2; Sundberg 1974.
    """

    columns = 0
    """The number of features on which an entry of params (k, d) depends alone; 0: on others too."""

    missing = False
    """Whether a cell that is NaN was not observed."""

    unobserved = 0.0
    """The value that features are computed of in missing cells."""

    def features(self, x):
        """φ(x), shape (n, m); the data themselves by default."""
        return x

    def natural(self, params):
        """The natural parameters η_k of params, shape (k, m)."""
        raise NotImplementedError

    def log_partition(self, params):
        """The log partition function A_k at params, shape (k,)."""
        return 0.0

    def log_partitions(self, params):
        """A of every column at params, shape (k, d)."""
        raise NotImplementedError

    def base_measure(self, x):
        """The terms of log p(x) that do not depend on params, shape (n,). In missing cells x holds
        `unobserved`."""
        return 0.0

    def masks(self, mask, m):
        """The mask (n, d) of the cells of m features, shape (n, m)."""
        return jnp.tile(mask, (1, m // mask.shape[1]))

    def estimate(self, count, total):
        """Params from the sums of weights, count (k,), above 0, and of weighted features, total
        (k, m)."""
        raise NotImplementedError

    def natural_over(self, params, reference):
        """η_k − η of the params `reference`, computed without the loss of digits of that
        difference."""
        raise NotImplementedError

    def log_partition_over(self, params, reference):
        """A_k − A of the params `reference`."""
        return 0.0

    def log_partitions_over(self, params, reference):
        """`log_partitions` less those of `reference`, shape (k, d)."""
        raise NotImplementedError

    def filled(self, x):
        """x with `unobserved` in missing cells, and the mask (n, d) or None."""
        mask = cells.observed(x, self.missing)
        return cells.masked(mask, x, self.unobserved), mask

    def _features(self, x):
        """The features, and the masks of the cells where they may be missing."""
        x, mask = self.filled(x)
        features = self.features(x)
        if mask is None:
            return features
        features = jnp.where(self.masks(mask, features.shape[1]), features, 0)
        return jnp.concatenate([features, mask.astype(features.dtype)], axis=1)

    def _coefficients(self, params):
        """The coefficients (k, m) of `_features`, and a constant (k,)."""
        eta = self.natural(params)
        eta = jnp.where(eta == -jnp.inf, IMPOSSIBLE, eta)
        if not self.missing:
            return eta, -jnp.asarray(self.log_partition(params))
        return jnp.concatenate([eta, -self.log_partitions(params)], axis=1), jnp.zeros(())

    def _statistics(self, count, total, d):
        """The statistics from Σw (k,) and Σw·`_features` (k, m) of d columns."""
        if not self.missing:
            return MeanStatistics(count, total)
        return MeanStatistics(total[:, -d:], total[:, :-d])

    def init(self, key, x, weights):
        stats = self.statistics(None, x, None, weights)
        if self.missing:  # where no cell of a component was observed, those of all components
            stats = self._pooled(stats)
        return self.maximize(None, stats)

    def _pooled(self, stats):
        is_lost = is_empty(stats.count)
        of_features = self.masks(is_lost, stats.total.shape[1])
        return MeanStatistics(
            jnp.where(is_lost, stats.count.sum(0), stats.count),
            jnp.where(of_features, stats.total.sum(0), stats.total),
        )

    def posterior(self, params, x):
        eta, constant = self._coefficients(params)
        linear = _products(self._features(x), eta)
        evidence = linear + constant
        base = jnp.asarray(self.base_measure(self.filled(x)[0]))
        evidence = evidence + (base[:, None] if base.ndim else base)
        evidence = jnp.where(linear <= IMPOSSIBLE / 1e6, -jnp.inf, evidence)
        return None, self.supported(x, evidence)

    def supported(self, x, evidence):
        """`evidence` (n, k), −∞ or NaN for units outside the support: `Domain.outside`."""
        return self.domain.outside(x, evidence)

    def statistics(self, params, x, q, weights):
        total = jnp.matmul(weights.T, self._features(x), precision=Precision.HIGHEST)
        return self._statistics(weights.sum(0), total, x.shape[1])

    def _size_of_terms(self, params, stats):
        """For features that are not negative. An entry of η is a logarithm of a rounded number, so
        that its error is at least that of 1."""
        of_eta = self._sizes(self.natural(params), stats) + stats.total
        return of_eta.sum() + self._sizes_of_partition(params, stats).sum()

    def _sizes_of_partition(self, params, stats):
        """Σw·|A|."""
        of = self.log_partitions if self.missing else self.log_partition
        return stats.count * jnp.abs(of(params))

    @staticmethod
    def _sizes(eta, stats):
        """Σw·|φ(x)·η| (k, m); terms of impossible values count as 0."""
        return stats.total * jnp.where(eta <= IMPOSSIBLE / 1e6, 0, jnp.abs(eta))

    def linear(self, x):
        size = jax.eval_shape(self._features, x).shape[1]
        d = x.shape[1] if self.missing else 0

        def features(columns):
            rows = self._features(columns.T).T
            return jnp.concatenate([rows, jnp.ones((1, rows.shape[1]), rows.dtype)])

        def coefficients(params, level):
            eta, constant = self._coefficients(params)
            return jnp.concatenate([eta, (level + constant)[:, None]], axis=1)

        def base(x):
            measure = jnp.asarray(self.base_measure(self.filled(x)[0]))
            return measure if measure.ndim else None

        return Linear(
            size=size + 1,
            one=size,
            room=roomy(x),
            columns=lambda x: x.T,
            features=features,
            coefficients=coefficients,
            base=base,
            statistics=lambda params, sums: self._statistics(sums[-1], sums[:-1].T, d),
            terms=lambda params: None,
            lowest=IMPOSSIBLE / 1e6,
        )

    def standardize(self, x, weights):
        """The family without its base measure, which is then in the log volume."""
        if type(self).posterior is not ExponentialFamily.posterior:
            return Standardized(self, x)
        base = jnp.asarray(self.base_measure(self.filled(x)[0]))
        return Standardized(Relative(self), x, log_volume=-base)

    def inward(self, units, params):
        return params

    def outward(self, units, params):
        return params

    def maximize(self, params, stats):
        updated = self.estimate(safe(stats.count), stats.total)
        return keep_empty(stats.count, updated, params)

    def restricted(self, held):
        """A closed form for any fixed entries, and for tied entries, which share their statistics,
        where every entry is estimated from its own features (`columns`) and the hyperparameters
        are scalars."""
        (held_leaf,) = jax.tree.leaves(held, is_leaf=is_held)
        if not held_leaf.tied:
            return self.maximize if self.columns else by_rows(self, held)
        are_scalars = all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(self))
        if not (self.columns and are_scalars):
            return by_rows(self, held)
        (k, d), group = held_leaf.group.shape, held_leaf.group.ravel()

        def maximize(params, stats):
            total = stats.total.reshape(k, self.columns, d).swapaxes(1, 2).reshape(k * d, -1)
            count = stats.count.ravel() if self.missing else jnp.repeat(stats.count, d)
            count = averaged(group, count)
            updated = self.estimate(safe(count), averaged(group, total))
            updated = jax.tree.map(lambda leaf: leaf.reshape(k, d), updated)
            empty = is_empty(count).reshape(k, d)
            return jax.tree.map(lambda a, b: jnp.where(empty, a, b), params, updated)

        return maximize

    def log_prior(self, params):
        return 0.0


@jax.custom_jvp
def _products(features, eta):
    """Σ_m φ_m η_km (n, k). Its slope by φ leaves out impossible terms, where φ is 0: 0 · log 0 is 0
    with slope 0, as in `special.safe_xlogy`; of `IMPOSSIBLE`, times a large weight, it overflows.
    """
    return jnp.matmul(features, eta.T, precision=Precision.HIGHEST)


@_products.defjvp
def _products_jvp(primals, tangents):
    (features, eta), (by_features, by_eta) = primals, tangents
    slope = jnp.where(eta <= IMPOSSIBLE / 1e6, 0, eta)
    of_features = jnp.matmul(by_features, slope.T, precision=Precision.HIGHEST)
    of_eta = jnp.matmul(features, by_eta.T, precision=Precision.HIGHEST)
    return _products(features, eta), of_features + of_eta


@pytree
class Relative(Wrapper, ExponentialFamily):
    """A family without its base measure, which does not depend on params: the model of a fit.

    The base measure is summed once, as a log volume, so that its rounding error is in no difference
    of objectives. reference (m,): of a family with `natural_over`, the values that one component of
    all units has; then log p(x | k) − log p(x | reference), so that the terms of large counts
    cancel before they are rounded. None: log p(x | k) alone.
    """

    family: Any
    reference: Any = None

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

    @property
    def missing(self):
        return self.family.missing

    @property
    def unobserved(self):
        return self.family.unobserved

    def masks(self, mask, m):
        return self.family.masks(mask, m)

    def features(self, x):
        return self.family.features(x)

    def natural(self, params):
        if self.reference is None:
            return self.family.natural(params)
        return self.family.natural_over(params, self.reference)

    def log_partition(self, params):
        if self.reference is None:
            return self.family.log_partition(params)
        return self.family.log_partition_over(params, self.reference)

    def log_partitions(self, params):
        if self.reference is None:
            return self.family.log_partitions(params)
        return self.family.log_partitions_over(params, self.reference)

    def _size_of_terms(self, params, stats):
        if self.reference is None:
            return ExponentialFamily._size_of_terms(self, params, stats)
        # Differences of logarithms have the relative precision of η.
        of_partition = self._sizes_of_partition(params, stats)
        return self._sizes(self.natural(params), stats).sum() + of_partition.sum()


def normalize(counts, possible=1.0):
    """counts divided by their sum over the last axis; where all are 0, `possible` divided by its
    sum."""
    total = counts.sum(-1, keepdims=True)
    uniform = jnp.broadcast_to(jnp.asarray(possible, counts.dtype), counts.shape)
    uniform = uniform / uniform.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), uniform)


def log_ratio(value, reference):
    """log(value / reference), exact to rounding where it is nearly 0 too; `IMPOSSIBLE` where value
    is 0."""
    at = jnp.where(value > 0, value, reference)
    excess = (at - reference) / reference
    is_near = jnp.abs(excess) < 0.5
    ratio = jnp.where(is_near, 1, at / reference)
    log = jnp.where(is_near, jnp.log1p(jnp.where(is_near, excess, 0)), jnp.log(ratio))
    return jnp.where(value > 0, log, IMPOSSIBLE)


def log_or_impossible(probability):
    """log p, and `IMPOSSIBLE` where p is 0."""
    positive = probability > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probability, 1)), IMPOSSIBLE)
