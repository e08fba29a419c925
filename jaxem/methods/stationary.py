"""Where a fit stands still: a smooth map of params and q with the fixed points of a method.

F(q, θ) has the same stationary points whatever rule climbed it. So a fit by another rule than the
exact ones has the gradient of any smooth map that stands still where it does: the exact E-step and
M-step where there are such; else a step of q or θ along the slope of F, times the inverse of its
curvature in that coordinate alone. To first order that is an exact step, so the Jacobian of the map
has the spectrum of coordinate ascent, which at a maximum lies within the unit circle.

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
"""q is at rest where a step moves it by less than SLACK·ε^TIGHT."""


@dataclass(frozen=True)
class StationaryMap:
    """The EM map of models with a posterior, which leaves q out of the point that stands still.

    closed: θ moves by the model's own M-step, else along the slope.

    Elsewhere q is what the fit remembers of it beside params, and scale the constants of the map,
    which only say how fast it is: neither is differentiated. A `problem` has the model in safe
    units, `climbed`, with its data and weights.
    """

    closed: bool = True

    def kept(self, state):
        """q in the state of a finished loop."""
        return ()

    def inward(self, problem, params):
        """params in safe units."""
        return problem.inward(params)

    def outward(self, problem, params):
        """params in the units of the data."""
        return problem.outward(params)

    def spaces(self, problem, params):
        """The space of every leaf of params in safe units."""
        return problem.climbed.spaces(params)

    def rested(self, problem, params, q):
        """(q at rest at params, whether it is)."""
        return q, jnp.ones((), bool)

    def scale(self, problem, params, q):
        """What `step` multiplies slopes by."""
        return () if self.closed else self._metric(problem, params, self._q(problem, params, q))

    def step(self, problem, params, q, scale):
        """(params, q) after a step of the map."""
        if self.closed:
            sums = collect(problem.climbed, params, problem.data, problem.weights)
            return problem.climbed.maximize(params, sums.statistics), q
        return self._along(problem, params, self._q(problem, params, q), scale), q

    def jacobian(self, problem):
        """(params) -> the derivative of `step` by params, (P, P), or None where only products with
        it are known."""
        known, model = None, problem.climbed
        exact = type(self) is StationaryMap and self.closed and not is_large(model, problem.data)
        if exact and has(model, SmoothMap):
            known = model.smooth_map()
        if known is None:
            return None
        return lambda params: known.jacobian(params, problem.data, problem.weights)

    def value(self, problem, params, q):
        """F per unit (n,)."""
        return problem.climbed.posterior(params, problem.data)[1]

    def _q(self, problem, params, q):
        """q as the expectation of the log joint takes it."""
        return problem.climbed.posterior(params, problem.data)[0]

    def _improved(self, problem, params, q, scale):
        """params after the M-step at a given q."""
        if not self.closed:
            return self._along(problem, params, q, scale)
        model, x = problem.climbed, problem.data
        return model.maximize(params, model.statistics(params, x, q, problem.weights))

    def _along(self, problem, params, q, scale):
        free = coordinates(problem.climbed, params)
        slope = jax.grad(_gain(problem, free, q))(free.origin)
        return free.params(free.origin + scale.times(slope))

    def _metric(self, problem, params, q):
        free = coordinates(problem.climbed, params)
        return Curvature.of(_gain(problem, free, q), free.origin)


def _gain(problem, free, q):
    """The expected log joint with the prior, of params as a vector, at a given q."""

    def gain(vector):
        params = free.params(vector)
        per_unit = expected_log_joint(problem.climbed, params, problem.data, q)
        prior = problem.climbed.log_prior(params)
        return (summed_over(problem, per_unit) + prior).astype(vector.dtype)

    return gain


def summed_over(problem, per_unit):
    """Σ w·per_unit over the units of a problem; a weight of 0 has its gradient."""
    weights = problem.weights
    sound = (weights > 0) | jnp.isfinite(per_unit)
    return row_sum(weights, jnp.where(sound, per_unit, 0).astype(weights.dtype))
