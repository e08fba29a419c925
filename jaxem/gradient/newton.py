"""Newton's method for a fixed point of the EM map near given params, and a test of the result.

J is the Jacobian of the map. Points are flat vectors in which every leaf is divided by its own
size, so that lengths are relative.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.gradient.krylov import MOST_PRODUCTS, krylov
from jaxem.numerics import tuning
from jaxem.numerics.linalg import times

MOST_DENSE_STEPS = 8
"""The most Newton steps with a formed J from the params of a fit to its fixed point."""

MOST_PRODUCT_STEPS = 3
"""The most Newton steps by products with J."""

PRODUCT_TOLERANCE = 1e-4
"""The relative residual at which the linear solve of a Newton step by products stops."""

ROUNDING_LENGTH = 64
"""The length of an EM step, in ε, up to which it is attributed to rounding."""

NEAR_LENGTH = 0.05
"""A fit has not reached its fixed point where the first Newton step is this long or longer, or the
fixed point is twice as far away: where Newton's method converges, the fixed point is no further
than two first steps (Kantorovich 1948)."""

REDUCTION = 1e-2
"""With a formed J: J is computed again unless the last Newton step reduced the length of the EM
step to this part. By products: the last Newton step must be at most this part of the one before."""

NEGLIGIBLE_EXPONENT = 0.7
"""A Newton step shorter than ε^0.7 is not taken."""

ERROR_EXPONENT = 0.55
"""The last Newton step must be shorter than ε^0.55, and the rounding error of J, amplified by the
solve, must stay below ε^0.45 in the gradient."""

GROWTH_EXPONENT = 0.25
"""By products the norm of (I − J)⁻¹ must stay below ε^−0.25. It is estimated by the norm of the
solution for a random right-hand side, divided by the size of an entry of that side. Rounding moves
the fixed point by ε times the norm, and the gradient by that times the norm again: by √ε at the
bound. (Two full normals in five features, float32: errors of 7e-3 at a norm of 130, 3e-5 at 24.)"""

MOST_SQUARINGS = 34
"""J^(2^34) vanishes at a maximum: no regular fixed point has a slower rate of convergence."""


def to_fixed_point(step, origin, inside, slope=None):
    """(shift, inverse, ok) with origin + shift a fixed point of `step`.

    inverse: (I − J)⁻¹ there; None where there are more than `DENSE_SIZE` parameters. ok: whether
    I − J is regular with a positive determinant and the fixed point was reached and is near the
    origin, so that a gradient there is exact to about √ε.

    Args:
      inside: (point, before) → the point of a Newton step, moved to where `step` is defined.
      slope: point → J, where J has a closed form; None: J is taken from products.
    """
    if origin.size > tuning.DENSE_SIZE:
        return _by_products(step, origin, inside)
    return _by_jacobians(step, origin, inside, slope)


def _by_jacobians(step, origin, inside, slope):
    """Newton's method with a formed J.

    Without `slope` a J costs one product a column, so it is computed again only where a step with
    the last J reduced too little, and at the end. One loop holds all of this, so that the map and
    its derivative are compiled once.
    """
    size, eps = origin.size, jnp.finfo(origin.dtype).eps
    identity = jnp.eye(size, dtype=origin.dtype)

    def newton_step(carry):
        count, point, jacobian, inverse, last_length, first_length, _ = carry
        proposal, jvp = (step(point), None) if slope else jax.linearize(step, point)
        residual = proposal - point
        step_length = jnp.max(jnp.abs(residual))
        is_rounding = (step_length <= ROUNDING_LENGTH * eps) & (step_length > last_length / 2)
        is_last = (count == MOST_DENSE_STEPS) | is_rounding
        is_negligible = jnp.max(jnp.abs(times(inverse, residual))) < eps**NEGLIGIBLE_EXPONENT
        recompute = is_last | is_negligible | (count == 0) | (slope is not None)
        recompute |= ~(step_length <= REDUCTION * last_length)
        columns = slope(point) if slope else _columns(jvp, origin, recompute)
        jacobian = jnp.where(recompute, columns, jacobian)
        inverse = jnp.where(recompute, jnp.linalg.inv(identity - jacobian), inverse)
        direction = times(inverse, residual)
        newton_length = jnp.max(jnp.abs(direction))
        first_length = jnp.where(count == 0, newton_length, first_length)
        is_far = ~_is_near(first_length, point - origin)
        is_done = is_last | (recompute & (newton_length < eps**NEGLIGIBLE_EXPONENT)) | is_far
        point = jnp.where(is_done, point, inside(point + direction, point))
        end = is_done, newton_length
        return count + 1, point, jacobian, inverse, step_length, first_length, end

    zero = jnp.zeros((), origin.dtype)
    carry = (0, origin, 0 * identity, identity, zero + jnp.inf, zero, (False, zero))
    carry = jax.lax.while_loop(lambda carry: ~carry[-1][0], newton_step, carry)
    _, point, jacobian, inverse, _, first_length, (_, newton_length) = carry
    # Each is tested by itself, since a maximum may drop a NaN.
    ok = jnp.all(jnp.isfinite(inverse)) & jnp.isfinite(newton_length)
    ok &= newton_length < eps**ERROR_EXPONENT
    ok &= _rounding_amplification(inverse, 1 + jnp.abs(jacobian)) < eps**-ERROR_EXPONENT
    ok &= jnp.all(jnp.abs(_power_of_two(jacobian)) < 1)
    return point - origin, inverse, ok & _is_near(first_length, point - origin)


def _by_products(step, origin, inside):
    """Newton's method by products with J alone.

    At the end (I − J) x = b is solved for a random b. The norm of x says whether I − J is regular,
    and the search directions whether its determinant is positive.
    """
    eps = jnp.finfo(origin.dtype).eps
    rng = np.random.default_rng(0)
    # Magnitudes are unequal: those of components that are alike could cancel.
    probe = rng.choice([-1.0, 1.0], origin.size) * rng.uniform(0.5, 1, origin.size)
    probe = jnp.asarray(probe, origin.dtype)

    def newton_step(carry):
        """One Newton step; the last time the solve for the random b in its place."""
        count, point, newton_lengths, *_ = carry
        proposal, jvp = jax.linearize(step, point)
        residual = proposal - point
        step_length = jnp.max(jnp.abs(residual))
        is_last = (step_length <= ROUNDING_LENGTH * eps) | (count == MOST_PRODUCT_STEPS)
        b = jnp.where(is_last, probe, residual)
        x, is_solved, sign = krylov(lambda v: v - jvp(v), b, PRODUCT_TOLERANCE, MOST_PRODUCTS)
        is_solved &= (sign > 0) | ~is_last
        newton_length = jnp.where(is_solved, jnp.max(jnp.abs(x)), jnp.nan)
        extended = newton_lengths.at[count].set(newton_length)
        newton_lengths = jnp.where(is_last, newton_lengths, extended)
        growth = jnp.where(is_solved, jnp.linalg.norm(x) / jnp.sqrt(jnp.mean(b * b)), jnp.nan)
        point = jnp.where(is_last, point, inside(point + x, point))
        return count + 1, point, newton_lengths, step_length, (is_last, growth)

    zero = jnp.zeros((), origin.dtype)
    carry = (0, origin, jnp.zeros(MOST_PRODUCT_STEPS, origin.dtype), zero, (False, zero))
    carry = jax.lax.while_loop(lambda carry: ~carry[-1][0], newton_step, carry)
    _, point, newton_lengths, step_length, (_, growth) = carry
    is_reduced = newton_lengths[-1] <= REDUCTION * newton_lengths[-2]
    ok = (growth < eps**-GROWTH_EXPONENT) & (growth * step_length < eps**ERROR_EXPONENT)
    ok &= (step_length <= ROUNDING_LENGTH * eps) | is_reduced
    return point - origin, None, ok & _is_near(newton_lengths[0], point - origin)


def _is_near(first_length, shift):
    """Whether the first Newton step and the whole shift are short; see `NEAR_LENGTH`."""
    return (first_length < NEAR_LENGTH) & jnp.all(jnp.abs(shift) < 2 * NEAR_LENGTH)


def _columns(jvp, point, is_wanted):
    """J where `is_wanted`, else 0 on a CPU.

    A CPU computes one column at a time, because several together do not fit its caches. Where J is
    not wanted the loop has no iterations and costs nothing, in a batch too.
    """
    if tuning.platform() != "cpu":
        return jax.vmap(jvp)(jnp.eye(point.size, dtype=point.dtype)).T

    def column(i, rows):
        return rows.at[i].set(jvp((jnp.arange(point.size) == i).astype(point.dtype)))

    rows = jnp.zeros((point.size, point.size), point.dtype)
    return jax.lax.fori_loop(0, jnp.where(is_wanted, point.size, 0), column, rows).T


def _power_of_two(matrix):
    """matrix^(2^i) for the first i with an ∞-norm of at most 0.5, i at most `MOST_SQUARINGS`."""

    def undecided(carry):
        count, power = carry
        return (count < MOST_SQUARINGS) & (jnp.max(jnp.abs(power).sum(1)) > 0.5)

    def square(carry):
        count, power = carry
        return count + 1, times(power, power)

    return jax.lax.while_loop(undecided, square, (0, matrix))[1]


def _rounding_amplification(inverse, size):
    """The spectral radius of |(I − J)⁻¹|·|I − J|, by power iteration.

    A solution amplifies a relative rounding error of J by this factor, whatever the units of the
    params (Bauer 1966; Skeel 1979).
    """
    matrix = times(jnp.abs(inverse), size)
    vector = jnp.ones(matrix.shape[0], matrix.dtype)

    def iterate(_, carry):
        vector = times(matrix, carry[0])
        return vector / jnp.max(vector), jnp.max(vector)

    return jax.lax.fori_loop(0, 8, iterate, (vector, vector[0]))[1]
