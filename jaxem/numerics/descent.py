"""Minimisation that raises no loss by more than rounding: a line search along any direction."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax import lax

from jaxem.numerics.tree import select
from jaxem.numerics.triangular import cholesky, times, triangular_inverse

SUFFICIENT_DECREASE, MOST_HALVINGS = 1e-4, 40
"""The line search accepts a step that lowers the loss by this part of what the slope predicts
(Armijo), and gives up after so many halvings."""

LOSS_ROUNDING = 2
"""Newton's steps may raise the loss by LOSS_ROUNDING · ε · |loss|: the last ones in float32 gain
less than that, and would be halved MOST_HALVINGS times (gamma, 400 × 2: 222 to 99 ms a fit)."""

FIRST_SHIFT, RAISE = 1e-3, 10
"""Where a scaled Hessian is indefinite, RAISE · FIRST_SHIFT is added to its diagonal, and RAISE
times as much each time that this is too little."""


def descend(transform, loss, vector, state, steps: int):
    """(vector, optimizer state) after `steps` line searches, none of which raises the loss, or by
    rounding alone.

    transform: an optax transformation that gives the directions; None: Newton's directions. Where
    a direction does not lead downhill the gradient is followed and the optimizer's state is reset.
    """

    def step(_, carry):
        vector, state = carry
        value, slope = jax.value_and_grad(loss)(vector)
        if transform is None:
            rounding = LOSS_ROUNDING * float(jnp.finfo(value.dtype).eps) * jnp.abs(value)
            direction = newton(loss, vector, slope)
            return line_search(loss, vector, value + rounding, slope, direction), state
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
    return lax.fori_loop(0, steps, step, (vector, state))


def initial_state(transform, vector):
    """The state of an optimizer before its first step."""
    return () if transform is None or not vector.size else transform.init(vector)


@lru_cache(maxsize=1)
def lbfgs():
    """optax's L-BFGS with steps of length 1. It is one object, so that nothing compiles twice."""
    import optax

    return optax.lbfgs(1.0, memory_size=10, linesearch=None)


def newton(loss, vector, slope):
    """−(H + shift)⁻¹ slope: Newton's step where the loss is convex, and a descent direction
    everywhere.

    The Hessian H is scaled to a diagonal of ±1. The shift, a multiple of the identity, is above
    rounding errors, and is raised until H + shift is positive definite (Nocedal & Wright 2006,
    section 3.4).
    """
    hessian = jax.hessian(loss)(vector).astype(vector.dtype)
    diagonal = jnp.abs(jnp.diagonal(hessian))
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    scaled = scale[:, None] * ((hessian + hessian.T) / 2) * scale
    identity = jnp.eye(len(vector), dtype=vector.dtype)
    scaled = jnp.where(jnp.all(jnp.isfinite(scaled)), scaled, identity)
    enough = 2 * jnp.abs(scaled).sum(0).max()  # by Gershgorin's theorem
    least = 4 * len(vector) * float(jnp.finfo(vector.dtype).eps)

    def factor(shift):
        return cholesky(scaled + shift * identity)

    def is_indefinite(carry):
        shift, lower = carry
        return ~(jnp.square(jnp.diagonal(lower)).min() >= shift / 2) & (shift < enough)

    def raised(carry):
        shift = jnp.minimum(RAISE * jnp.maximum(carry[0], FIRST_SHIFT), enough)
        return shift, factor(shift)

    first = jnp.asarray(least, vector.dtype)
    _, lower = lax.while_loop(is_indefinite, raised, (first, factor(first)))
    root = triangular_inverse(lower)
    return -scale * times(root.T, times(root, scale * slope))


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
    length, _, is_found = lax.while_loop(searching, halve, first)
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
