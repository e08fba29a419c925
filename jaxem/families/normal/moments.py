"""Functions of all covariance structures."""

import math
from typing import Any, NamedTuple

import jax
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


class Limits(NamedTuple):
    """What decides which variances are a collapse, in the units of the arithmetic.

    varies: (d,), the features that are not the same in all units. added: what is added to the
    covariance of every component for the other features, (d, d) or (d,); 0 for one common variance.
    """

    varies: Any
    added: Any

    def floor(self, mean):
        """The smallest variances (k, d) of components with means (k, d): of a standard deviation of
        `FLOOR_IN_ROUNDINGS` rounding errors of values in the neighbourhood of the mean. It is not
        differentiated."""
        eps = FLOOR_IN_ROUNDINGS * float(jnp.finfo(mean.dtype).eps)
        return eps**2 * (1 + jnp.square(jax.lax.stop_gradient(mean)))


FLOOR_IN_ROUNDINGS = 2.0
