"""Gains too small for the objective to show, from the length of the steps.

A float32 log-likelihood is known to about 1e-6 a unit, however well it is summed: the coefficients
of a density are rounded once for all units. A step is known far better. Near a maximum its gain is
proportional to ⟨Δ_t, Δ_{t−1}⟩ of two steps in the metric of the complete data: EM contracts along
each of its modes, so that this is positive, while steps of rounding alone turn back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.methods.acceleration import Chart, dot
from jaxem.numerics.tree import pytree


class Faint(NamedTuple):
    """The last objective, what it proposed and the step (p,) that led there; a step's gain per
    ⟨Δ_t, Δ_{t−1}⟩, 0 where unknown."""

    objective: Any
    place: Any
    step: Any
    scale: Any


@pytree
class Foresight:
    """Plain EM that tells its gains by the objective, and below the noise by its steps."""

    def start(self, model, params):
        """The memory of a climb that has evaluated nothing."""
        place = Chart(model, params).origin
        zero = jnp.zeros((), place.dtype)
        return Faint(zero - jnp.inf, place, jnp.zeros_like(place), zero)

    def advance(self, model, params, seen, memory: Faint, total):
        """The evaluation with its gain, whatever the total weight; where none was ever heard, at
        most Σw(|ℓ|+1) per length."""
        proposal, objective = stop_gradient((seen.proposal, seen.objective))
        chart = Chart(model, proposal)
        # Both ends may be rounded in different programs, which is no step where nothing moved.
        changed = jax.tree.map(lambda a, b: jnp.sum(a != b), proposal, params)
        moved = sum(jax.tree.leaves(changed))
        step = jnp.where(moved > 0, chart.origin - memory.place, 0)
        along = dot(chart.white(step), chart.white(memory.step))
        along = jnp.where(along > 0, along, 0)  # unknown ones too
        gain = objective - memory.objective
        heard = (gain > seen.noise) & jnp.isfinite(gain) & (along > 0)
        scale = jnp.where(heard, gain / jnp.where(along > 0, along, 1), memory.scale)
        faint = jnp.where(scale > 0, scale, seen.magnitude) * along
        return seen._replace(
            gain=jnp.where(gain > seen.noise, gain, faint),
            quiet=jnp.finfo(scale.dtype).eps * seen.noise,
            memory=Faint(objective, chart.origin, step, scale),
        )
