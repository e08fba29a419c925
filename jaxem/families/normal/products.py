"""Quadratic features and their sums: with z = (x, 1), a log density is zᵀ Q z.

Features have the units minor. `D` features of z, `m` products, `n` units, `k` components.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxem.numerics.triangular import cholesky, triangular_inverse


def append_one(x):
    """z = (x, 1): (D, n) from (d, n)."""
    return jnp.concatenate([x, jnp.ones((1, x.shape[1]), x.dtype)])


def products(z):
    """z_i · z_j for every pair, in the order of `pairs`: (m, n) from (D, n).

    Row s of the circulant order is z times z shifted by s: one loop over whole rows, without a
    gather or a concatenation (n = 131,072, D = 17: 4 ms; concatenated slices 10 ms, a gather 15 ms,
    the full outer product 18 ms for the larger products).
    """
    size, n = z.shape
    shifts = size // 2 + 1
    copies = -(-shifts * (size + 1) // size)
    turned = jnp.broadcast_to(z, (copies, size, n)).reshape(-1, n)[: shifts * (size + 1)]
    turned = turned.reshape(shifts, size + 1, n)[:, :size]
    return (z * turned).reshape(-1, n)


def pairs(size: int):
    """(i, j, multiplicity, place): the pairs of `products`, the factor of each in a quadratic form,
    and the index of the product for each entry of a (size, size) matrix. For an even size the last
    shift has each of its pairs twice."""
    shift, i = (a.ravel() for a in np.indices((size // 2 + 1, size)))
    j = (i + shift) % size
    multiplicity = np.where((shift == 0) | (2 * shift == size), 1.0, 2.0)
    place = np.zeros((size, size), int)
    place[i, j] = place[j, i] = np.arange(i.size)
    return i, j, multiplicity, place


def packed(form):
    """Coefficients (k, m) of `products` from symmetric forms (k, D, D)."""
    i, j, multiplicity, _ = pairs(form.shape[-1])
    return form[:, i, j] * multiplicity.astype(form.dtype)


def unpacked(sums, size: int):
    """Σ w z zᵀ (k, D, D) from sums (m, k)."""
    return jnp.moveaxis(sums[pairs(size)[-1]], -1, 0)


def inverse(covariance):
    """Precisions and log-determinants of (..., d, d) covariances."""
    lower = cholesky(covariance)
    root = triangular_inverse(lower)
    precision = jnp.matmul(root.swapaxes(-1, -2), root, precision=lax.Precision.HIGHEST)
    log_det = 2 * jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
    return precision, log_det
