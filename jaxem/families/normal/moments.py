"""Functions of all covariance structures."""

import math

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.linalg import copies

LOG_2PI = math.log(2 * math.pi)


def weighted_sums(weights, centred, products):
    """Σ_n weight (k,), · c (k, d), and · each of `products` (k, m, n), as (k, m).

    Computed as matrix-vector products: sums along a minor axis are not vectorised on a CPU. Arrays
    are not concatenated for one product, which is slower, above all in reverse differentiation.
    """
    column = weights[..., None]
    sums = (jnp.matmul(a, column, precision=Precision.HIGHEST) for a in (centred, products))
    return weights.sum(-1), *(a[..., 0] for a in sums)


def centre(x, mean):
    """x (n, d) about every component's mean (k, d): (k, d, n)."""
    return copies(x.T, mean.shape[0]) - mean[:, :, None]


def variance_floor(dtype) -> float:
    """The smallest variance of standardised data that does not count as a collapse.

    It is a standard deviation of about 2e-5 of the spread in float32 and 6e-12 in float64.
    """
    return 10 * float(jnp.finfo(dtype).eps) ** 1.5
