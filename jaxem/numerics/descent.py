"""Steps of a minimiser that never raise the loss: a backtracking search around any direction."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.tree import select

SUFFICIENT, HALVINGS = 1e-4, 40
"""A step must gain this part of what the slope promises (Armijo), after so many halvings."""

FLAT = 1e-8
"""Curvatures below this part of the largest are taken for it."""


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
