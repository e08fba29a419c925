"""Linear systems known by their products alone; a residual says whether they are solved."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxem.numerics.linalg import times

BASIS = 2**16
"""Numbers in the directions that a solve remembers, of which it keeps all or at least `FEWEST`."""

FEWEST = 40

PATIENCE = 400
"""The most products of the test; the solve of the gradient may take four times more."""


def solve(step, point, b, inverse):
    """(I − J)⁻¹ b, J = ∂step/∂point, in either direction and differentiable: by the inverse, or
    where that is None by products; NaN where the residual says that it was not reached."""
    _, push = jax.linearize(step, point)
    tol = jnp.finfo(b.dtype).eps ** 0.8

    def known(inverse, product, b):
        return times(inverse, b)

    def sought(_, product, b):
        x, *_ = krylov(product, b, tol, 4 * PATIENCE)
        away = jnp.linalg.norm(product(x) - b)
        return jnp.where(away <= 10 * tol * jnp.linalg.norm(b), x, jnp.nan)

    ways = (partial(sought, None),) * 2
    if inverse is not None:
        ways = (partial(known, matrix) for matrix in (inverse, inverse.T))
    return jax.lax.custom_linear_solve(lambda v: v - push(v), b, *ways)


def krylov(product, b, tol, most):
    """(x, whether ‖b − product(x)‖ ≤ tol·‖b‖, sign) by at most `most` products. sign: of the
    determinant of the inverse on the space that was searched, which holds a random b's part along
    any direction that is not small.

    The generalised conjugate residual method (Eisenstat, Elman & Schultz 1983), which minimises the
    residual over the same spaces as GMRES. Where a residual hardly fell it is a poor direction, and
    the last product is taken instead (Jiránek, Rozložník & Gutknecht 2008). The oldest directions
    are forgotten where the memory is full.
    """
    size = b.size
    room = min(size, most, max(FEWEST, BASIS // size))
    goal = tol * jnp.linalg.norm(b)

    def going(carry):
        count, _, rest, *_ = carry
        return (count < most) & (jnp.linalg.norm(rest) > goal)

    def body(carry):
        count, x, rest, way, ways, images = carry
        image = product(way)
        for _ in range(2):
            along = times(images, image)
            image, way = image - times(along, images), way - times(along, ways)
        length = jnp.linalg.norm(image)
        image, way = image / length, way / length
        part = times(image, rest)
        falls = jnp.abs(part) > 0.1 * jnp.linalg.norm(rest)
        rest = rest - part * image
        ways, images = ways.at[count % room].set(way), images.at[count % room].set(image)
        return count + 1, x + part * way, rest, jnp.where(falls, rest, image), ways, images

    none = jnp.zeros((room, size), b.dtype)
    carry = (0, jnp.zeros_like(b), b, b, none, none)
    count, x, rest, _, ways, images = jax.lax.while_loop(going, body, carry)
    few = min(room, FEWEST)
    unused = jnp.diag((jnp.arange(few) >= count).astype(b.dtype))
    sign, _ = jnp.linalg.slogdet(times(images[:few], ways[:few].T) + unused)
    return x, jnp.linalg.norm(rest) <= goal, sign
