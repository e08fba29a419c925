"""One variance for every component."""

import math

import jax.numpy as jnp

from jaxem.families.normal.diagonal import ON_FLOOR, Diagonal
from jaxem.families.normal.gaussian import Form
from jaxem.families.normal.moments import LOG_2PI
from jaxem.families.normal.products import append_one


class SphericalForm(Form):
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


class Spherical(Diagonal):
    """One variance for every component: shape (k,)."""

    form = SphericalForm()
    one_variance = common_scale = True
    scale_axes = 0

    def variances(self, covariance):
        return covariance[:, None]

    def unit(self, k, d, dtype):
        return jnp.ones(k, dtype)

    def quadratic(self, covariance, centred):
        distance = jnp.square(centred).sum(1) * (1 / covariance)[:, None]
        return distance, centred.shape[1] * jnp.log(covariance)

    def moments(self, weights, x, mean):
        count, first, second = super().moments(weights, x, mean)
        return count, first, second.sum(-1)

    def gathered(self, second):
        return super().gathered(second).sum(-1)

    def outer(self, weights, v):
        return super().outer(weights, v).sum(-1)

    def divisor(self, count, d, prior_df=None):
        return count * d if prior_df is None else count * d + prior_df + d + 2

    def whitened(self, covariance, mean_step, covariance_step):
        d = mean_step.shape[1]
        return mean_step / jnp.sqrt(covariance)[:, None], covariance_step * (
            math.sqrt(d / 2) / covariance
        )

    def per_component(self, floor):
        return floor.max(-1)

    def on_diagonal(self, variances):
        return 0.0  # a constant feature has its part in the common variance

    def is_floored(self, covariance, floor):
        return covariance <= floor * ON_FLOOR

    def rescale(self, covariance, s):
        return (covariance * s[0]) * s[0]

    def as_scale(self, scale, d):
        return jnp.asarray(scale).reshape(())

    def counted(self, count, scatter, d, whole_prior):
        return (count, scatter / d) if whole_prior else (count * d, scatter)

    def shared_by(self, k, d):
        return d

    def colour(self, covariance, z, noise):
        return jnp.sqrt(covariance)[z][:, None] * noise

    def n_parameters(self, k, d):
        return k
