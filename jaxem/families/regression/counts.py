"""Poisson and binomial responses, which have no dispersion."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.regression.response import Response, Slopes, bounded
from jaxem.numerics.newton_step import expm1_minus
from jaxem.numerics.special import stirling_term
from jaxem.protocol.domains import is_count


def log_poisson(y, log_mean):
    """The log probability of counts y (n,) given log μ (k, n), about its value at μ = y, so that
    large terms cancel before they are rounded."""
    at = jnp.where(y > 0, y, 1)
    log_at = jnp.log(at)
    saturated = stirling_term(at) - log_at
    return jnp.where(y > 0, saturated - at * expm1_minus(log_mean - log_at), -jnp.exp(log_mean))


class PoissonResponse(Response):
    """log p(y | η) = y η − e^η − log y!"""

    link = "log"
    has_dispersion = False
    words = "counts 0, 1, 2, ..."

    def is_valid(self, y):
        return is_count(y)

    def remedy(self, values):
        return "for rates give counts and offset=log of the exposure" * bool(np.all(values >= 0))

    def log_density(self, eta, dispersion, y, trials):
        return log_poisson(y, bounded(eta))

    def slopes(self, eta, dispersion, y, trials):
        mean = jnp.exp(bounded(eta))
        return Slopes(y - mean, mean)

    def mean(self, eta, trials):
        return jnp.exp(bounded(eta))

    def information(self, eta, dispersion, trials):
        return jnp.exp(bounded(eta))

    def working(self, y, trials):
        return jnp.log(y + 0.5), y + 0.5

    def stabilised(self, eta, y, trials):
        return 4 * jnp.square(jnp.sqrt(y) - jnp.exp(bounded(eta) / 2))

    def draw(self, key, eta, dispersion, trials):
        return jax.random.poisson(key, jnp.exp(bounded(eta))).astype(eta.dtype)


class BinomialResponse(Response):
    """log p(y | η) = log C(t, y) + y η − t log(1 + e^η), y successes of t trials.

    It is computed from Poisson probabilities, whose large terms cancel before they are rounded:
    p(y) = Poisson(y; t p) · Poisson(t − y; t (1 − p)) / Poisson(t; t).
    """

    link = "logit"
    has_dispersion = False
    takes_trials = True
    words = "counts 0, 1, 2, ... of successes up to data.trials"

    def is_valid(self, y):
        return is_count(y)

    def remedy(self, values):
        if np.all((values >= 0) & (values <= 1)):
            return "for proportions give counts of successes and trials="
        return "give the totals as trials=" * bool(np.all(is_count(values)))

    def log_density(self, eta, dispersion, y, trials):
        t, eta = _trials(y, trials), bounded(eta)
        log_t = jnp.log(jnp.where(t > 0, t, 1))
        log_failure = log_t - jax.nn.softplus(eta)
        density = log_poisson(y, log_failure + eta) + log_poisson(t - y, log_failure)
        return density - log_poisson(t, log_t)

    def slopes(self, eta, dispersion, y, trials):
        t, p = _trials(y, trials), jax.nn.sigmoid(bounded(eta))
        return Slopes(y - t * p, t * p * jax.nn.sigmoid(-bounded(eta)))

    def mean(self, eta, trials):
        p = jax.nn.sigmoid(bounded(eta))
        return p if trials is None else trials * p

    def information(self, eta, dispersion, trials):
        eta = bounded(eta)
        v = jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta)
        return v if trials is None else trials * v

    def working(self, y, trials):
        t = _trials(y, trials)
        share = (y + 0.5) / (t + 1)
        return jnp.log(share / (1 - share)), t * share * (1 - share)

    def stabilised(self, eta, y, trials):
        t = _trials(y, trials)
        of_mean = jnp.arctan(jnp.exp(bounded(eta) / 2))  # arcsin √p
        of_y = jnp.arcsin(jnp.sqrt(y / jnp.where(t > 0, t, 1)))
        return 4 * t * jnp.square(of_y - of_mean)

    def draw(self, key, eta, dispersion, trials):
        t = jnp.ones_like(eta) if trials is None else trials
        return jax.random.binomial(key, t, jax.nn.sigmoid(eta)).astype(eta.dtype)


def _trials(y, trials):
    return jnp.ones_like(y) if trials is None else trials
