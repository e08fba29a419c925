"""The method of the Gaussian estimators: plain EM that stops as scikit-learn does, and the ridge.

scikit-learn adds a ridge to the covariances in every M-step. The objective has no term for it, so
that EM does not ascend it: it may rise and then fall. Where it turns its change is 0 far from any
fixed point, so that a change alone does not say when to stop.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxem.families.normal.gaussian import NormalParams
from jaxem.families.normal.normal import Normal
from jaxem.families.normal.wishart import NormalWishart
from jaxem.methods.em import EM
from jaxem.models.bayesian import BayesianMixture
from jaxem.models.mixing import MixtureParams
from jaxem.models.mixture import Mixture
from jaxem.numerics.tree import pytree
from jaxem.solver.recording import length


class ChangeMemory(NamedTuple):
    """inner: the memory of EM. objective: that of the step before. change: its last change, with a
    ridge at least `gain`: the `gain_of_m_step` of the step that comes."""

    inner: Any
    objective: Any
    change: Any
    gain: Any


@pytree(static=("is_late", "is_ascent"))
class ByChange:
    """Plain EM for criterion="change".

    is_late: whether the change of the step before counts, so that one more M-step is made after a
    change below tol: scikit-learn's GaussianMixture measures before its M-step. is_ascent: whether
    every step is known to raise the objective, so that a fall is an error. Where it is not, a
    change counts as at least the `gain_of_m_step`, which is 0 at a fixed point alone. An ascent
    gains that and more, so that the rule is the same there.
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
        return ChangeMemory(self.inner.start(model, params, x, weights), low, -low, 0 * weights[0])

    def evaluate(self, model, params, x, weights, memory=()):
        """The `Evaluation` of plain EM, with the change that counts as its signal."""
        memory = memory or self.start(model, params, x, weights)
        found = self.inner.evaluate(model, params, x, weights, memory.inner)
        change, gain = found.objective - memory.objective, memory.gain
        if not self.is_ascent:
            change = jnp.maximum(jnp.abs(change), memory.gain)
            gain = gain_of_m_step(model, params, found.proposal, weights)
        signal = found.signal._replace(gain=memory.change if self.is_late else change)
        if not self.is_ascent:
            signal = signal._replace(restarted=jnp.ones((), bool))
        memory = ChangeMemory(found.memory, found.objective, change, gain)
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


def gain_of_m_step(model, params, proposal, weights):
    """What an M-step from params to proposal gains of the function that it maximises, in nats.

    To second order, where it is half the squared length of the step in standard errors of all
    units; of a `BayesianMixture` with the means of its posterior as params.
    """
    if isinstance(model, BayesianMixture):
        model = Mixture(model.bank.normal, model.k)
        count = params.components.mean_precision
        params, proposal = (_means(q.components) for q in (params, proposal))
        total = count.sum()
    else:
        total = weights.sum()
    return total / 2 * jnp.square(length(model, params, proposal))


def _means(q):
    shares = q.mean_precision / q.mean_precision.sum()
    return MixtureParams(shares, NormalParams(q.mean, q.covariance))


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
