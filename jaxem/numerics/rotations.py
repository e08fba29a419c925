"""Eigenvectors of symmetric matrices, and common axes of several, by plane rotations (Jacobi).

All rotations of a round act on disjoint pairs of axes. The axes are kept in two halves whose
entries are the pairs; a fixed permutation after every round brings every pair together once a
sweep. Of an odd number of axes one rests in every round. All is elementwise: XLA's own routines
for a CPU may wait for each other for ever (see `numerics.triangular`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.numerics.linalg import diagonal
from jaxem.numerics.triangular import cholesky, times, triangular_inverse

EIGEN_SWEEPS, COMMON_SWEEPS = 15, 100
"""The most sweeps. Those of one matrix converge quadratically, those of common axes linearly."""

QUICK_SWEEPS = 8
"""Sweeps within which nearly all common axes are exact to rounding errors."""


@jax.custom_jvp
def eigen(matrix):
    """Eigenvalues (..., d), in descending order, and eigenvectors (..., d, d), as columns, of
    symmetric matrices (..., d, d).

    The error of an eigenvalue is a rounding error of the largest one. The derivative takes equal
    eigenvalues as unrelated: their eigenvectors do not turn into each other.
    """
    d, eps = matrix.shape[-1], jnp.finfo(matrix.dtype).eps
    if d == 1:
        return matrix[..., 0], jnp.ones_like(matrix)

    def angles(p, q, off):
        half = (p - q) / 2
        angle = jnp.arctan2(off, half) / 2
        # The rotation by at most 45 degrees: it may leave the larger value in the second place.
        quarter = jnp.pi / 2
        angle = angle - jnp.where(angle > quarter / 2, quarter, 0)
        angle = angle + jnp.where(angle < -quarter / 2, quarter, 0)
        return jnp.where(off == 0, 0, angle)[..., 0, :], jnp.abs(off)[..., 0, :]

    top = jnp.max(jnp.abs(diagonal(matrix)), axis=-1)
    identity = jnp.broadcast_to(jnp.eye(d, dtype=matrix.dtype), matrix.shape)
    # What remains after the last sweep is of the order of the square of what was there before.
    least = 0.1 * np.sqrt(eps) * top
    turned, vectors = _swept(matrix[..., None, :, :], identity, angles, least, EIGEN_SWEEPS)
    values = diagonal(turned[..., 0, :, :])
    order = jnp.argsort(-values, axis=-1)
    vectors = jnp.take_along_axis(vectors, order[..., None, :], axis=-1)
    return jnp.take_along_axis(values, order, axis=-1), vectors


@eigen.defjvp
def _eigen_jvp(primals, tangents):
    values, vectors = eigen(*primals)
    (change,) = tangents
    inner = times(times(vectors.swapaxes(-1, -2), change), vectors)
    gap = values[..., None, :] - values[..., :, None]
    near = jnp.abs(gap) <= 8 * jnp.finfo(values.dtype).eps * jnp.abs(values[..., :1, None])
    turn = jnp.where(near, 0, inner / jnp.where(near, 1, gap))
    return (values, vectors), (diagonal(inner), times(vectors, turn))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def common_axes(matrices, weights, starts, is_volume_shared: bool):
    """Orthogonal axes D (d, d), as columns, that minimise Σ_k weight_k · log |diag(Dᵀ S_k D)|; with
    is_volume_shared, Σ_k weight_k · |diag(Dᵀ S_k D)|^(1/d).

    These are the maximum likelihood axes of normals with one orientation and covariances S_k
    (k, d, d), positive definite, of `weights` (k,) units each; is_volume_shared: with one
    determinant. From every one of `starts` (s, d, d) pairs of axes are rotated until none gains
    more than a rounding error. The axes from the first start are returned unless another end is
    better by more than rounding errors. Sources: Flury & Gautschi 1986 (rotations of pairs), Browne
    & McNicholas 2014 (the objectives).

    A pair's angle: with ψ = 4 · angle the product of two diagonal entries of S_k is
    h_k(ψ) = h_k(0) + u_k (1 − cos ψ) − v_k sin ψ. The objective is a sum of concave functions of
    the h_k; their tangents at ψ = 0 give a bound whose minimum is atan2(Σ v'_k, Σ u'_k), which
    never raises the objective. A Newton step in ψ is taken where it is better.
    """
    d, eps = matrices.shape[-1], jnp.finfo(matrices.dtype).eps
    if d == 1:
        return jnp.ones_like(matrices[0])
    total = weights.sum()
    share = weights / jnp.where(total > 0, total, 1)
    turned = times(times(starts.swapaxes(-1, -2)[:, None], matrices), starts[:, None])
    bend = 1 - 1 / d if is_volume_shared else 1.0

    def angles(p, q, off, log_volume=None):
        product = p * q
        half = (p - q) / 2
        u, v = (jnp.square(half) - jnp.square(off)) / 2 / product, half * off / product
        relative = share
        if is_volume_shared:  # relative to the present value
            present = share * jnp.exp(log_volume - jnp.max(log_volume, axis=-1, keepdims=True))
            relative = present / present.sum(-1, keepdims=True)
        relative = relative[..., None]

        def change_of_objective(angle):
            sine, half_sine = jnp.sin(angle)[..., None, :], jnp.sin(angle / 2)[..., None, :]
            change = 2 * u * jnp.square(half_sine) - v * sine
            log_change = jnp.log1p(jnp.maximum(change, -1 + eps))
            each = jnp.expm1(log_change / d) * d if is_volume_shared else log_change
            return (relative * each).sum(-2)

        slope = (relative * v).sum(-2)
        bound_slope = (relative * u).sum(-2)
        of_bound = jnp.arctan2(slope, bound_slope)
        curvature = bound_slope + bend * (relative * -jnp.square(v)).sum(-2)
        newton = slope / jnp.where(curvature > 0, curvature, 1)
        by_newton, by_bound = change_of_objective(jnp.stack([newton, of_bound]))
        is_better = (curvature > 0) & (jnp.abs(newton) < 1) & (by_newton <= by_bound)
        angle = jnp.where(is_better, newton, of_bound)
        length = jnp.hypot(slope, bound_slope)
        is_steep = bound_slope <= 0
        gain = jnp.where(
            is_steep,
            length - bound_slope,
            jnp.square(slope) / jnp.where(is_steep, 1, length + bound_slope),
        )
        return angle / 4, gain

    turned, axes = _swept(turned, starts, angles, eps, COMMON_SWEEPS, volumes=is_volume_shared)
    value = _objective(diagonal(turned), share, is_volume_shared)
    is_first = jnp.arange(len(value)) == 0
    return axes[jnp.argmin(value - jnp.where(is_first, np.sqrt(eps), 0))]


def value_of_axes(axes, matrices, weights, is_volume_shared: bool):
    """The objective of `common_axes` at each of `axes` (s, d, d), (s,); with is_volume_shared, d
    times its logarithm."""
    turned = times(times(axes.swapaxes(-1, -2)[:, None], matrices), axes[:, None])
    return _objective(diagonal(turned), weights, is_volume_shared)


def _objective(diagonals, weights, is_volume_shared: bool):
    """The same from the diagonals of the turned matrices (s, k, d)."""
    logs = jnp.log(diagonals)
    if not is_volume_shared:
        return (weights * logs.sum(-1)).sum(-1)
    means = logs.mean(-1)
    top = jnp.max(means)
    return diagonals.shape[-1] * (jnp.log((weights * jnp.exp(means - top)).sum(-1)) + top)


@common_axes.defjvp
def _common_axes_jvp(is_volume_shared, primals, tangents):
    """By the implicit function theorem: the slope of the objective along every rotation stays 0."""
    axes = common_axes(*primals, is_volume_shared)
    d = axes.shape[-1]
    if d == 1:
        return axes, jnp.zeros_like(axes)
    matrices, weights, _ = primals
    p, q = np.triu_indices(d, 1)
    planes = np.zeros((len(p), d, d), axes.dtype)
    planes[np.arange(len(p)), p, q], planes[np.arange(len(p)), q, p] = 1, -1

    def turned_axes(turn):
        return times(axes, (turn[:, None, None] * planes).sum(0))

    def slope(turn, matrices, weights):
        basis = axes + turned_axes(turn)
        turned = times(times(basis.T, matrices), basis)
        values = diagonal(turned)
        volume = jnp.exp(jnp.log(values).mean(-1)) if is_volume_shared else 1.0
        scale = (weights * volume)[:, None] / weights.sum()
        return (scale * turned[:, p, q] * (1 / values[:, q] - 1 / values[:, p])).sum(0)

    zero = jnp.zeros(len(p), axes.dtype)
    hessian = jax.jacfwd(slope)(zero, matrices, weights)
    change = jax.jvp(lambda *args: slope(zero, *args), (matrices, weights), tangents[:2])[1]
    ridge = jnp.finfo(axes.dtype).eps * jnp.trace(jnp.abs(hessian)) + jnp.finfo(axes.dtype).tiny
    hessian = (hessian + hessian.T) / 2 + ridge * jnp.eye(len(p), dtype=axes.dtype)
    inverse = triangular_inverse(cholesky(hessian))
    turn = -times(inverse.T, times(inverse, change))
    return axes, turned_axes(turn)


def _swept(matrices, axes, angles, tolerance, most: int, volumes: bool = False):
    """(matrices (..., k, d, d), axes (..., d, d)) after sweeps of rotations of all pairs of axes.

    angles(p, q, off) -> (the angle, and what remains to be gained, both (..., m)), for m pairs with
    diagonal entries p, q and the entry `off` of the pair, all (..., k, m); with `volumes` there is
    a fourth argument, the mean logarithm of the diagonals (..., k). Sweeps end when nothing above
    `tolerance` (...) remains, or after `most`. After `QUICK_SWEEPS` every sweep doubles the
    tolerance: where convergence is that slow, the next M-step begins from these axes.
    """
    d = matrices.shape[-1]
    middle = d // 2
    after = _schedule(d)

    def parts(array, axis):
        return jnp.split(array, [middle, 2 * middle], axis=axis)

    def one_round(i, carry):
        matrices, axes, remaining = carry
        top, bottom, _ = parts(matrices, -2)
        (pp, pq, _), (_, qq, _) = parts(top, -1), parts(bottom, -1)
        given = (jnp.log(diagonal(matrices)).mean(-1),) if volumes else ()
        angle, gain = angles(diagonal(pp), diagonal(qq), diagonal(pq), *given)
        c, s = jnp.cos(angle), jnp.sin(angle)

        def rotated(array, c, s, axis):
            first, second, rest = parts(array, axis)
            return jnp.concatenate([c * first + s * second, c * second - s * first, rest], axis)

        matrices = rotated(matrices, c[..., None, None, :], s[..., None, None, :], -1)
        matrices = rotated(matrices, c[..., None, :, None], s[..., None, :, None], -2)
        axes = rotated(axes, c[..., None, :], s[..., None, :], -1)
        matrices = matrices[..., after, :][..., after]
        return matrices, axes[..., after], jnp.maximum(remaining, gain.max(-1))

    def sweep(carry):
        count, matrices, axes, _ = carry
        state = (matrices, axes, jnp.zeros(axes.shape[:-2], axes.dtype))
        state = jax.lax.fori_loop(0, d - 1 + d % 2, one_round, state)
        return count + 1, *state

    def is_unfinished(carry):
        count, remaining = carry[0], carry[3]
        slow = jnp.exp2(jnp.maximum(count - QUICK_SWEEPS, 0).astype(axes.dtype))
        return (count < most) & jnp.any(remaining > slow * tolerance)

    start = (0, matrices, axes, jnp.full(axes.shape[:-2], jnp.inf, axes.dtype))
    _, matrices, axes, _ = jax.lax.while_loop(is_unfinished, sweep, start)
    return matrices, axes


def _schedule(d: int):
    """The permutation of the axes after every round, in which pairs are i and d // 2 + i.

    The axes go round a circle, as in a tournament. One that is left over rests; where none is, the
    first stays at its place.
    """
    middle = d // 2
    order = np.arange(d)
    if d == 2:
        return order
    if d % 2 == 0:
        return np.concatenate(
            [[0, middle], order[1 : middle - 1], order[middle + 1 :], [middle - 1]]
        )
    circle = np.concatenate([[d - 1], order[:middle], order[middle : d - 1][::-1]])
    after = np.empty(d, int)
    after[circle] = np.roll(circle, 1)
    return after


def assembled(axes, values):
    """D diag(values) Dᵀ for axes D (..., d, d), as columns, and values (..., d)."""
    scaled = axes * values[..., None, :]
    return jnp.matmul(scaled, axes.swapaxes(-1, -2), precision=Precision.HIGHEST)
