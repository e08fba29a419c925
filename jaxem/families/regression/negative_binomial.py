"""Negative binomial responses: the mean is μ = e^η, the variance μ + α μ², α the dispersion.

The M-step is one Newton step of the coefficients and of τ = log θ, θ = 1/α, together. With u = μ/θ,
v = u/(1 + u)² and σ_j = θ/(θ + j) the derivative of log p(y) by τ is

  −Σ_{j<y} j/(θ + j) + y u/(1 + u) − μ q(u),   q(u) = log(1 + u)/u − 1/(1 + u),

its second derivative is K + μ v − y v − B with K = Σ_{j<y} σ_j (1 − σ_j) and B = μ q(u), that by τ
and η is (y − μ) v, and that by η is −(y + θ) v. Where η changes by at most R and τ by t, each of
these terms changes by at most the factor e^{2R + 2|t|}. So along s times a step (δ, t), with the
slope G and the curvature S of Σ w log p there, ρ = 2R + 2|t| and

  M = δ'Hδ + Σ w (K + (μ + y) v + B) (t² + 2R|t|),

the sum rises by at least G s − S s²/2 − M (e^{sρ} − 1 − sρ − (sρ)²/2)/ρ², and s is chosen so that
this is above 0: it is 1 where the step is small.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families.regression.counts import PoissonResponse, log_poisson
from jaxem.families.regression.response import Slopes, bounded
from jaxem.numerics.newton_step import expm1_minus, newton_step, quadratic
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

NEWTON_STEPS = 16

CUBIC_UP_TO = 1e-2
"""Arguments up to which e^z − 1 − z − z²/2 is computed by its series."""

LEAST_CURVATURE = 1e-6
"""The least curvature by τ that a Newton step trusts, as a part of the sum of its terms' sizes."""

FULL_FROM = 1 / 1.3
"""The best length from which a whole step is taken, if the bound allows it."""


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
        """The first and second derivative by τ, K + (μ + y) v + B, and the size of the terms of the
        log density where they cancel."""
        mean, y = jnp.exp(bounded(eta)), y[None]
        u = mean * dispersion
        missing, convex = of_counts(1 / dispersion, y, 1)
        part, below = of_mean(mean, dispersion)
        across = (mean - y) * part / (1 + u)
        first = y * part - missing - below
        sizes = convex + (mean + y) * part / (1 + u) + below
        second, y = convex + across - below, y[0]
        size = sum(map(jnp.abs, self._terms(bounded(eta), dispersion, y)))
        size = jnp.where(self._is_near_poisson(bounded(eta), dispersion, y), 0, size)
        return first, second, sizes, size

    def size_of_terms(self, stats):
        return stats.further[3].sum()

    def crossed(self, eta, dispersion, y, trials):
        mean = jnp.exp(bounded(eta))
        u = mean * dispersion
        return (y - mean) * u / jnp.square(1 + u)

    def joint(self, gradient, curvature, stats):
        """The gradient (k, m + 1) and curvature (k, m + 1, m + 1) with τ as the last coordinate.
        Where the sum is not concave, τ stands apart from the coefficients."""
        _, second, sizes, _ = stats.further
        of_cross = newton_step(stats.cross, curvature)
        least = LEAST_CURVATURE * sizes + float(jnp.finfo(sizes.dtype).tiny) ** 0.5
        is_concave = -second - (stats.cross * of_cross).sum(-1) > least
        cross = jnp.where(is_concave[:, None], -stats.cross, 0)
        return self._with_last(
            gradient, curvature, stats, cross, jnp.where(is_concave, -second, sizes + least)
        )

    def _with_last(self, gradient, curvature, stats, cross, last):
        rows = jnp.concatenate([curvature, cross[:, None]], 1)
        column = jnp.concatenate([cross, last[:, None]], 1)[:, :, None]
        first = stats.further[0][:, None]
        return jnp.concatenate([gradient, first], 1), jnp.concatenate([rows, column], 2)

    def bound(self, gradient, curvature, stats, step):
        """G, S, M and ρ, (k,) each, for a step (k, m + 1)."""
        _, second, sizes, _ = stats.further
        slope, form = self._with_last(gradient, curvature, stats, -stats.cross, -second)
        change, t = step[:, :-1], jnp.abs(step[:, -1])
        reach = jnp.abs(change).sum(-1)
        most = quadratic(curvature, change) + sizes * (jnp.square(t) + 2 * reach * t)
        return (slope * step).sum(-1), quadratic(form, step), most, 2 * reach + 2 * t

    def moved(self, old, step):
        """The dispersion after a step (k,) of τ."""
        return old * jnp.exp(-jnp.clip(step, -LONGEST_STEP, LONGEST_STEP))

    def draw(self, key, eta, dispersion, trials):
        of_rate, of_count = jax.random.split(key)
        theta = 1 / dispersion
        rate = jax.random.gamma(of_rate, theta, eta.shape, eta.dtype) / theta
        return jax.random.poisson(of_count, rate * jnp.exp(bounded(eta))).astype(eta.dtype)


def of_counts(theta, y, axis):
    """Σ_{j<y} j/(θ + j), and K = Σ_{j<y} jθ/(θ + j)². axis: that of units, where θ has size 1. The
    special functions of θ and of θ + y are computed at once, which halves the time to compile."""
    v = y / theta
    both = jnp.concatenate([theta, theta + y], axis)
    change_of_log, change_of_slope = (
        jax.lax.slice_in_dim(each, 1, None, axis=axis) - jax.lax.slice_in_dim(each, 0, 1, axis=axis)
        for each in (log_minus_digamma(both), inverse_minus_trigamma(both))
    )
    total = jnp.clip(theta * _minus_log1p(v) + theta * change_of_log, 0, y)
    curvature = y * v / (1 + v) - total - jnp.square(theta) * change_of_slope
    return total, jnp.clip(curvature, 0, total)


def of_mean(mean, dispersion):
    """u/(1 + u) and μ q(u)."""
    u = mean * dispersion
    return u / (1 + u), mean * _q(u)


def safe_length(slope, curvature, most, rate):
    """s for G, S, M and ρ. The slope of the bound is concave in s, so that Newton's method comes
    down to its root from above: e^z − 1 − z = a has its root below log(1 + a + √(2a)).
    Differentiable where steps are small: s is 1 there."""
    slope, curvature, most, rate = stop_gradient((slope, curvature, most, rate))
    rate = jnp.where(rate > 0, rate, 1)

    def rises(s):
        z = s * rate
        excess = expm1_minus(z) - jnp.square(z) / 2
        excess = jnp.where(z < CUBIC_UP_TO, z**3 / 6 * (1 + z / 4), excess)
        return s * slope - jnp.square(s) * curvature / 2 - most * excess / jnp.square(rate)

    def newton(_, s):
        z = s * rate
        value = slope - s * curvature - most * expm1_minus(z) / rate
        change = curvature + most * jnp.expm1(z)
        return jnp.clip(s + value / jnp.where(change > 0, change, jnp.inf), 0, 1)

    a = jnp.maximum(slope, 0) * rate / jnp.where(most > 0, most, 1)
    above = jnp.minimum(jnp.log1p(a + jnp.sqrt(2 * a)) / rate, 1)
    best = jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.where(most > 0, above, 1))
    is_full = (best >= FULL_FROM) & (rises(jnp.ones_like(best)) >= rises(best) / 4)
    return jnp.where(is_full, 1, jnp.where(rises(best) > 0, best, 0))


def _minus_log1p(v):
    """v − log(1 + v) without cancellation."""
    log = jnp.log1p(v)
    return expm1_minus(log)


def _q(u):
    """log(1 + u)/u − 1/(1 + u) = (w + log-part)/u, with w = u/(1 + u)."""
    # log(1 + u) − u/(1 + u) = e^{−l} − 1 + l for l = log(1 + u).
    return expm1_minus(-jnp.log1p(u)) / jnp.where(u > 0, u, 1)
