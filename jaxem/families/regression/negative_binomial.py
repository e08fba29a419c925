"""Negative binomial responses: the mean is μ = e^η, the variance μ + α μ², α the dispersion.

The M-step of τ = log θ, θ = 1/α, is a Newton step that cannot lower Σ w log p. With u = μ/θ and
σ_j = θ/(θ + j) the derivative of log p(y) by τ is

  −Σ_{j<y} j/(θ + j) + y u/(1 + u) − μ q(u),   q(u) = log(1 + u)/u − 1/(1 + u),

and its second derivative K + C − B, with K = Σ_{j<y} σ_j (1 − σ_j), C = (μ − y) u/(1 + u)² and
B = μ q(u). Each of K, C and B changes by at most a factor e^{|t|} over a step t. So with first and
second derivatives d and d₂ and M = Σ w (K + |C| + B)

  Q(τ + t) ≥ Q(τ) + d t + d₂ t²/2 − M (e^{|t|} − 1 − |t| − t²/2),

and the step taken is the maximum of that bound: Newton's, where it is small.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families.regression.counts import PoissonResponse, log_poisson
from jaxem.families.regression.response import Slopes, bounded
from jaxem.numerics.newton_step import expm1_minus
from jaxem.numerics.special import (
    betaln,
    inverse_minus_trigamma,
    log_minus_digamma,
    stirling_remainder,
)

LARGE = 50.0
"""The least θ for which log Γ is taken from Stirling's series."""

LONGEST_STEP = 2.0
"""The longest step of log θ."""

NEWTON_STEPS = 8


class NegativeBinomialResponse(PoissonResponse):
    """log p(y | η) = log Γ(y + θ)/(Γ(θ) y!) + y log(μ/(μ + θ)) − θ log(1 + μ/θ)"""

    has_dispersion = True
    limits = (1e-8, 1e8)

    def log_density(self, eta, dispersion, y, trials):
        """For large θ about the Poisson density, where the terms of order log θ cancel."""
        theta, eta = jnp.broadcast_to(1 / dispersion, eta.shape), bounded(eta)
        is_near = self._is_near_poisson(eta, dispersion, y)
        large = jnp.where(is_near, theta, LARGE)
        u, v = jnp.where(is_near, jnp.exp(eta), 0) / large, jnp.where(is_near, y, 0) / large
        log_v = jnp.log1p(v)
        ratio = (y - 0.5) * log_v - large * _minus_log1p(v)  # of Γ(y + θ)/(Γ(θ) θ^y)
        ratio = ratio + stirling_remainder(1 / (large + y)) - stirling_remainder(1 / large)
        near = log_poisson(y, eta) + ratio + large * _minus_log1p(u) - y * jnp.log1p(u)
        return jnp.where(is_near, near, sum(self._terms(eta, dispersion, y)))

    def _terms(self, eta, dispersion, y):
        """The terms of the log density, (k, n) each."""
        theta, y = jnp.broadcast_to(1 / dispersion, eta.shape), y[None]
        u = jnp.exp(bounded(eta + jnp.log(dispersion)))
        choose = -betaln(theta, y + 1) - jnp.log(theta + y)
        return choose, -theta * jnp.log1p(u), -y * jnp.log1p(1 / u)

    def _is_near_poisson(self, eta, dispersion, y):
        """Whether θ is large, and the variance of y at most twice its mean."""
        most = jnp.maximum(jnp.exp(eta), y) * dispersion
        return (dispersion < 1 / LARGE) & (most < 1)

    def slopes(self, eta, dispersion, y, trials):
        theta, mean = 1 / dispersion, jnp.exp(bounded(eta))
        inner = 1 / (1 + mean * dispersion)
        return Slopes((y - mean) * inner, (y + theta) * mean * dispersion * jnp.square(inner))

    def information(self, eta, dispersion, trials):
        mean = jnp.exp(bounded(eta))
        return mean / (1 + mean * dispersion)

    def further(self, eta, dispersion, y, trials):
        """The first and second derivative by τ, the terms of M, and the size of the terms of the
        log density where they cancel."""
        theta, mean, y = 1 / dispersion, jnp.exp(bounded(eta)), y[None]
        u, v = mean * dispersion, y * dispersion
        missing = theta * _minus_log1p(v)
        missing = missing + theta * (log_minus_digamma(theta + y) - log_minus_digamma(theta))
        missing = jnp.clip(missing, 0, y)  # Σ j/(θ + j)
        of_sum = inverse_minus_trigamma(theta) - inverse_minus_trigamma(theta + y)
        convex = jnp.clip(y * v / (1 + v) - missing + jnp.square(theta) * of_sum, 0, missing)
        part = u / (1 + u)
        across, below = (mean - y) * part / (1 + u), mean * _q(u)
        first = y * part - missing - below
        y = y[0]
        size = sum(map(jnp.abs, self._terms(bounded(eta), dispersion, y)))
        size = jnp.where(self._is_near_poisson(bounded(eta), dispersion, y), 0, size)
        return first, convex + across - below, convex + jnp.abs(across) + below, size

    def size_of_terms(self, stats):
        return stats.further[3].sum()

    def crossed(self, eta, dispersion, y, trials):
        mean = jnp.exp(bounded(eta))
        u = mean * dispersion
        return (y - mean) * u / jnp.square(1 + u)

    def dispersion(self, old, stats, gain, step):
        """The step of τ is shortened where, together with that of the coefficients, its second
        order cross term could lose more than half of what both gain apart."""
        first, second, most, _ = stats.further
        t, rise = climb(first, second, most)
        cross = t * (stats.cross * step).sum(-1)
        gain = jnp.maximum(gain, 0)
        loss = jnp.maximum(-cross, 0)
        exceeds = loss > 0.5 * (gain + rise)
        part = jnp.minimum(0.5 * gain / jnp.where(exceeds, loss, 1), 1)
        return old * jnp.exp(-jnp.where(exceeds, part, 1) * t)

    def draw(self, key, eta, dispersion, trials):
        of_rate, of_count = jax.random.split(key)
        theta = 1 / dispersion
        rate = jax.random.gamma(of_rate, theta, eta.shape, eta.dtype) / theta
        return jax.random.poisson(of_count, rate * jnp.exp(bounded(eta))).astype(eta.dtype)


def climb(first, second, most):
    """The step t that maximises the lower bound, and that bound at it, for first and second
    derivatives and M of the same shapes."""
    most = jnp.maximum(most, jnp.abs(second)) + float(jnp.finfo(most.dtype).tiny)
    sign = jnp.where(first < 0, -1.0, 1.0).astype(first.dtype)
    linear = most + second

    def over(t, first, linear, most):
        """The negative derivative of the bound at |t|, which is convex, and its derivative."""
        return most * jnp.expm1(t) - linear * t - sign * first, most * jnp.exp(t) - linear

    def newton(t, *constants):
        value, slope = over(t, *constants)
        return t - value / jnp.where(slope > 0, slope, 1)

    fixed = stop_gradient((first, linear, most))
    t = jnp.full_like(first, LONGEST_STEP)
    is_longest = over(t, *fixed)[0] <= 0
    t = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, t: jnp.maximum(newton(t, *fixed), 0), t)
    t = newton(stop_gradient(t), first, linear, most)  # with the derivative of the root
    t = jnp.where(is_longest, LONGEST_STEP, jnp.clip(t, -LONGEST_STEP, LONGEST_STEP))
    loss = most * (expm1_minus(t) - jnp.square(t) / 2)
    rise = jnp.maximum(sign * first * t + second * jnp.square(t) / 2 - loss, 0)
    return sign * t, rise


def _minus_log1p(v):
    """v − log(1 + v) without cancellation."""
    log = jnp.log1p(v)
    return expm1_minus(log)


def _q(u):
    """log(1 + u)/u − 1/(1 + u) = (w + log-part)/u, with w = u/(1 + u)."""
    # log(1 + u) − u/(1 + u) = e^{−l} − 1 + l for l = log(1 + u).
    return expm1_minus(-jnp.log1p(u)) / jnp.where(u > 0, u, 1)
