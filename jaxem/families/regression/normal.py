"""Normal responses: the mean is η, the dispersion the variance."""

import math

import jax
import jax.numpy as jnp

from jaxem.families.regression.response import Response, Slopes
from jaxem.protocol.counts import safe
from jaxem.protocol.domains import finite

LOG_2PI = math.log(2 * math.pi)


class NormalResponse(Response):
    """log p(y | η) = −½ (log 2πσ² + (y − η)²/σ²)"""

    link = "identity"
    scales = True
    words = "finite numbers"

    def is_valid(self, y):
        return finite(y)

    def log_density(self, eta, dispersion, y, trials):
        return -0.5 * (LOG_2PI + jnp.log(dispersion) + jnp.square(y - eta) / dispersion)

    def slopes(self, eta, dispersion, y, trials):
        return Slopes(y - eta, jnp.ones((1, y.shape[0]), y.dtype))

    def further(self, eta, dispersion, y, trials):
        return (jnp.square(y - eta),)

    def dispersion(self, old, stats, gain):
        return (stats.further[0] - 2 * gain) / safe(stats.count)

    def mean(self, eta, trials):
        return eta

    def information(self, eta, dispersion, trials):
        return jnp.ones_like(eta)

    def working(self, y, trials):
        return y, jnp.ones_like(y)

    def stabilised(self, eta, y, trials):
        return jnp.square(y - eta)

    def draw(self, key, eta, dispersion, trials):
        return eta + jnp.sqrt(dispersion) * jax.random.normal(key, eta.shape, eta.dtype)
