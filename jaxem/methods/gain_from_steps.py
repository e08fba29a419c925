"""The gain of an EM step from the lengths of steps, where rounding hides it in the objective.

A float32 log-likelihood is exact to about 1e-6 nats a unit however it is summed, because the
coefficients of a density are rounded once for all units. The params of a step are known far more
exactly. Near a maximum the gain of a step is proportional to the inner product ⟨Δ_t, Δ_{t−1}⟩ of
two successive steps in the metric of the complete data. It is positive, because EM contracts along
every eigenvector of its Jacobian; steps that consist of rounding errors alternate in direction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.methods.acceleration import Chart, dot
from jaxem.numerics.tree import pytree


class StepMemory(NamedTuple):
    """The state of `GainFromSteps` between evaluations.

    objective: the last one. coordinates (p,): of its proposal. step (p,): from its params to its
    proposal. scale: the gain of a step per ⟨Δ_t, Δ_{t−1}⟩, 0 where it is unknown.
    """

    objective: Any
    coordinates: Any
    step: Any
    scale: Any


@pytree
class GainFromSteps:
    """Plain EM that measures gains by the objective, and below its rounding error by steps."""

    def start(self, model, params):
        """The state before the first evaluation."""
        coordinates = Chart(model, params).origin
        zero = jnp.zeros((), coordinates.dtype)
        return StepMemory(zero - jnp.inf, coordinates, jnp.zeros_like(coordinates), zero)

    def advance(self, model, params, evaluation, memory: StepMemory, total):
        """The evaluation with its gain.

        Where no gain was above the rounding error so far, the gain per ⟨Δ_t, Δ_{t−1}⟩ is taken as
        Σw(|ℓ|+1), an upper bound. total: the sum of weights, which is not used.
        """
        proposal, objective = stop_gradient((evaluation.proposal, evaluation.objective))
        chart = Chart(model, proposal)
        # Both ends may be rounded in different programs: without a changed entry there is no step.
        changed = jax.tree.map(lambda a, b: jnp.sum(a != b), proposal, params)
        n_changed = sum(jax.tree.leaves(changed))
        step = jnp.where(n_changed > 0, chart.origin - memory.coordinates, 0)
        product = dot(chart.white(step), chart.white(memory.step))
        product = jnp.where(product > 0, product, 0)  # NaN becomes 0 too
        gain = objective - memory.objective
        is_measurable = (gain > evaluation.noise) & jnp.isfinite(gain) & (product > 0)
        scale = jnp.where(is_measurable, gain / jnp.where(product > 0, product, 1), memory.scale)
        gain_from_step = jnp.where(scale > 0, scale, evaluation.magnitude) * product
        return evaluation._replace(
            signal=evaluation.signal._replace(
                gain=jnp.where(gain > evaluation.noise, gain, gain_from_step),
                error=jnp.finfo(scale.dtype).eps * evaluation.noise,
            ),
            memory=StepMemory(objective, chart.origin, step, scale),
        )
