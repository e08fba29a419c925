"""Rules for θ, the M-step: gradient ascent on the expected log joint. They know no model."""

from typing import Any

import jax.numpy as jnp

from jaxem.numerics.descent import descend, initial_state
from jaxem.numerics.tree import pytree, select
from jaxem.protocol.derived import expected_log_joint
from jaxem.wrappers.restricted import coordinates


@pytree(static=("steps",))
class Gradient:
    """Steps up the expected log joint E_q[log p(x, z | θ)] + log p(θ), never down.

    They are taken in coordinates without constraints (`Model.spaces`). A step that does not gain is
    halved until it does; one that leads down is replaced by a step along the gradient, and the
    optimizer starts anew. So F never falls, with any optimizer and any learning rate. Source: Lange
    1995 (one Newton step is enough for EM's own rate).

    Args:
      transform: an optax transformation, whose state is carried from one M-step to the next; keep
        one object, since two equal ones compile twice. None: Newton's method with the curvature's
        absolute value; it forms the (p, p) Hessian of all p parameters.
      steps: steps in an M-step, each a few passes over the data.

    Raises ValueError where steps is below 1. The model must define `log_joint`.
    """

    transform: Any = None
    steps: int = 1

    @property
    def steady(self):
        """Newton's steps remember nothing."""
        return self.transform is None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps!r}")

    def stationary(self, model, closed):
        """Whether fits stand still where F has no slope in params: that of the rule for q then is
        their map."""
        return True

    def start(self, model, params, x, weights):
        """The optimizer's state."""
        return initial_state(self.transform, coordinates(model, params).origin)

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after the steps, from params at which q was taken."""
        free = coordinates(model, params)

        def loss(vector):
            there = free.params(vector)
            per_unit = expected_log_joint(model, there, x, q)
            total = jnp.sum(jnp.where(weights > 0, weights * per_unit, 0))
            return -(total + model.log_prior(there)).astype(vector.dtype)

        vector, memory = descend(self.transform, loss, free.origin, memory, self.steps)
        moved = jnp.any(vector != free.origin)
        return select(moved, free.params(vector), params), memory
