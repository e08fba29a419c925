"""One covariance matrix for all components."""

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal.full import Full, FullForm
from jaxem.families.normal.products import inverse
from jaxem.numerics.linalg import Factor


class TiedForm(FullForm):
    """As for full covariances, which is faster than a form with shared products."""

    def moments(self, mean, sums):
        count, first, second = super().moments(mean, sums)
        return count, first, second.sum(0)

    def _inverse(self, mean, covariance):
        precision, log_det = inverse(covariance)
        k = mean.shape[0]
        return jnp.broadcast_to(precision, (k, *precision.shape)), jnp.broadcast_to(log_det, (k,))


class Tied(Full):
    """One (d, d) covariance shared by all components: shape (d, d)."""

    form = TiedForm()
    shared = True

    def unit(self, k, d, dtype):
        return jnp.eye(d, dtype=dtype)

    def per_component(self, floor):
        return floor.max(0)

    def quadratic(self, covariance, centred):
        factor = Factor(covariance)
        distance = factor.mahalanobis(jnp.moveaxis(centred, 0, 1).reshape(centred.shape[1], -1))
        k, _, n = centred.shape
        return distance.reshape(k, n), jnp.broadcast_to(factor.log_det, (k,))

    def moments(self, weights, x, mean):
        count, first, second = super().moments(weights, x, mean)
        return count, first, second.sum(0)

    def matrices(self, covariance, k, d):
        return jnp.broadcast_to(covariance, (k, *covariance.shape))

    def gathered(self, second):
        return second.sum(0)

    def outer(self, weights, v):
        return super().outer(weights, v).sum(0)

    def divisor(self, count, d, prior_df=None):
        n = count.sum() if prior_df is None else count.sum() + prior_df + d + 1 + count.shape[0]
        return n[None, None]

    def counted(self, count, scatter, d, whole_prior):
        k = count.shape[0] if whole_prior else 1
        return count.sum() / k, scatter / k

    def shared_by(self, k, d):
        return k

    def colour(self, covariance, z, noise):
        return jnp.matmul(noise, jnp.linalg.cholesky(covariance).T, precision=Precision.HIGHEST)

    def n_parameters(self, k, d):
        return d * (d + 1) // 2
