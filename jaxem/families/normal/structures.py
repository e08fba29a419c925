"""The four covariance structures of a normal bank, each one object with the same few methods.

Shapes: `centred` (k, d, n) with the units minor, `weights` (k, n), `count` (k,), `v` (k, d);
a covariance has the shape that its structure names.
"""

import math

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.linalg import Factor, copies, floored, is_floored, lower_factor, lower_solve
from jaxem.protocol.priors import inverse_gamma, inverse_wishart
from jaxem.protocol.spaces import POSITIVE, POSITIVE_DEFINITE

NEAR = 1.001
"""A variance on the floor is still seen there after a change of units and back."""


STACKED = 4
"""Up to this many features full moments are one product with stacked rows: matrices of few rows
are slow (in lanes, d = 2: 2.3 µs against 5.6)."""

CACHED = 2**17
"""Numbers of a (k, d, rows) block of centred rows: beyond that, moments are summed over blocks that
stay in cache (4 lanes, n = 20,000, d = k = 8: 1.0 ms a lane against 1.8 to 2.7)."""


class Full:
    """A (d, d) covariance for every component: shape (k, d, d)."""

    space = POSITIVE_DEFINITE

    whole = True  # a matrix: its prior is inverse Wishart, that of variances inverse gamma

    common_scale = False

    def variances(self, covariance, shape):
        """The variance of every feature, of a shape that broadcasts to (k, d) = `shape`."""
        return jnp.diagonal(covariance, axis1=-2, axis2=-1)

    def unit(self, k, d, dtype):
        """Unit variances."""
        return jnp.broadcast_to(jnp.eye(d, dtype=dtype), (k, d, d))

    def quadratic(self, covariance, centred):
        """Mahalanobis distances (k, n) and log-determinants (k,)."""
        factor = Factor(covariance)
        return factor.mahalanobis(centred), factor.log_det

    def moments(self, weights, x, mean):
        """Σ_n weight (k,), Σ_n weight · c (k, d), Σ_n weight · c cᵀ in the structure's shape.

        c = x − mean; weights (k, n), x (n, d), mean (k, d).
        """
        (n, d), k = x.shape, mean.shape[0]
        if d <= STACKED:
            return self._stacked(weights, centre(x, mean))
        block = max(256, CACHED // (k * d))
        if n < 2 * block:
            return self._products(weights, centre(x, mean))

        columns = x.T

        def products(w, columns):
            return self._products(w, columns - mean[:, :, None])

        def add(i, sums):
            both = (weights, columns)
            here = [jax.lax.dynamic_slice_in_dim(a, i * block, block, 1) for a in both]
            return jax.tree.map(jnp.add, sums, products(*here))

        done = n - n % block
        sums = products(weights[:, done:], columns[:, done:])
        return jax.lax.fori_loop(0, n // block, add, sums)

    def _products(self, weights, centred):
        weighted = weights[:, None, :] * centred
        second = jnp.matmul(weighted, centred.swapaxes(1, 2), precision=Precision.HIGHEST)
        return weights.sum(-1), weighted.sum(-1), second

    def _stacked(self, weights, centred):
        rows = range(centred.shape[1])
        products = [centred[:, i] * centred[:, j] for i in rows for j in range(i + 1)]
        count, first, packed = weighted_sums(weights, centred, jnp.stack(products, 1))
        at = [[max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for j in rows] for i in rows]
        second = jnp.stack([jnp.stack([packed[:, j] for j in row], -1) for row in at], -2)
        return count, first, second

    def whitened(self, covariance, mean, chart):
        """Steps of the means (k, d) and of the covariance's chart in standard errors of a unit.

        With the factor L(I + E) the information on E is 1 off the diagonal and 2 on it.
        """
        mean = jnp.swapaxes(mean.reshape(*covariance.shape[:-2], -1, mean.shape[-1]), -1, -2)
        both = lower_solve(lower_factor(covariance), jnp.concatenate([mean, chart], -1))
        mean, chart = both[..., : mean.shape[-1]], both[..., mean.shape[-1] :]
        twice = jnp.where(jnp.eye(chart.shape[-1], dtype=bool), math.sqrt(2), 1)
        return jnp.swapaxes(mean, -1, -2).reshape(-1, mean.shape[-2]), twice * chart

    def outer(self, weights, v):
        """weight · v vᵀ, for weights (k,)."""
        return weights[:, None, None] * v[:, :, None] * v[:, None, :]

    def divisor(self, count, d, prior_df=None):
        """What the scatter is divided by in the M-step, shaped to broadcast against it."""
        n = count if prior_df is None else count + prior_df + d + 2
        return n[:, None, None]

    def floor(self, covariance, floor):
        return floored(covariance, floor)

    def is_floored(self, covariance, floor):
        return is_floored(covariance, floor)

    def rescale(self, covariance, s):
        """The covariance of the data times s (d,)."""
        return (covariance * s[:, None]) * s[None, :]

    def as_scale(self, scale, d):
        """A prior's scale: a matrix, or a vector or scalar for a diagonal one."""
        scale = jnp.asarray(scale)
        return scale if scale.ndim == 2 else jnp.eye(d, dtype=scale.dtype) * scale

    def log_prior(self, df, scale, covariance):
        return inverse_wishart(df, scale, covariance)

    def colour(self, covariance, z, noise):
        """White noise (n, d) given the covariance of component z (n,)."""
        root = jnp.linalg.cholesky(covariance)[z]
        return jnp.einsum("nij,nj->ni", root, noise, precision=Precision.HIGHEST)

    def n_parameters(self, k, d):
        return k * d * (d + 1) // 2


class Tied(Full):
    """One (d, d) covariance shared by all components: shape (d, d)."""

    def unit(self, k, d, dtype):
        return jnp.eye(d, dtype=dtype)

    def quadratic(self, covariance, centred):
        factor = Factor(covariance)
        distance = factor.mahalanobis(jnp.moveaxis(centred, 0, 1).reshape(centred.shape[1], -1))
        k, _, n = centred.shape
        return distance.reshape(k, n), jnp.broadcast_to(factor.log_det, (k,))

    def moments(self, weights, x, mean):
        count, first, second = super().moments(weights, x, mean)
        return count, first, second.sum(0)

    def outer(self, weights, v):
        return super().outer(weights, v).sum(0)

    def divisor(self, count, d, prior_df=None):
        n = count.sum() if prior_df is None else count.sum() + prior_df + d + 1 + count.shape[0]
        return n[None, None]

    def colour(self, covariance, z, noise):
        return jnp.matmul(noise, jnp.linalg.cholesky(covariance).T, precision=Precision.HIGHEST)

    def n_parameters(self, k, d):
        return d * (d + 1) // 2


class Diagonal:
    """One variance for every component and feature: shape (k, d)."""

    space = POSITIVE

    whole = False

    common_scale = False

    def variances(self, covariance, shape):
        return covariance

    def unit(self, k, d, dtype):
        return jnp.ones((k, d), dtype)

    def quadratic(self, covariance, centred):
        distance = (jnp.square(centred) * (1 / covariance)[..., None]).sum(1)
        return distance, jnp.log(covariance).sum(-1)

    def moments(self, weights, x, mean):
        centred = centre(x, mean)
        return weighted_sums(weights, centred, jnp.square(centred))

    def outer(self, weights, v):
        return weights[:, None] * jnp.square(v)

    def divisor(self, count, d, prior_df=None):
        n = count if prior_df is None else count + prior_df + 3
        return n[:, None]

    def floor(self, covariance, floor):
        return jnp.maximum(covariance, floor)

    def whitened(self, covariance, mean, chart):
        return mean / jnp.sqrt(covariance), chart / (math.sqrt(2) * covariance)

    def is_floored(self, covariance, floor):
        return jnp.any(covariance <= floor * NEAR, axis=-1)

    def rescale(self, covariance, s):
        return (covariance * s) * s

    def as_scale(self, scale, d):
        return jnp.broadcast_to(jnp.asarray(scale), (d,))

    def log_prior(self, df, scale, covariance):
        return inverse_gamma(df, scale, covariance)

    def colour(self, covariance, z, noise):
        return jnp.sqrt(covariance)[z] * noise

    def n_parameters(self, k, d):
        return k * d


class Spherical(Diagonal):
    """One variance for every component: shape (k,)."""

    common_scale = True

    def variances(self, covariance, shape):
        return covariance[:, None]

    def unit(self, k, d, dtype):
        return jnp.ones(k, dtype)

    def quadratic(self, covariance, centred):
        distance = jnp.square(centred).sum(1) * (1 / covariance)[:, None]
        return distance, centred.shape[1] * jnp.log(covariance)

    def moments(self, weights, x, mean):
        count, first, second = super().moments(weights, x, mean)
        return count, first, second.sum(-1)

    def outer(self, weights, v):
        return super().outer(weights, v).sum(-1)

    def divisor(self, count, d, prior_df=None):
        return count * d if prior_df is None else count * d + prior_df + d + 2

    def whitened(self, covariance, mean, chart):
        d = mean.shape[1]
        return mean / jnp.sqrt(covariance)[:, None], chart * (math.sqrt(d / 2) / covariance)

    def is_floored(self, covariance, floor):
        return covariance <= floor * NEAR

    def rescale(self, covariance, s):
        return (covariance * s[0]) * s[0]

    def as_scale(self, scale, d):
        return jnp.asarray(scale).reshape(())

    def colour(self, covariance, z, noise):
        return jnp.sqrt(covariance)[z][:, None] * noise

    def n_parameters(self, k, d):
        return k


STRUCTURES = {"full": Full(), "tied": Tied(), "diagonal": Diagonal(), "spherical": Spherical()}


def weighted_sums(weights, centred, products):
    """Σ_n weight (k,), · c (k, d), and · each of `products` (k, m, n), as (k, m).

    Matrix-vector products: sums along a minor axis do not vectorise on a CPU, and arrays joined for
    one product cost more than they save, above all in reverse.
    """
    column = weights[..., None]
    sums = (jnp.matmul(a, column, precision=Precision.HIGHEST) for a in (centred, products))
    return weights.sum(-1), *(a[..., 0] for a in sums)


def centre(x, mean):
    """x (n, d) about every component's mean (k, d): (k, d, n)."""
    return copies(x.T, mean.shape[0]) - mean[:, :, None]


def variance_floor(dtype) -> float:
    """The smallest variance of standardised data that is not taken for a collapse.

    A standard deviation of about 2e-5 of the spread in float32 and 6e-12 in float64.
    """
    return 10 * float(jnp.finfo(dtype).eps) ** 1.5


LOG_2PI = math.log(2 * math.pi)
