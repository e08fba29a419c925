"""Factors of small covariance matrices, and the floor that keeps them positive definite.

Axes: `...` any batch, `d` features, `n` units (minor, so that elementwise code vectorises).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import Precision

UNROLL = 8
"""Up to this many features the Cholesky factor is unrolled into elementwise code: a LAPACK call
costs about 0.3 microseconds whatever its size, and a custom call stops fusion."""

SERIAL = 16
"""Up to this many features LAPACK solves triangular systems in one thread. Its threads wait for one
another in a loop: where other work holds a core, 16 systems of 64 took 500 ms instead of 0.5."""

RAISE = 2.0
"""What a singular matrix is raised by, in roundings of its variances."""


def entries(a):
    """The lower triangle of (..., d, d) as nested lists of (...) arrays."""
    return [[a[..., i, j] for j in range(i + 1)] for i in range(a.shape[-1])]


class Factor:
    """The Cholesky factor of a (..., d, d) covariance: pivots, log-determinant, whitening.

    `pivots[..., j]` is the variance of feature j given the features before it; a matrix is
    positive definite exactly when all pivots are positive.
    """

    def __init__(self, covariance):
        self.d = covariance.shape[-1]
        self.diagonal = jnp.stack([covariance[..., i, i] for i in range(self.d)], axis=-1)
        if self.d <= UNROLL:
            self.pivots, self.unit = _unrolled_ldl(entries(covariance))
        else:
            lower = lax.linalg.cholesky(covariance, symmetrize_input=False)
            self.pivots = jnp.diagonal(lower, axis1=-2, axis2=-1) ** 2
            self.inverse = triangular_inverse(lower)

    @property
    def log_det(self):
        """log |covariance|, shape (...)."""
        return jnp.log(self.pivots).sum(-1)

    def mahalanobis(self, centred):
        """x' covariance⁻¹ x for `centred` of shape (..., d, n); returns (..., n)."""
        if self.d > UNROLL:
            white = jnp.matmul(self.inverse, centred, precision=lax.Precision.HIGHEST)
            return jnp.square(white).sum(-2)
        total, solved = 0.0, []
        for i in range(self.d):
            z = centred[..., i, :]
            for j in range(i):
                z = z - self.unit[i][j][..., None] * solved[j]
            solved.append(z)
            total = total + jnp.square(z) * (1.0 / self.pivots[..., i])[..., None]
        return total

    def singular(self):
        """Whether some pivot is lost in the rounding of the moments it came from, shape (...)."""
        tolerance = rounding(self.d, self.diagonal.dtype)
        return ~jnp.all(self.pivots > tolerance * self.diagonal, axis=-1)


def _unrolled_ldl(a):
    """Pivots (..., d) and the unit lower triangle of the LDLᵀ factorisation of nested lists."""
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
    return jnp.stack(pivots, axis=-1), unit


def triangular_inverse(lower):
    """The inverse of lower triangular (..., d, d) matrices, by halves."""
    d, h = lower.shape[-1], lower.shape[-1] // 2
    if d <= SERIAL:
        eye = jnp.broadcast_to(jnp.eye(d, dtype=lower.dtype), lower.shape)
        return lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    a, c = triangular_inverse(lower[..., :h, :h]), triangular_inverse(lower[..., h:, h:])
    high = lax.Precision.HIGHEST
    b = -jnp.matmul(c, jnp.matmul(lower[..., h:, :h], a, precision=high), precision=high)
    top = jnp.concatenate([a, jnp.zeros_like(b).swapaxes(-1, -2)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([b, c], axis=-1)], axis=-2)


def rounding(d: int, dtype) -> float:
    """The relative size of a pivot of a (d, d) matrix of moments that is rounding and no more."""
    return 8.0 * d * float(jnp.finfo(dtype).eps)


def floored(covariance, floor):
    """`covariance` where it is sound, else with its diagonal raised until it is.

    A matrix is left alone, bit for bit, unless a variance is below `floor` (a scalar or (d,)) or a
    pivot is lost in rounding. A variance is raised to the floor; for a lost pivot every eigenvalue
    of the correlation matrix is raised by `RAISE` roundings.
    """
    factor = Factor(covariance)
    diagonal, d = factor.diagonal, covariance.shape[-1]
    lost = factor.singular()[..., None]
    sound = ~lost & jnp.all(diagonal >= floor, axis=-1, keepdims=True)
    target = jnp.maximum(diagonal, floor)
    target = jnp.where(lost, (1 + RAISE * rounding(d, covariance.dtype)) * target, target)
    raised = covariance + (target - diagonal)[..., None] * jnp.eye(d, dtype=covariance.dtype)
    return jnp.where(sound[..., None], covariance, raised)


def is_floored(covariance, floor):
    """Whether a covariance is one that `floored` raised, or as close to singular; shape (...).

    A lost pivot bounds the smallest eigenvalue of the correlation matrix from above, so what was
    raised stays below RAISE + 1 roundings; pivots after the raise can be of any size.
    """
    d = covariance.shape[-1]
    diagonal = jnp.stack([covariance[..., i, i] for i in range(d)], axis=-1)
    margin = (RAISE + 1.5) * rounding(d, covariance.dtype)
    lowered = covariance - (margin * diagonal)[..., None] * jnp.eye(d, dtype=covariance.dtype)
    positive = jnp.all(Factor(lowered).pivots > 0, axis=-1)
    return ~positive | jnp.any(diagonal <= floor * (1 + 2 * margin), axis=-1)


def lower_factor(covariance):
    """The lower Cholesky factor of (..., d, d); NaN where a matrix is not positive definite."""
    d = covariance.shape[-1]
    if d > UNROLL:
        return lax.linalg.cholesky(covariance, symmetrize_input=False)
    pivots, unit = _unrolled_ldl(entries(covariance))
    zero = jnp.zeros_like(pivots[..., 0])
    rows = [jnp.stack([*unit[i][:i], zero + 1, *([zero] * (d - 1 - i))], axis=-1) for i in range(d)]
    return jnp.stack(rows, axis=-2) * jnp.sqrt(pivots)[..., None, :]


def lower_solve(lower, b):
    """lower⁻¹ b for lower triangular (..., d, d) and b (..., d, m)."""
    d = lower.shape[-1]
    if d > UNROLL:
        return jnp.matmul(triangular_inverse(lower), b, precision=lax.Precision.HIGHEST)
    rows = []
    for i in range(d):
        row = b[..., i, :]
        for j in range(i):
            row = row - lower[..., i, j, None] * rows[j]
        rows.append(row / lower[..., i, i, None])
    return jnp.stack(rows, axis=-2)


def solve_positive(a, b):
    """a⁻¹ b for positive definite a (m, m) and b (m,), unrolled: for a handful of unknowns."""
    m = a.shape[0]
    pivots, unit = _unrolled_ldl(entries(a))
    y = []
    for i in range(m):
        y.append(b[i] - sum(unit[i][j] * y[j] for j in range(i)))
    z = [None] * m
    for i in reversed(range(m)):
        z[i] = y[i] / pivots[i] - sum(unit[j][i] * z[j] for j in range(i + 1, m))
    return jnp.stack(z)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def copies(x, size: int):
    """x `size` times along a new leading axis, as a matrix product where it is differentiated.

    In reverse a broadcast is a sum over the leading axis, which XLA may spend 20 times longer on
    than on the product ((4, 8, 5000), jaxlib 0.10.2: 1.3 ms against 0.05).
    """
    return jnp.broadcast_to(x[None], (size, *x.shape))


@copies.defjvp
def _copied(size, primals, tangents):
    (x,), (tangent,) = primals, tangents
    ones = jnp.ones((size, 1), tangent.dtype)
    flat = jnp.matmul(ones, tangent.reshape(1, -1), precision=lax.Precision.HIGHEST)
    return copies(x, size), flat.reshape(size, *tangent.shape)


def times(matrix, vector):
    return jnp.matmul(matrix, vector, precision=Precision.HIGHEST)
