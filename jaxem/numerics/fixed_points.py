"""Fixed points of small smooth maps, with the derivative of the implicit function theorem."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxem.numerics.triangular import cholesky, times, triangular_inverse

MOST_STEPS = 200
"""The most steps to a fixed point."""

ROUNDINGS = 64
"""The last step to a fixed point in rounding errors of its largest entry, or of 1."""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fixed_point(step, start, args):
    """The vector v (m,) with step(v, args) = v, by repetition from `start`.

    It ends where no entry moves by more than `ROUNDINGS`, or after `MOST_STEPS`. step: a function
    of a module, without a closure. The derivative with respect to args solves the linear equations
    of the implicit function theorem; that with respect to start is 0.
    """
    tolerance = ROUNDINGS * float(jnp.finfo(start.dtype).eps)

    def is_unfinished(carry):
        count, _, moved = carry
        return (count < MOST_STEPS) & (moved > tolerance)

    def advance(carry):
        count, value, _ = carry
        updated = step(value, args)
        size = jnp.maximum(jnp.max(jnp.abs(updated)), 1)
        return count + 1, updated, jnp.max(jnp.abs(updated - value)) / size

    moved = jnp.asarray(jnp.inf, start.dtype)
    return jax.lax.while_loop(is_unfinished, advance, (0, start, moved))[1]


@fixed_point.defjvp
def _fixed_point_jvp(step, primals, tangents):
    value = fixed_point(step, *primals)
    args, change = primals[1], tangents[1]
    residual = jnp.eye(len(value), dtype=value.dtype) - jax.jacfwd(step)(value, args)
    direct = jax.jvp(lambda args: step(value, args), (args,), (change,))[1]
    # The normal equations: the matrix is no symmetric one.
    inverse = triangular_inverse(cholesky(times(residual.T, residual)))
    return value, times(inverse.T, times(inverse, times(residual.T, direct)))
