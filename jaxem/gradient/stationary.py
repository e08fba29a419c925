"""Where a fit stands still: params and q as one point, and a smooth map that holds it there.

F(q, θ) has the same stationary points whatever rule climbed it. So a fit by another rule than the
exact ones has the gradient of any smooth map that stands still where it does: the exact E-step and
M-step where there are such; else a step of q or θ along the slope of F, times the inverse of its
curvature in that coordinate alone. To first order that is an exact step, so J has the spectrum of
coordinate ascent, which at a maximum lies within the unit circle.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem.gradient.krylov import times
from jaxem.methods.em import EM, Exact
from jaxem.methods.m_steps import expected
from jaxem.numerics.descent import LEAST_CURVATURE
from jaxem.passes.sweep import row_sum
from jaxem.protocol.model import lacks
from jaxem.wrappers.factored import LONG, factored

FULL = 256
"""Numbers up to which the curvature is formed and inverted; above it its rows are measured."""

PROBES = 8
"""Random products from which they are."""

TIGHT, SLACK = 0.7, 10
"""q is at rest where a step moves it by less than SLACK·ε^TIGHT."""


@dataclass(frozen=True)
class Joint:
    """The map of models with a posterior, which leaves q out of the point.

    closed: θ moves by the model's own M-step, else along the slope.

    Elsewhere q is what the fit remembers of it beside params, and scale the constants of the map,
    which only say how fast it is: neither is differentiated.
    """

    closed: bool = True

    def kept(self, state):
        """q in the state of a finished loop."""
        return ()

    def inward(self, problem, params):
        """params in safe units."""
        return problem.view.inward(params)

    def outward(self, problem, params):
        """params in the units of the data."""
        return problem.view.outward(params)

    def spaces(self, problem, params):
        """The space of every leaf of params in safe units."""
        return problem.view.model.spaces(params)

    def settled(self, problem, params, q):
        """(q at rest at params, whether it is)."""
        return q, jnp.ones((), bool)

    def scale(self, problem, params, q):
        """What `step` multiplies slopes by."""
        return () if self.closed else self._metric(problem, params, self._q(problem, params, q))

    def step(self, problem, params, q, scale):
        """(params, q) after a step of the map."""
        view = problem.view
        if self.closed:
            return EM().map(view.model, params, view.data, problem.weights).proposal, q
        return self._along(problem, params, self._q(problem, params, q), scale), q

    def value(self, problem, params, q):
        """F per unit (n,)."""
        return problem.view.model.posterior(params, problem.view.data)[1]

    def _q(self, problem, params, q):
        """q as the expectation of the log joint takes it."""
        return problem.view.model.posterior(params, problem.view.data)[0]

    def _improved(self, problem, params, q, scale):
        """params after the M-step at a given q."""
        if not self.closed:
            return self._along(problem, params, q, scale)
        model, x = problem.view.model, problem.view.data
        return model.maximize(params, model.statistics(params, x, q, problem.weights))

    def _along(self, problem, params, q, scale):
        free = problem.view.model.coordinates(params)
        slope = jax.grad(_gain(problem, free, q))(free.origin)
        return free.params(free.origin + scale.times(slope))

    def _metric(self, problem, params, q):
        free = problem.view.model.coordinates(params)
        return Scale.of(_gain(problem, free, q), free.origin)


@dataclass(frozen=True)
class Factors(Joint):
    """The map of mean field, q_1, q_2, … and then θ, each to its best given the others."""

    def kept(self, state):
        return state.method.e_step.q

    def settled(self, problem, params, q):
        model, x = factored(problem.view.model), problem.view.data
        tol = jnp.finfo(q.dtype).eps ** TIGHT
        q, _ = model.ascended(params, x, q, tol, LONG)
        return q, jnp.max(jnp.abs(model.swept(params, x, q)[0] - q)) <= SLACK * tol

    def step(self, problem, params, q, scale):
        q, _ = factored(problem.view.model).swept(params, problem.view.data, q)
        return self._improved(problem, params, q, scale), q

    def value(self, problem, params, q):
        return factored(problem.view.model).free_energy(params, problem.view.data, q)

    def _q(self, problem, params, q):
        return q


@dataclass(frozen=True)
class Slopes(Joint):
    """The map of models with a free energy alone, q and θ at once."""

    def kept(self, state):
        return state.method.e_step.q

    def scale(self, problem, params, q):
        flat, unravel = ravel_pytree(q)
        of_q = Scale.of(lambda vector: _total(problem, params, unravel(vector)), flat)
        return super().scale(problem, params, q), of_q, flat

    def step(self, problem, params, q, scale):
        of_params, of_q, kept = scale
        flat, unravel = ravel_pytree(q)
        slope = jax.grad(lambda vector: _total(problem, params, unravel(vector)))(flat)
        moved = unravel(jnp.where(of_q.alive, flat + of_q.times(slope), kept))
        return self._improved(problem, params, q, of_params), moved

    def value(self, problem, params, q):
        return problem.view.model.free_energy(params, problem.view.data, q)

    def _q(self, problem, params, q):
        return q


class Scale(NamedTuple):
    """An inverse of the curvature of a gain, a matrix or only its diagonal, and the coordinates
    that the gain depends on at all: what no one reads, such as a triangle of a matrix, stays."""

    inverse: Any
    alive: Any

    def times(self, slope):
        return times(self.inverse, slope) if self.inverse.ndim == 2 else self.inverse * slope

    @classmethod
    def of(cls, gain, origin):
        size, eps = origin.size, float(jnp.finfo(origin.dtype).eps)
        if size == 0:
            return cls(jnp.zeros(0), jnp.zeros(0, bool))
        if size <= FULL:
            curvature = -jax.hessian(gain)(origin)
            alive = jnp.any(curvature != 0, axis=0)
            unit = jnp.sqrt(jnp.abs(jnp.diagonal(curvature)))
            unit = 1 / jnp.where(unit > 0, unit, 1)
            curvature = unit[:, None] * (curvature + curvature.T) / 2 * unit
            values, axes = jnp.linalg.eigh(jnp.where(jnp.isfinite(curvature), curvature, 0))
            values = jnp.abs(values)
            flat = values <= max(LEAST_CURVATURE, 8 * size * eps) * values.max()
            axes = unit[:, None] * axes
            return cls(times(axes / jnp.where(flat, jnp.inf, values), axes.T), alive)

        def squared(key):
            probe = jax.random.rademacher(key, (size,), origin.dtype)
            return jnp.square(jax.jvp(jax.grad(gain), (origin,), (probe,))[1])

        rows = jax.lax.map(squared, jax.random.split(jax.random.key(0), PROBES)).mean(0)
        return cls(jnp.where(rows > 0, 1 / jnp.sqrt(jnp.where(rows > 0, rows, 1)), 0), rows > 0)


def _gain(problem, free, q):
    """The expected log joint with the prior, of params as a vector, at a given q."""

    def gain(vector):
        params = free.params(vector)
        per_unit = expected(problem.view.model, params, problem.view.data, q)
        prior = problem.view.model.log_prior(params)
        return (_sum(problem, per_unit) + prior).astype(vector.dtype)

    return gain


def _total(problem, params, q):
    """F of all units."""
    value = problem.view.model.free_energy(params, problem.view.data, q)
    return _sum(problem, value).astype(problem.weights.dtype)


def _sum(problem, per_unit):
    weights = problem.weights
    sound = (weights > 0) | jnp.isfinite(per_unit)
    return row_sum(weights, jnp.where(sound, per_unit, 0).astype(weights.dtype))


def joint_of(method, model, x):
    """The `Joint` of fits by a method that is not exact EM, or None where none is known."""
    from jaxem.methods.blocks import Blocks
    from jaxem.methods.e_steps import Incremental, Stochastic, Tempered
    from jaxem.methods.m_steps import Gradient
    from jaxem.methods.online import OnlineEM
    from jaxem.methods.variational import Variational

    if isinstance(method, OnlineEM):
        if method.passes is None:
            return None
        method = EM()
    if not isinstance(method, EM) or type(method.m_step) not in (Exact, Gradient, Blocks):
        return None
    closed, e_step = model.closed(x), type(method.e_step)
    if hasattr(model, "at_rest"):
        return model.at_rest() if method.plain else None
    if factored(model) is not None:
        return Factors(closed)
    if lacks(model, "posterior", "log_joint"):
        return Slopes(closed) if e_step is Variational else None
    same = e_step in (Exact, Tempered, Incremental, Variational)
    same |= e_step is Stochastic and method.e_step.steps is not None  # exact in the end
    return Joint(closed) if same else None
