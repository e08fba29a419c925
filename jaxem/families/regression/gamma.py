"""Gamma responses: the mean is e^η, the dispersion Var/mean² = 1/shape."""

import jax
import jax.numpy as jnp

from jaxem.families.gamma import smallest_spread, solve_shape
from jaxem.families.regression.response import Response, Slopes, bounded
from jaxem.numerics.newton_step import expm1_minus
from jaxem.numerics.special import stirling_term
from jaxem.protocol.counts import safe


class GammaResponse(Response):
    """log p(y | η) = ν (log r − r + 1) + ν log ν − ν − log Γ(ν) − log y, r = y e^{−η}, ν the shape.

    The M-step of the shape solves log ν − ψ(ν) = mean(r − log r − 1).
    """

    link = "log"
    scales = True
    words = "finite positive numbers"

    def is_valid(self, y):
        return (y > 0) & (y < float("inf"))

    def log_density(self, eta, dispersion, y, trials):
        shape, log_y = 1 / dispersion, jnp.log(_positive(y))
        return stirling_term(shape) - shape * expm1_minus(bounded(log_y - eta)) - log_y

    def slopes(self, eta, dispersion, y, trials):
        ratio = bounded(jnp.log(_positive(y)) - eta)
        return Slopes(jnp.expm1(ratio), jnp.exp(ratio))

    def further(self, eta, dispersion, y, trials):
        return (expm1_minus(bounded(jnp.log(_positive(y)) - eta)),)

    def dispersion(self, old, stats, gain):
        spread = (stats.further[0] - gain) / safe(stats.count)
        return 1 / solve_shape(jnp.maximum(spread, smallest_spread(spread.dtype)))

    def mean(self, eta, trials):
        return jnp.exp(bounded(eta))

    def information(self, eta, dispersion, trials):
        return jnp.ones_like(eta)

    def working(self, y, trials):
        return jnp.log(_positive(y)), jnp.ones_like(y)

    def stabilised(self, eta, y, trials):
        return jnp.square(jnp.log(_positive(y)) - eta)

    def draw(self, key, eta, dispersion, trials):
        shape = 1 / dispersion
        return jax.random.gamma(key, shape, eta.shape, eta.dtype) / shape * jnp.exp(bounded(eta))


def _positive(y):
    return jnp.where(y > 0, y, 1)
