"""Rules for θ, the M-step: gradient ascent on the expected log joint. They work for any model."""

from typing import Any

import jax.numpy as jnp

from jaxem.data.options import integers
from jaxem.numerics.descent import descend, initial_state, require_transform
from jaxem.numerics.tree import pytree, select
from jaxem.protocol.derived import expected_log_joint
from jaxem.wrappers.restricted import coordinates


@pytree(static=("steps",))
class Gradient:
    """Steps up the expected log joint E_q[log p(x, z | θ)] + log p(θ), never down.

    Steps are taken in coordinates without constraints (`Model.spaces`). A step that does not
    increase the expected log joint is halved until it does. Where it points downhill, it is
    replaced by a step along the gradient and the optimizer's state is reset. So F never
    falls, with any optimizer and any learning rate. Source: Lange 1995 (with one Newton step the
    rate of convergence is that of EM).

    Args:
      transform: an optax transformation, whose state is carried from one M-step to the next; keep
        one object, since two equal ones compile twice. None: Newton's method, which forms the
        (p, p) Hessian of all p parameters and shifts it where it is not positive definite.
      steps: steps in an M-step, each a few passes over the data.

    Raises TypeError for another transform, TypeError or ValueError where steps is no int of 1 or
    more. The model must define `log_joint`.
    """

    transform: Any = None
    steps: int = 1

    @property
    def steady(self):
        """Newton's method has no state; an optax transformation has one."""
        return self.transform is None

    def __post_init__(self):
        integers(self, 1, "steps")
        require_transform(self.transform)

    def stationary(self, model, closed):
        """True: the fixed points of fits by this rule are those of the map of the rule for q."""
        return True

    def start(self, model, params, x, weights):
        """The optimizer's state."""
        return initial_state(self.transform, coordinates(model, params).origin)

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after the steps, from params at which q was computed."""
        free_coordinates = coordinates(model, params)

        def loss(vector):
            proposal = free_coordinates.params(vector)
            per_unit = expected_log_joint(model, proposal, x, q)
            total = jnp.sum(jnp.where(weights > 0, weights * per_unit, 0))
            return -(total + model.log_prior(proposal)).astype(vector.dtype)

        vector, memory = descend(self.transform, loss, free_coordinates.origin, memory, self.steps)
        is_changed = jnp.any(vector != free_coordinates.origin)
        return select(is_changed, free_coordinates.params(vector), params), memory
