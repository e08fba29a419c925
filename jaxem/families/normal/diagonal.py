"""A variance for every component and feature."""

import math

import jax.numpy as jnp

from jaxem.families.normal.gaussian import Form, Structure
from jaxem.families.normal.moments import LOG_2PI, centre, weighted_sums
from jaxem.families.normal.products import append_one
from jaxem.protocol.priors import inverse_gamma
from jaxem.protocol.spaces import ABOVE_ZERO

ON_FLOOR = 1.001
"""The factor of the floor up to which a variance counts as on it: a change of units rounds."""


class DiagonalForm(Form):
    """Squares and values of x, and 1."""

    def size(self, d):
        return 2 * d + 1

    def one(self, d):
        return 2 * d

    def features(self, x):
        # One loop over whole rows; a concatenation takes four times as long.
        power = jnp.arange(2)[:, None, None]
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


class Diagonal(Structure):
    """One variance for every component and feature: shape (k, d)."""

    space = ABOVE_ZERO
    form = DiagonalForm()
    whole = False
    scale_axes = 1

    def variances(self, covariance):
        return covariance

    def unit(self, k, d, dtype):
        return jnp.ones((k, d), dtype)

    def quadratic(self, covariance, centred):
        distance = (jnp.square(centred) * (1 / covariance)[..., None]).sum(1)
        return distance, jnp.log(covariance).sum(-1)

    def moments(self, weights, x, mean):
        centred = centre(x, mean)
        return weighted_sums(weights, centred, jnp.square(centred))

    def matrices(self, covariance, k, d):
        """The covariances as matrices (k, d, d)."""
        variances = self.by_feature(covariance, d)
        return variances[..., None] * jnp.eye(d, dtype=covariance.dtype)

    def by_feature(self, covariance, d):
        """The variances (k, d) of all features."""
        return jnp.broadcast_to(self.variances(covariance), (covariance.shape[0], d))

    def gathered(self, second):
        """Second moments (k, d, d), or (k, d) of the features alone, in the structure's shape."""
        return jnp.diagonal(second, axis1=-2, axis2=-1) if second.ndim == 3 else second

    def outer(self, weights, v):
        return weights[:, None] * jnp.square(v)

    def divisor(self, count, d, prior_df=None):
        n = count if prior_df is None else count + prior_df + 3
        return n[:, None]

    def per_component(self, floor):
        return floor

    def on_diagonal(self, variances):
        return variances

    def floor(self, covariance, floor):
        return jnp.maximum(covariance, floor)

    def whitened(self, covariance, mean_step, covariance_step):
        return mean_step / jnp.sqrt(covariance), covariance_step / (math.sqrt(2) * covariance)

    def is_floored(self, covariance, floor):
        return jnp.any(covariance <= floor * ON_FLOOR, axis=-1)

    def rescale(self, covariance, s):
        return (covariance * s) * s

    def as_scale(self, scale, d):
        return jnp.broadcast_to(jnp.asarray(scale), (d,))

    def log_prior(self, df, scale, covariance):
        return inverse_gamma(df, scale, covariance)

    def against(self, scale, covariance, d):
        scales = jnp.broadcast_to(scale, (d,))
        return (scales / self.variances(covariance)).sum(-1), jnp.log(scales).sum()

    def colour(self, covariance, z, noise):
        return jnp.sqrt(covariance)[z] * noise

    def n_parameters(self, k, d):
        return k * d
