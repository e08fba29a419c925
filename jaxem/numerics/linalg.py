"""Cholesky factors of small covariance matrices, and the floor that keeps them positive definite.

Axes: `...` any batch, `d` features, `n` units (last, so that elementwise code vectorises).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxem.numerics import tuning
from jaxem.numerics.triangular import cholesky, times, triangular_inverse

RAISE_IN_ROUNDINGS = 2.0
"""By how much the diagonal of a singular matrix is raised, in rounding errors of its variances."""


def entries(a):
    """The lower triangle of (..., d, d) as nested lists of (...) arrays."""
    return [[a[..., i, j] for j in range(i + 1)] for i in range(a.shape[-1])]


def diagonal(a):
    """The diagonals (..., d) of (..., d, d).

    For large d it is one slice of the entries in a row: a slice for each takes long to compile, and
    the derivative of `jnp.diagonal` is a scatter.
    """
    d = a.shape[-1]
    if d <= tuning.unrolled_features():
        return jnp.stack([a[..., i, i] for i in range(d)], axis=-1)
    row = a.reshape(*a.shape[:-2], d * d)
    return lax.slice_in_dim(row, 0, None, d + 1, axis=-1)


class Factor:
    """The Cholesky factor of a (..., d, d) covariance: pivots, log-determinant, whitening.

    `pivots[..., j]` is the variance of feature j given the features before it; a matrix is
    positive definite exactly when all pivots are positive.
    """

    def __init__(self, covariance):
        self.d = covariance.shape[-1]
        self.diagonal = diagonal(covariance)
        if self.d <= tuning.unrolled_features():
            self.pivots, self.unit = _unrolled_ldl(entries(covariance))
        else:
            self.lower = cholesky(covariance)
            self.pivots = diagonal(self.lower) ** 2

    @property
    def log_det(self):
        """log |covariance|, shape (...)."""
        return jnp.log(self.pivots).sum(-1)

    def mahalanobis(self, centred):
        """x' covariance⁻¹ x for `centred` of shape (..., d, n); returns (..., n)."""
        if self.d > tuning.unrolled_features():
            return jnp.square(times(triangular_inverse(self.lower), centred)).sum(-2)
        total, solved = 0.0, []
        for i in range(self.d):
            z = centred[..., i, :]
            for j in range(i):
                z = z - self.unit[i][j][..., None] * solved[j]
            solved.append(z)
            total = total + jnp.square(z) * (1.0 / self.pivots[..., i])[..., None]
        return total

    def singular(self):
        """Whether any pivot is within the rounding error of the moments it came from, (...)."""
        tolerance = pivot_rounding(self.d, self.diagonal.dtype)
        return ~jnp.all(self.pivots > tolerance * self.diagonal, axis=-1)


def _unrolled_ldl(a):
    """As `_ldl`, with the pivots as one array (..., d)."""
    pivots, unit = _ldl(a)
    return jnp.stack(pivots, axis=-1), unit


def _ldl(a):
    """The pivots and the unit lower triangle of the LDLᵀ factorisation of nested lists."""
    d = len(a)
    pivots, unit = [], [[None] * d for _ in range(d)]
    for j in range(d):
        pivot = a[j][j]
        for m in range(j):
            pivot = pivot - unit[j][m] * (unit[j][m] * pivots[m])
        pivots.append(pivot)
        for i in range(j + 1, d):
            value = a[i][j]
            for m in range(j):
                value = value - unit[i][m] * (unit[j][m] * pivots[m])
            unit[i][j] = value / pivot
    return pivots, unit


def pivot_rounding(d: int, dtype) -> float:
    """A bound on the rounding error of a pivot of a (d, d) matrix of moments, as a part of the
    variance of its feature."""
    return 8.0 * d * float(jnp.finfo(dtype).eps)


def floored(covariance, floor):
    """`covariance` with a diagonal raised as far as needed to make it positive definite.

    A matrix is returned bit for bit unless a variance is below `floor` (a scalar or (d,)) or a
    pivot is within rounding error. A variance below the floor is raised to the floor. Where a pivot
    is within rounding error, every eigenvalue of the correlation matrix is raised by
    `RAISE_IN_ROUNDINGS` times `pivot_rounding`.
    """
    factor = Factor(covariance)
    variance, d = factor.diagonal, covariance.shape[-1]
    is_lost = factor.singular()[..., None]
    is_sound = ~is_lost & jnp.all(variance >= floor, axis=-1, keepdims=True)
    target = jnp.maximum(variance, floor)
    target = jnp.where(
        is_lost, (1 + RAISE_IN_ROUNDINGS * pivot_rounding(d, covariance.dtype)) * target, target
    )
    raised = covariance + (target - variance)[..., None] * jnp.eye(d, dtype=covariance.dtype)
    return jnp.where(is_sound[..., None], covariance, raised)


def is_floored(covariance, floor):
    """Whether `floored` raised a covariance, or it is as close to singular as that; shape (...).

    A pivot bounds the smallest eigenvalue of the correlation matrix from above. So that eigenvalue
    stays below RAISE_IN_ROUNDINGS + 1 roundings after the raise, while pivots can be of any size.
    """
    d = covariance.shape[-1]
    variance = diagonal(covariance)
    margin = (RAISE_IN_ROUNDINGS + 1.5) * pivot_rounding(d, covariance.dtype)
    lowered = covariance - (margin * variance)[..., None] * jnp.eye(d, dtype=covariance.dtype)
    positive = jnp.all(Factor(lowered).pivots > 0, axis=-1)
    return ~positive | jnp.any(variance <= floor * (1 + 2 * margin), axis=-1)


def lower_factor(covariance):
    """The lower Cholesky factor of (..., d, d); NaN where a matrix is not positive definite."""
    d = covariance.shape[-1]
    if d > tuning.unrolled_features():
        return cholesky(covariance)
    pivots, unit = _unrolled_ldl(entries(covariance))
    zero = jnp.zeros_like(pivots[..., 0])
    rows = [jnp.stack([*unit[i][:i], zero + 1, *([zero] * (d - 1 - i))], axis=-1) for i in range(d)]
    return jnp.stack(rows, axis=-2) * jnp.sqrt(pivots)[..., None, :]


def inverse_trace(covariance):
    """tr R⁻¹ (...) of the correlation matrices R of (..., d, d): between the condition number of R
    over d and d times it. 1/ε where a matrix is not positive definite."""
    d = covariance.shape[-1]
    if d <= tuning.unrolled_features():
        trace = _unrolled_inverse_trace(entries(covariance))
    else:
        root = triangular_inverse(cholesky(covariance))
        trace = (jnp.square(root).sum(-2) * diagonal(covariance)).sum(-1)
    most = 1 / float(jnp.finfo(covariance.dtype).eps)
    return jnp.where((trace > 0) & (trace < most), trace, most)


def _unrolled_inverse_trace(a):
    """Σ_j a_jj (A⁻¹)_jj of nested lists: with A = L D Lᵀ, (A⁻¹)_jj = Σ_i (L⁻¹)_ij² / D_i."""
    d = len(a)
    pivots, unit = _ldl(a)
    trace = 0.0
    for j in range(d):
        column = {j: 1.0}
        for i in range(j + 1, d):
            column[i] = -sum(unit[i][m] * column[m] for m in range(j, i))
        trace = trace + a[j][j] * sum(column[i] * column[i] / pivots[i] for i in range(j, d))
    return trace


def lower_solve(lower, b):
    """lower⁻¹ b for lower triangular (..., d, d) and b (..., d, m)."""
    d = lower.shape[-1]
    if d > tuning.unrolled_features():
        return times(triangular_inverse(lower), b)
    rows = []
    for i in range(d):
        row = b[..., i, :]
        for j in range(i):
            row = row - lower[..., i, j, None] * rows[j]
        rows.append(row * (1 / lower[..., i, i, None]))
    return jnp.stack(rows, axis=-2)


def upper_solve(lower, b):
    """lower⁻ᵀ b for lower triangular (..., d, d) and b (..., d, m)."""
    d = lower.shape[-1]
    if d > tuning.unrolled_features():
        return times(triangular_inverse(lower).swapaxes(-1, -2), b)
    rows = [None] * d
    for i in reversed(range(d)):
        row = b[..., i, :]
        for j in range(i + 1, d):
            row = row - lower[..., j, i, None] * rows[j]
        rows[i] = row * (1 / lower[..., i, i, None])
    return jnp.stack(rows, axis=-2)


def solve_positive(a, b):
    """a⁻¹ b for positive definite a (m, m) and b (m,), unrolled: for few unknowns m."""
    m = a.shape[0]
    pivots, unit = _unrolled_ldl(entries(a))
    forward = []
    for i in range(m):
        forward.append(b[i] - sum(unit[i][j] * forward[j] for j in range(i)))
    solution = [None] * m
    for i in reversed(range(m)):
        solution[i] = forward[i] / pivots[i] - sum(
            unit[j][i] * solution[j] for j in range(i + 1, m)
        )
    return jnp.stack(solution)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def copies(x, size: int):
    """x repeated `size` times along a new leading axis, with a matrix product as its derivative.

    The reverse derivative of a broadcast is a sum over the leading axis. XLA may need 20 times
    longer for that sum than for the product ((4, 8, 5000), jaxlib 0.10.2: 1.3 ms against 0.05 ms).
    """
    return jnp.broadcast_to(x[None], (size, *x.shape))


@copies.defjvp
def _copies_jvp(size, primals, tangents):
    (x,), (tangent,) = primals, tangents
    ones = jnp.ones((size, 1), tangent.dtype)
    flat = jnp.matmul(ones, tangent.reshape(1, -1), precision=lax.Precision.HIGHEST)
    return copies(x, size), flat.reshape(size, *tangent.shape)
