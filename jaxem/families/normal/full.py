"""A covariance matrix for every component, and its log density as products of features."""

import math

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal.gaussian import Form, Structure
from jaxem.families.normal.moments import LOG_2PI, centre, weighted_sums
from jaxem.families.normal.products import append_one, inverse, packed, pairs, products, unpacked
from jaxem.numerics import tuning
from jaxem.numerics.linalg import Factor, floored, is_floored, lower_factor, lower_solve
from jaxem.numerics.rows import are_sharded, summed
from jaxem.protocol.priors import inverse_wishart
from jaxem.protocol.spaces import POSITIVE_DEFINITE


class FullForm(Form):
    """All products of two features of z."""

    def is_faster(self, d):
        return d <= tuning.WIDEST_PRODUCTS

    def size(self, d):
        return (d + 1) * ((d + 1) // 2 + 1)

    def one(self, d):
        return int(pairs(d + 1)[-1][d, d])

    def features(self, x):
        return products(append_one(x))

    def coefficients(self, mean, covariance, level):
        d = mean.shape[1]
        precision, log_det = self._inverse(mean, covariance)
        slope = jnp.einsum("kij,kj->ki", precision, mean, precision=Precision.HIGHEST)
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


class Full(Structure):
    """A (d, d) covariance for every component: shape (k, d, d)."""

    space = POSITIVE_DEFINITE
    form = FullForm()
    whole = True
    scale_axes = 2

    def variances(self, covariance):
        """The variance of every feature, of a shape that broadcasts to (k, d)."""
        return jnp.diagonal(covariance, axis1=-2, axis2=-1)

    def unit(self, k, d, dtype):
        """Covariances with unit variances."""
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
        if d <= tuning.STACKED_FEATURES:
            return self._stacked(weights, centre(x, mean))
        block = max(256, tuning.chunk_numbers() // (k * d))
        if n < 2 * block:
            return self._products(weights, centre(x, mean))
        if are_sharded():
            return summed(lambda mean, x, w: self.moments(w.T, x, mean), mean, x, weights.T)

        columns = x.T

        def products(weights_of_block, columns):
            return self._products(weights_of_block, columns - mean[:, :, None])

        def add(i, sums):
            both = (weights, columns)
            block_arrays = [jax.lax.dynamic_slice_in_dim(a, i * block, block, 1) for a in both]
            return jax.tree.map(jnp.add, sums, products(*block_arrays))

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
        count, first, stacked = weighted_sums(weights, centred, jnp.stack(products, 1))
        positions = [[max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for j in rows] for i in rows]
        second = jnp.stack([jnp.stack([stacked[:, j] for j in row], -1) for row in positions], -2)
        return count, first, second

    def whitened(self, covariance, mean_step, factor_step):
        """Steps of the means (k, d) and of the covariance's factor in standard errors of one unit.

        With the factor L(I + E) the information on E is 1 off the diagonal and 2 on it.
        """
        mean_step = jnp.swapaxes(
            mean_step.reshape(*covariance.shape[:-2], -1, mean_step.shape[-1]), -1, -2
        )
        both = lower_solve(lower_factor(covariance), jnp.concatenate([mean_step, factor_step], -1))
        mean_step, factor_step = both[..., : mean_step.shape[-1]], both[..., mean_step.shape[-1] :]
        root_information = jnp.where(jnp.eye(factor_step.shape[-1], dtype=bool), math.sqrt(2), 1)
        return jnp.swapaxes(mean_step, -1, -2).reshape(
            -1, mean_step.shape[-2]
        ), root_information * factor_step

    def matrices(self, covariance, k, d):
        """The covariances as matrices (k, d, d)."""
        return covariance

    def gathered(self, second):
        """Second moments (k, d, d) in the structure's shape."""
        return second

    def outer(self, weights, v):
        """weight · v vᵀ, for weights (k,)."""
        return weights[:, None, None] * v[:, :, None] * v[:, None, :]

    def divisor(self, count, d, prior_df=None):
        """The divisor of the scatter in the M-step, of a shape that broadcasts to it."""
        n = count if prior_df is None else count + prior_df + d + 2
        return n[:, None, None]

    def per_component(self, floor):
        """Smallest variances (k, d) as those of its covariances."""
        return floor

    def on_diagonal(self, variances):
        """What adds `variances` (d,) to a covariance."""
        return variances[:, None] * jnp.eye(len(variances), dtype=variances.dtype)

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

    def against(self, scale, covariance, d):
        """tr(scale · covariance⁻¹), which broadcasts to (k,), and the log-determinant of scale."""
        root = jnp.broadcast_to(lower_factor(scale), covariance.shape)
        return Factor(covariance).mahalanobis(root).sum(-1), Factor(scale).log_det

    def colour(self, covariance, z, noise):
        """Noise (n, d) of unit covariance, transformed to the covariance of component z (n,)."""
        root = jnp.linalg.cholesky(covariance)[z]
        return jnp.einsum("nij,nj->ni", root, noise, precision=Precision.HIGHEST)

    def n_parameters(self, k, d):
        return k * d * (d + 1) // 2
