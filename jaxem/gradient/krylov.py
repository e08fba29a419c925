"""Linear systems (I − J) x = b, solved by products with J alone, with a check of the residual."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxem.numerics import tuning
from jaxem.numerics.linalg import times

MOST_PRODUCTS = 400
"""The most products with J in the test of a fixed point. The solve for the gradient may take four
times as many."""


def solve(step, point, b, inverse):
    """(I − J)⁻¹ b with J = ∂step/∂point, differentiable in forward and reverse mode.

    inverse: (I − J)⁻¹; None: the system is solved by products with J. The solution is NaN where the
    norm of its residual is above 10·ε^0.8·‖b‖.
    """
    _, jvp = jax.linearize(step, point)
    tol = jnp.finfo(b.dtype).eps ** 0.8

    def by_inverse(inverse, product, b):
        return times(inverse, b)

    def by_products(_, product, b):
        x, *_ = krylov(product, b, tol, 4 * MOST_PRODUCTS)
        error = jnp.linalg.norm(product(x) - b)
        return jnp.where(error <= 10 * tol * jnp.linalg.norm(b), x, jnp.nan)

    solvers = (partial(by_products, None),) * 2
    if inverse is not None:
        solvers = (partial(by_inverse, matrix) for matrix in (inverse, inverse.T))
    return jax.lax.custom_linear_solve(lambda v: v - jvp(v), b, *solvers)


def krylov(product, b, tol, most_products):
    """(x, whether ‖b − product(x)‖ ≤ tol·‖b‖, sign) by at most `most_products` products.

    sign: the sign of the determinant of the inverse, restricted to the span of the first
    `LEAST_DIRECTIONS` search directions. The image of all search directions contains b to within
    tol·‖b‖, so that a random b leaves out no direction in which its component is larger.

    The generalised conjugate residual method (Eisenstat, Elman & Schultz 1983), which minimises the
    residual over the same Krylov spaces as GMRES. The next search direction is the residual; where
    the residual fell by too little, it is the last product instead (Jiránek, Rozložník & Gutknecht
    2008). Where the storage is full the oldest direction is overwritten.
    """
    size = b.size
    capacity = min(size, most_products, max(tuning.LEAST_DIRECTIONS, tuning.STORED_NUMBERS // size))
    target = tol * jnp.linalg.norm(b)

    def unsolved(carry):
        count, _, residual, *_ = carry
        return (count < most_products) & (jnp.linalg.norm(residual) > target)

    def body(carry):
        count, x, residual, direction, directions, images = carry
        image = product(direction)
        for _ in range(2):  # the second orthogonalisation removes the rounding error of the first
            components = times(images, image)
            image = image - times(components, images)
            direction = direction - times(components, directions)
        norm = jnp.linalg.norm(image)
        image, direction = image / norm, direction / norm
        step_length = times(image, residual)
        is_reduced = jnp.abs(step_length) > 0.1 * jnp.linalg.norm(residual)
        residual = residual - step_length * image
        directions = directions.at[count % capacity].set(direction)
        images = images.at[count % capacity].set(image)
        x = x + step_length * direction
        direction = jnp.where(is_reduced, residual, image)
        return count + 1, x, residual, direction, directions, images

    empty = jnp.zeros((capacity, size), b.dtype)
    carry = (0, jnp.zeros_like(b), b, b, empty, empty)
    count, x, residual, _, directions, images = jax.lax.while_loop(unsolved, body, carry)
    tested = min(capacity, tuning.LEAST_DIRECTIONS)
    unused = jnp.diag((jnp.arange(tested) >= count).astype(b.dtype))
    sign, _ = jnp.linalg.slogdet(times(images[:tested], directions[:tested].T) + unused)
    return x, jnp.linalg.norm(residual) <= target, sign
