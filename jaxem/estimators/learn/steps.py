"""The method of the Gaussian estimators: plain EM that stops as scikit-learn does, and the ridge.

scikit-learn adds a ridge to the covariances in every M-step. The objective has no term for it, so
that EM does not ascend it: it may fall, and its last change says when to stop.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxem.families.normal.normal import Normal
from jaxem.families.normal.wishart import NormalWishart
from jaxem.methods.em import EM
from jaxem.numerics.tree import pytree


class ChangeMemory(NamedTuple):
    """inner: the memory of EM. objective: that of the step before. change: its last change."""

    inner: Any
    objective: Any
    change: Any


@pytree(static=("is_late", "is_ascent"))
class ByChange:
    """Plain EM for criterion="change".

    is_late: whether the change of the step before counts, so that one more M-step is made after a
    change below tol: scikit-learn's GaussianMixture measures before its M-step. is_ascent: whether
    every step is known to raise the objective, so that a fall is an error.
    """

    is_late: bool
    is_ascent: bool
    inner: EM = EM(accelerator=None)
    plain = False
    accelerator = None

    @property
    def prepares(self):
        """As of `EM`."""
        return self.inner.prepares

    def suited(self, model, x):
        return self

    def stationary(self, model, x):
        """None: estimators are not differentiated."""
        return None

    def start(self, model, params, x, weights):
        low = jnp.asarray(-jnp.inf, weights.dtype)
        return ChangeMemory(self.inner.start(model, params, x, weights), low, -low)

    def evaluate(self, model, params, x, weights, memory=()):
        """The `Evaluation` of plain EM, with the change that counts as its signal."""
        memory = memory or self.start(model, params, x, weights)
        found = self.inner.evaluate(model, params, x, weights, memory.inner)
        change = found.objective - memory.objective
        signal = found.signal._replace(gain=memory.change if self.is_late else change)
        if not self.is_ascent:
            signal = signal._replace(restarted=jnp.ones((), bool))
        memory = ChangeMemory(found.memory, found.objective, change)
        return found._replace(memory=memory, signal=signal)

    def map(self, model, params, x, weights, memory=()):
        """One step."""
        return self.evaluate(model, params, x, weights, memory)

    def measures(self, n_iter):
        """True: the objective is that of all units at the params of the step."""
        return True

    def log_likelihood(self, model, params, x, weights):
        """None: the objective stands for it."""
        return None


def with_ridge(structure, stats, ridge):
    """Statistics of normal components whose M-step adds the variances `ridge`, a number or (d,), to
    the diagonal of every covariance."""
    d = stats.first.shape[1]
    ridge = jnp.broadcast_to(jnp.asarray(ridge, stats.first.dtype), (d,))
    if structure.one_variance:
        added = stats.count * ridge.sum()
    elif structure.shared:
        added = stats.count.sum() * structure.on_diagonal(ridge)
    else:
        variances = structure.on_diagonal(ridge)
        added = stats.count.reshape(-1, *(1,) * variances.ndim) * variances
    return stats._replace(second=stats.second + added)


@pytree(static=("covariance", "missing"))
class RidgedNormal(Normal):
    """`Normal` with scikit-learn's ridge: M-steps add `ridge` to the diagonal of every covariance.

    ridge: a number above 0, in squared units of the data; (d,) in the units of the arithmetic. The
    M-step is not the maximum of the likelihood: no step is known to raise it. A feature that is the
    same in all units has the variance `ridge`.
    """

    ridge: Any = 0.0

    def maximize_weighted(self, params, stats, scatter_count):
        stats = with_ridge(self.structure, stats, self.ridge)
        return super().maximize_weighted(params, stats, scatter_count)

    def variational(self):
        return RidgedWishart(self)

    def standardize(self, x, weights, copy=False):
        found = super().standardize(x, weights, copy)
        limits = found.model.limits
        limits = limits._replace(added=jnp.zeros_like(limits.added))
        ridge = self.ridge / jnp.square(found.units.scale)
        return found._replace(model=dataclasses.replace(found.model, limits=limits, ridge=ridge))


@pytree
class RidgedWishart(NormalWishart):
    """The variational bank of `RidgedNormal`."""

    def maximize(self, params, stats):
        stats = with_ridge(self.normal.structure, stats, self.normal.ridge)
        return super().maximize(params, stats)

    def standardize(self, x, weights):
        inner = self.normal.standardize(x, weights)
        return inner._replace(model=RidgedWishart(inner.model))
