"""Newton's way to a fixed point of a map near by, and whether it can be trusted."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.gradient.krylov import PATIENCE, krylov
from jaxem.numerics.linalg import times

DENSE = 32
"""Parameters up to which J and (I − J)⁻¹ are formed: a column costs a product, and a solve without
them takes fewer products than there are parameters."""

MOST = 8
"""The most Newton steps with J from the params of the fit to a fixed point good to rounding."""

NEWTON = 3
"""The most such steps by products."""

ROUGH = 1e-4
"""The residual of the linear solve of a Newton step by products, relative."""

SETTLED = 64
"""The move of one EM step, in epsilons of each leaf's size, that counts as rounding."""

NEAR = 0.05
"""The first Newton step, relative to each leaf's size, beyond which a fit is not at its end; and
half of the whole way, which is no longer than two first steps where Newton converges (Kantorovich
1948)."""

FALLS = 1e-2
"""How much smaller than before a Newton step must leave the move of an EM step, else J is taken
anew; and how much smaller than the one before the last of three by products must be."""

THERE = 0.7
"""ε^THERE: a Newton step that need not be taken."""

LOST = 0.55
"""ε^LOST: the most that a Newton step may be at the end; ε^(1 − LOST): the most that rounding in J
may grow to in the gradient."""

GROWN = 0.25
"""ε^−GROWN: the most that the norm of (I − J)⁻¹ may be in a solution by products; a random probe's
answer, in units of an entry of it, is about as long. Rounding moves the fixed point by ε times that
growth, and the gradient by as much again: √ε then. (Two full normals in five features, float32:
errors of 7e-3 at a growth of 130, 3e-5 at 24.)"""

SQUARINGS = 34
"""J to the power of 2^34 vanishes at a maximum: nothing regular is as slow as that."""


def to_fixed_point(step, origin, inside, slope=None):
    """(shift, inverse, ok): origin + shift is a fixed point of `step`; inverse is (I − J)⁻¹ there,
    J = ∂step, None above `DENSE`. ok: whether I − J is regular, its determinant is positive, and
    the fixed point near and reached, so that a gradient is good to about √ε.

    inside(point, before): the point that a Newton step leads to, moved to where `step` is defined.
    slope: J as a function of the point, where it is known otherwise than by its products."""
    if origin.size > DENSE:
        return _by_products(step, origin, inside)
    return _by_jacobians(step, origin, inside, slope)


def _by_jacobians(step, origin, inside, slope):
    """Newton's way with J itself. Where that takes a product a column it is taken anew only where a
    step with the last one falls short, and at the end. One loop holds all of it: the map and its
    product are compiled once."""
    size, eps = origin.size, jnp.finfo(origin.dtype).eps
    one = jnp.eye(size, dtype=origin.dtype)

    def newton(carry):
        count, point, jacobian, inverse, before, first, _ = carry
        proposal, push = (step(point), None) if slope else jax.linearize(step, point)
        residual = proposal - point
        away = jnp.max(jnp.abs(residual))
        end = (count == MOST) | ((away <= SETTLED * eps) & (away > before / 2))
        there = jnp.max(jnp.abs(times(inverse, residual))) < eps**THERE
        anew = end | there | (count == 0) | ~(away <= FALLS * before) | (slope is not None)
        columns = slope(point) if slope else _columns(push, origin, anew)
        jacobian = jnp.where(anew, columns, jacobian)
        inverse = jnp.where(anew, jnp.linalg.inv(one - jacobian), inverse)
        way = times(inverse, residual)
        left = jnp.max(jnp.abs(way))
        first = jnp.where(count == 0, left, first)
        astray = ~_near(first, point - origin)
        done = end | (anew & (left < eps**THERE)) | astray
        point = jnp.where(done, point, inside(point + way, point))
        return count + 1, point, jacobian, inverse, away, first, (done, left)

    zero = jnp.zeros((), origin.dtype)
    carry = (0, origin, 0 * one, one, zero + jnp.inf, zero, (False, zero))
    done = jax.lax.while_loop(lambda carry: ~carry[-1][0], newton, carry)
    _, point, jacobian, inverse, _, first, (_, left) = done
    # All of these, since a maximum may pass over NaN.
    ok = jnp.all(jnp.isfinite(inverse)) & jnp.isfinite(left) & (left < eps**LOST)
    ok &= _rounding_grows(inverse, 1 + jnp.abs(jacobian)) < eps**-LOST
    ok &= jnp.all(jnp.abs(_squared(jacobian)) < 1)
    return point - origin, inverse, ok & _near(first, point - origin)


def _by_products(step, origin, inside):
    """Newton's way by products of J alone; at its end the answer to a random probe says whether
    I − J is regular there, and the space that was searched for it whether its determinant is
    positive."""
    eps = jnp.finfo(origin.dtype).eps
    rng = np.random.default_rng(0)  # magnitudes that differ too: twins move against each other
    probe = rng.choice([-1.0, 1.0], origin.size) * rng.uniform(0.5, 1, origin.size)
    probe = jnp.asarray(probe, origin.dtype)

    def newton(carry):
        """One Newton step, or in its place the answer to the probe, which ends the walk."""
        count, point, steps, *_ = carry
        proposal, push = jax.linearize(step, point)
        residual = proposal - point
        away = jnp.max(jnp.abs(residual))
        last = (away <= SETTLED * eps) | (count == NEWTON)
        b = jnp.where(last, probe, residual)
        x, reached, sign = krylov(lambda v: v - push(v), b, ROUGH, PATIENCE)
        reached &= (sign > 0) | ~last
        longest = jnp.where(reached, jnp.max(jnp.abs(x)), jnp.nan)
        steps = jnp.where(last, steps, steps.at[count].set(longest))
        growth = jnp.where(reached, jnp.linalg.norm(x) / jnp.sqrt(jnp.mean(b * b)), jnp.nan)
        point = jnp.where(last, point, inside(point + x, point))
        return count + 1, point, steps, away, (last, growth)

    zero = jnp.zeros((), origin.dtype)
    carry = (0, origin, jnp.zeros(NEWTON, origin.dtype), zero, (False, zero))
    done = jax.lax.while_loop(lambda carry: ~carry[-1][0], newton, carry)
    _, point, steps, away, (_, growth) = done
    falls = steps[-1] <= FALLS * steps[-2]
    ok = (growth < eps**-GROWN) & (growth * away < eps**LOST)
    ok &= (away <= SETTLED * eps) | falls
    return point - origin, None, ok & _near(steps[0], point - origin)


def _near(first, way):
    return (first < NEAR) & jnp.all(jnp.abs(way) < 2 * NEAR)


def _columns(push, point, wanted):
    """J where it is wanted. On a CPU a column at a time: several together no longer fit its caches;
    a loop of no rounds costs nothing, in a batch neither."""
    if jax.default_backend() != "cpu":
        return jax.vmap(push)(jnp.eye(point.size, dtype=point.dtype)).T

    def column(i, rows):
        return rows.at[i].set(push((jnp.arange(point.size) == i).astype(point.dtype)))

    rows = jnp.zeros((point.size, point.size), point.dtype)
    return jax.lax.fori_loop(0, jnp.where(wanted, point.size, 0), column, rows).T


def _squared(matrix):
    """A matrix to a power of 2, at most 2^`SQUARINGS`, at which it is clear if powers vanish."""

    def unclear(carry):
        count, power = carry
        return (count < SQUARINGS) & (jnp.max(jnp.abs(power).sum(1)) > 0.5)

    def square(carry):
        count, power = carry
        return count + 1, times(power, power)

    return jax.lax.while_loop(unclear, square, (0, matrix))[1]


def _rounding_grows(inverse, size):
    """The spectral radius of |(I − J)⁻¹|·|I − J|: what a solution makes of rounding in J, whatever
    the units of the params (Bauer 1966; Skeel 1979)."""
    matrix = times(jnp.abs(inverse), size)
    vector = jnp.ones(matrix.shape[0], matrix.dtype)

    def longer(_, carry):
        vector = times(matrix, carry[0])
        return vector / jnp.max(vector), jnp.max(vector)

    return jax.lax.fori_loop(0, 8, longer, (vector, vector[0]))[1]
