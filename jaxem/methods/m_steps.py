"""Rules for θ, the M-step: gradient ascent on the expected log joint. They know no model."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.analysis.free_energy import expectation, shares
from jaxem.numerics.tree import pytree, select
from jaxem.protocol.model import lacks

SUFFICIENT, HALVINGS = 1e-4, 40
"""A step must gain this part of what the slope promises (Armijo), after so many halvings."""

FLAT = 1e-8
"""Curvatures below this part of the largest are taken for it."""


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

    def start(self, model, params, x, weights):
        """The optimizer's state."""
        return fresh(self.transform, model.coordinates(params).origin)

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after the steps, from params at which q was taken."""
        free = model.coordinates(params)

        def loss(vector):
            there = free.params(vector)
            per_unit = expected(model, there, x, q)
            total = jnp.sum(jnp.where(weights > 0, weights * per_unit, 0))
            return -(total + model.log_prior(there)).astype(vector.dtype)

        vector, memory = descend(self.transform, loss, free.origin, memory, self.steps)
        moved = jnp.any(vector != free.origin)
        return select(moved, free.params(vector), params), memory


def expected(model, params, x, q):
    """E_q[log p(x, z | params)] per unit (n,), up to what no parameter changes."""
    if lacks(model, "log_joint"):
        return model.free_energy(params, x, q)
    return expectation(shares(q), model.log_joint(params, x))


def descend(transform, loss, vector, memory, steps: int):
    """(vector, memory) after steps of an optax transformation that do not raise the loss."""

    def step(_, carry):
        vector, memory = carry
        value, slope = jax.value_and_grad(loss)(vector)
        if transform is None:
            return searched(loss, vector, value, slope, newton(loss, vector, slope)), memory
        options = {"value": value, "grad": slope, "value_fn": loss}
        move, after = _with_extra(transform).update(slope, memory, vector, **options)
        down = slope @ move < 0
        there = searched(loss, vector, value, slope, jnp.where(down, move, -slope))
        return there, select(down, after, fresh(transform, vector))

    if not vector.size:
        return vector, memory
    return jax.lax.fori_loop(0, steps, step, (vector, memory))


def fresh(transform, vector):
    """The state of an optimizer that has seen nothing."""
    return () if transform is None or not vector.size else transform.init(vector)


@lru_cache(maxsize=1)
def lbfgs():
    """optax's L-BFGS with full steps, one object, so that nothing compiles twice."""
    import optax

    return optax.lbfgs(1.0, memory_size=10, linesearch=None)


def newton(loss, vector, slope):
    """−|H|⁻¹ slope: Newton's step where the loss is convex, downhill anywhere."""
    hessian = jax.hessian(loss)(vector)
    sound = jnp.all(jnp.isfinite(hessian))
    hessian = jnp.where(sound, (hessian + hessian.T) / 2, jnp.eye(vector.shape[0]))
    curvature, axes = jnp.linalg.eigh(hessian.astype(vector.dtype))
    curvature = jnp.abs(curvature)
    curvature = jnp.maximum(curvature, FLAT * curvature.max())
    along = jnp.matmul(axes.T, slope, precision=Precision.HIGHEST)
    along = along / jnp.where(curvature > 0, curvature, 1)
    return -jnp.matmul(axes, along, precision=Precision.HIGHEST)


def searched(loss, vector, value, slope, move):
    """vector + move · 1, ½, ¼, ...: the first that gains enough; vector itself if none does."""
    promised = SUFFICIENT * (slope @ move)

    def gains(size):
        return loss(vector + size * move) <= value + size * promised

    def body(carry):
        size, tries, _ = carry
        return size / 2, tries + 1, gains(size / 2)

    def going(carry):
        return ~carry[2] & (carry[1] < HALVINGS)

    one = jnp.ones((), vector.dtype)
    size, _, found = jax.lax.while_loop(going, body, (one, 0, gains(one)))
    return jnp.where(found, vector + size * move, vector)


def _with_extra(transform):
    import optax

    return optax.with_extra_args_support(transform)
