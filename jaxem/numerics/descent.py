"""Minimisation that never raises the loss: a backtracking line search along any direction."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.tree import select

SUFFICIENT_DECREASE, MOST_HALVINGS = 1e-4, 40
"""The line search accepts a step that lowers the loss by this part of what the slope predicts
(Armijo), and gives up after so many halvings."""

LEAST_CURVATURE = 1e-8
"""Smaller curvatures of a Newton step are raised to this part of the largest one."""


def descend(transform, loss, vector, state, steps: int):
    """(vector, optimizer state) after `steps` line searches, none of which raises the loss.

    transform: an optax transformation that gives the directions; None: Newton's directions. Where
    a direction does not lead downhill the gradient is followed and the optimizer's state is reset.
    """

    def step(_, carry):
        vector, state = carry
        value, slope = jax.value_and_grad(loss)(vector)
        if transform is None:
            return line_search(loss, vector, value, slope, newton(loss, vector, slope)), state
        options = {"value": value, "grad": slope, "value_fn": loss}
        direction, next_state = _with_value_arguments(transform).update(
            slope, state, vector, **options
        )
        is_descent = slope @ direction < 0
        next_vector = line_search(
            loss, vector, value, slope, jnp.where(is_descent, direction, -slope)
        )
        return next_vector, select(is_descent, next_state, initial_state(transform, vector))

    if not vector.size:
        return vector, state
    return jax.lax.fori_loop(0, steps, step, (vector, state))


def initial_state(transform, vector):
    """The state of an optimizer before its first step."""
    return () if transform is None or not vector.size else transform.init(vector)


@lru_cache(maxsize=1)
def lbfgs():
    """optax's L-BFGS with steps of length 1. It is one object, so that nothing compiles twice."""
    import optax

    return optax.lbfgs(1.0, memory_size=10, linesearch=None)


def newton(loss, vector, slope):
    """−|H|⁻¹ slope: Newton's step where the loss is convex, and a descent direction everywhere.

    |H| is the Hessian with the absolute values of its eigenvalues.
    """
    hessian = jax.hessian(loss)(vector)
    is_finite = jnp.all(jnp.isfinite(hessian))
    hessian = jnp.where(is_finite, (hessian + hessian.T) / 2, jnp.eye(vector.shape[0]))
    curvature, eigenvectors = jnp.linalg.eigh(hessian.astype(vector.dtype))
    curvature = jnp.abs(curvature)
    curvature = jnp.maximum(curvature, LEAST_CURVATURE * curvature.max())
    components = jnp.matmul(eigenvectors.T, slope, precision=Precision.HIGHEST)
    components = components / jnp.where(curvature > 0, curvature, 1)
    return -jnp.matmul(eigenvectors, components, precision=Precision.HIGHEST)


def line_search(loss, vector, value, slope, direction):
    """vector + s · direction for the first step length s = 1, ½, ¼, … of sufficient decrease.

    The vector itself where no step length has one.
    """
    predicted = SUFFICIENT_DECREASE * (slope @ direction)

    def decreases(length):
        return loss(vector + length * direction) <= value + length * predicted

    def halve(carry):
        length, halvings, _ = carry
        return length / 2, halvings + 1, decreases(length / 2)

    def searching(carry):
        return ~carry[2] & (carry[1] < MOST_HALVINGS)

    full_step = jnp.ones((), vector.dtype)
    first = (full_step, 0, decreases(full_step))
    length, _, is_found = jax.lax.while_loop(searching, halve, first)
    return jnp.where(is_found, vector + length * direction, vector)


def _with_value_arguments(transform):
    import optax

    return optax.with_extra_args_support(transform)


def require_transform(transform) -> None:
    """TypeError unless it is None or an optax transformation."""
    is_known = all(callable(getattr(transform, name, None)) for name in ("init", "update"))
    if transform is not None and (isinstance(transform, type) or not is_known):
        raise TypeError(
            f"transform must be an optax transformation, such as optax.adam(0.01), or None, got "
            f"{transform!r}"
        )
