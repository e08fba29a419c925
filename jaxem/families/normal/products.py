"""Normal log densities as linear functions of products of the data: two matrix products a pass.

With z = (x, 1), log p(x | k) = zᵀ Q_k z, and Σ w z zᵀ holds all moments. Features have the units
minor. `d` features of the data, `D` = d + 1, `m` products, `n` units, `k` components.

One object for every covariance structure, with `size(d)`, the m, and `one(d)`, the feature that is
1; `features(x)`, (m, n) from (d, n); `coefficients(mean, covariance, level)`, (k, m), with level
(k,) added to every log density; `moments(mean, sums)`, the moments about the means from
Σ w · features (m, k); `terms(mean, covariance)`, (k,), the size of the terms of which a log density
is the small difference, on average over a component's own units.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxem.numerics.linalg import triangular_inverse

LOG_2PI = math.log(2 * math.pi)


def append_one(x):
    """z = (x, 1): (D, n) from (d, n)."""
    return jnp.concatenate([x, jnp.ones((1, x.shape[1]), x.dtype)])


def products(z):
    """z_i · z_j for every pair, in the order of `pairs`: (m, n) from (D, n).

    Row s of the circulant order is z times z shifted by s: one loop over whole rows with nothing to
    gather or to join (n = 131,072, D = 17: 4 ms; slices joined 10 ms, a gather 15 ms, the full
    outer product 18 ms for the larger products).
    """
    size, n = z.shape
    shifts = size // 2 + 1
    copies = -(-shifts * (size + 1) // size)
    turned = jnp.broadcast_to(z, (copies, size, n)).reshape(-1, n)[: shifts * (size + 1)]
    turned = turned.reshape(shifts, size + 1, n)[:, :size]
    return (z * turned).reshape(-1, n)


def pairs(size: int):
    """The pairs (i, j) of `products`, how often each counts in a quadratic form, and where each
    entry of a (size, size) matrix stands. Of an even size the last shift holds its pairs twice."""
    shift, i = (a.ravel() for a in np.indices((size // 2 + 1, size)))
    j = (i + shift) % size
    often = np.where((shift == 0) | (2 * shift == size), 1.0, 2.0)
    place = np.zeros((size, size), int)
    place[i, j] = place[j, i] = np.arange(i.size)
    return i, j, often, place


def packed(form):
    """Coefficients (k, m) of `products` from symmetric forms (k, D, D)."""
    i, j, often, _ = pairs(form.shape[-1])
    return form[:, i, j] * often.astype(form.dtype)


def unpacked(sums, size: int):
    """Σ w z zᵀ (k, D, D) from sums (m, k)."""
    return jnp.moveaxis(sums[pairs(size)[-1]], -1, 0)


def inverse(covariance):
    """Precisions and log-determinants of (..., d, d) covariances."""
    lower = lax.linalg.cholesky(covariance, symmetrize_input=False)
    root = triangular_inverse(lower)
    precision = jnp.matmul(root.swapaxes(-1, -2), root, precision=lax.Precision.HIGHEST)
    log_det = 2 * jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
    return precision, log_det


class FullForm:
    """All products of two features of z."""

    def size(self, d):
        return (d + 1) * ((d + 1) // 2 + 1)

    def one(self, d):
        return int(pairs(d + 1)[-1][d, d])

    def features(self, x):
        return products(append_one(x))

    def coefficients(self, mean, covariance, level):
        d = mean.shape[1]
        precision, log_det = self._inverse(mean, covariance)
        slope = jnp.einsum("kij,kj->ki", precision, mean, precision=lax.Precision.HIGHEST)
        level = level - 0.5 * (d * LOG_2PI + log_det + (slope * mean).sum(-1))
        top = jnp.concatenate([-0.5 * precision, 0.5 * slope[:, :, None]], axis=2)
        bottom = jnp.concatenate([0.5 * slope, level[:, None]], axis=1)
        return packed(jnp.concatenate([top, bottom[:, None]], axis=1))

    def moments(self, mean, sums):
        d = mean.shape[1]
        about_zero = unpacked(sums, d + 1)
        count, total = about_zero[:, d, d], about_zero[:, :d, d]
        first = total - count[:, None] * mean
        cross = first[:, :, None] * mean[:, None, :]
        outer = (count[:, None] * mean)[:, :, None] * mean[:, None, :]
        return count, first, about_zero[:, :d, :d] - cross - cross.swapaxes(1, 2) - outer

    def terms(self, mean, covariance):
        precision, _ = self._inverse(mean, covariance)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        reach = jnp.sqrt(jnp.square(mean) + variance)
        return (reach[:, :, None] * jnp.abs(precision) * reach[:, None, :]).sum((1, 2))

    def _inverse(self, mean, covariance):
        return inverse(covariance)


class TiedForm(FullForm):
    """As for full covariances: the products cost less than what they would share."""

    def moments(self, mean, sums):
        count, first, second = super().moments(mean, sums)
        return count, first, second.sum(0)

    def _inverse(self, mean, covariance):
        precision, log_det = inverse(covariance)
        k = mean.shape[0]
        return jnp.broadcast_to(precision, (k, *precision.shape)), jnp.broadcast_to(log_det, (k,))


class DiagonalForm:
    """Squares and values of x, and 1."""

    def size(self, d):
        return 2 * d + 1

    def one(self, d):
        return 2 * d

    def features(self, x):
        power = jnp.arange(2)[:, None, None]  # one loop over whole rows; joined: four times
        return append_one(jnp.where(power == 0, jnp.square(x), x).reshape(-1, x.shape[1]))

    def coefficients(self, mean, covariance, level):
        d, precision = mean.shape[1], 1 / covariance
        slope = precision * mean
        log_det = jnp.log(covariance).sum(-1)
        level = level - 0.5 * (d * LOG_2PI + log_det + (slope * mean).sum(-1))
        return jnp.concatenate([-0.5 * precision, slope, level[:, None]], axis=1)

    def moments(self, mean, sums):
        d = mean.shape[1]
        squares, total, count = sums[:d].T, sums[d:-1].T, sums[-1]
        first = total - count[:, None] * mean
        return count, first, squares - mean * (2 * first + count[:, None] * mean)

    def terms(self, mean, covariance):
        return (jnp.square(mean) / covariance + 1).sum(-1)


class SphericalForm:
    """The values of x, 1, and the squared length."""

    def size(self, d):
        return d + 2

    def one(self, d):
        return d

    def features(self, x):
        return jnp.concatenate([append_one(x), jnp.square(x).sum(0, keepdims=True)])

    def coefficients(self, mean, covariance, level):
        d, precision = mean.shape[1], 1 / covariance
        slope = precision[:, None] * mean
        level = level - 0.5 * (d * LOG_2PI + d * jnp.log(covariance) + (slope * mean).sum(-1))
        return jnp.concatenate([slope, level[:, None], -0.5 * precision[:, None]], axis=1)

    def moments(self, mean, sums):
        squares, count, total = sums[-1], sums[-2], sums[:-2].T
        first = total - count[:, None] * mean
        return count, first, squares - (mean * (2 * first + count[:, None] * mean)).sum(-1)

    def terms(self, mean, covariance):
        return jnp.square(mean).sum(-1) / covariance + mean.shape[1]


FORMS = {
    "full": FullForm(),
    "tied": TiedForm(),
    "diagonal": DiagonalForm(),
    "spherical": SphericalForm(),
}
