"""A smooth map of params and q that has the fixed points of a method: the stationary map.

The stationary points of F(q, θ) do not depend on the rules by which F is maximised. So the gradient
through a fit is that of any smooth map with the same fixed points. The map is the exact E-step and
M-step where the model has them. Otherwise q or θ moves along the gradient of F, multiplied by the
inverse of the curvature of F in q alone or in θ alone. To first order that is an exact step, so the
Jacobian of the map has the spectrum of coordinate ascent, which at a maximum lies within the unit
circle.

A rule for q names its map with `stationary(model, closed)`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxem.numerics.curvature import Curvature
from jaxem.passes.chunks import row_sum
from jaxem.passes.collect import collect, is_large
from jaxem.protocol.capabilities import SmoothMap, has
from jaxem.protocol.derived import expected_log_joint
from jaxem.wrappers.restricted import coordinates

TIGHT, SLACK = 0.7, 10
"""q has converged where a step changes it by less than SLACK·ε^TIGHT, with ε of the dtype."""


@dataclass(frozen=True)
class StationaryMap:
    """The EM map of models with a posterior. Its fixed point is of params alone, without q.

    closed: whether θ moves by the model's own M-step, else along the gradient of F.

    In subclasses the fixed point includes q, which is taken from the state of the fit. `scale`
    holds the constants of the map; they determine its rate of convergence, not its fixed points,
    and are not differentiated. `problem.climbed` is the model in the units of the arithmetic, with
    the data and weights in `problem`.
    """

    closed: bool = True

    def q_of(self, state):
        """q in the final state of a climb."""
        return ()

    def inward(self, problem, params):
        """params in the units of the arithmetic."""
        return problem.inward(params)

    def outward(self, problem, params):
        """params in the units of the data."""
        return problem.outward(params)

    def spaces(self, problem, params):
        """The space of every leaf of params in the units of the arithmetic."""
        return problem.climbed.spaces(params)

    def converge_q(self, problem, params, q):
        """(q iterated to convergence at fixed params, whether it has converged)."""
        return q, jnp.ones((), bool)

    def scale(self, problem, params, q):
        """The inverse curvature by which `step` multiplies gradients; () where it has none."""
        return () if self.closed else self._metric(problem, params, self._q(problem, params, q))

    def step(self, problem, params, q, scale):
        """(params, q) after a step of the map."""
        if self.closed:
            sums = collect(problem.climbed, params, problem.data, problem.weights)
            return problem.climbed.maximize(params, sums.statistics), q
        return self._ascended(problem, params, self._q(problem, params, q), scale), q

    def jacobian(self, problem):
        """A function of params, the derivative (P, P) of `step` by params; None where the model has
        none, and only products with it can be computed."""
        known, model = None, problem.climbed
        is_em_map = (
            type(self) is StationaryMap and self.closed and not is_large(model, problem.data)
        )
        if is_em_map and has(model, SmoothMap):
            known = model.smooth_map()
        if known is None:
            return None
        return lambda params: known.jacobian(params, problem.data, problem.weights)

    def value(self, problem, params, q):
        """F per unit (n,)."""
        return problem.climbed.posterior(params, problem.data)[1]

    def _q(self, problem, params, q):
        """q in the form that `expected_log_joint` takes."""
        return problem.climbed.posterior(params, problem.data)[0]

    def _improved(self, problem, params, q, scale):
        """params after the M-step at a given q."""
        if not self.closed:
            return self._ascended(problem, params, q, scale)
        model, x = problem.climbed, problem.data
        return model.maximize(params, model.statistics(params, x, q, problem.weights))

    def _ascended(self, problem, params, q, scale):
        """params after a step along the gradient of F."""
        free = coordinates(problem.climbed, params)
        slope = jax.grad(_gain(problem, free, q))(free.origin)
        return free.params(free.origin + scale.times(slope))

    def _metric(self, problem, params, q):
        free = coordinates(problem.climbed, params)
        return Curvature.of(_gain(problem, free, q), free.origin)


def _gain(problem, free, q):
    """The function of params, as a vector, that the M-step maximises at a given q: the expected log
    joint plus the log prior."""

    def gain(vector):
        params = free.params(vector)
        per_unit = expected_log_joint(problem.climbed, params, problem.data, q)
        prior = problem.climbed.log_prior(params)
        return (summed_over(problem, per_unit) + prior).astype(vector.dtype)

    return gain


def summed_over(problem, per_unit):
    """Σ w·per_unit over the units of a problem. Its gradient includes that by weights of 0."""
    weights = problem.weights
    is_usable = (weights > 0) | jnp.isfinite(per_unit)
    return row_sum(weights, jnp.where(is_usable, per_unit, 0).astype(weights.dtype))
