"""Gamma functions that are quick, and their differences without cancellation: series where the
argument is large."""

import jax.numpy as jnp
from jax.lax import digamma, lgamma, polygamma

LARGE = {4: 5.0, 8: 20.0}
"""Above this, by bytes a number, the asymptotic series below are exact to rounding."""


def _parts(y):
    """Whether y is large, y held in the small range, and 1/y held in the large one."""
    limit = LARGE[y.dtype.itemsize]
    large = y > limit
    return large, jnp.where(large, limit, y), 1 / jnp.where(large, y, limit)


def log_minus_digamma(y):
    """log y − ψ(y), positive and falling like 1/(2y)."""
    large, small, z = _parts(y)
    series = z * (1 / 2 + z * (1 / 12 - z**2 * (1 / 120 - z**2 * (1 / 252 - z**2 / 240))))
    return jnp.where(large, series, jnp.log(small) - digamma(small))


def inverse_minus_trigamma(y):
    """1/y − ψ'(y), negative and rising like −1/(2y²): the slope of `log_minus_digamma`."""
    large, small, z = _parts(y)
    series = -(z**2) * (1 / 2 + z * (1 / 6 - z**2 * (1 / 30 - z**2 * (1 / 42 - z**2 / 30))))
    return jnp.where(large, series, 1 / small - polygamma(jnp.ones_like(small), small))


def log_gamma_ratio(y, h):
    """log Γ(y + h) − log Γ(y) for a number h ≥ 0."""
    large, small, z = _parts(y)
    big = 1 / z

    stirling = (big - 0.5) * jnp.log1p(h * z) + h * jnp.log(big + h) - h
    series = stirling + _correction(1 / (big + h)) - _correction(z)
    return jnp.where(large, series, lgamma(small + h) - lgamma(small))


def stirling_term(a):
    """a log a − a − log Γ(a), which grows like ½ log(a / 2π)."""
    large, small, z = _parts(a)
    series = -0.5 * jnp.log(2 * jnp.pi * z) - _correction(z)
    return jnp.where(large, series, small * jnp.log(small) - small - lgamma(small))


def _correction(z):
    """log Γ(y) less Stirling's formula, z = 1/y."""
    return z * (1 / 12 - z**2 * (1 / 360 - z**2 * (1 / 1260 - z**2 / 1680)))


SHIFT = {4: 4, 8: 10}
"""How far, by bytes a number, the argument of ψ is moved up before its series is taken; even."""


def digamma_parts(x):
    """(y, t) with ψ(x) = log y + t, for x > 0; a division for every two steps of the shift.

    ψ(x) = ψ(x + m) − Σ_{i<m} 1/(x + i), and the asymptotic series at y = x + m. The sum goes by
    pairs: 1/(x + i) + 1/(x + m − 1 − i) = (2x + m − 1) / (x(x + m − 1) + i(m − 1 − i)).
    Source: Abramowitz & Stegun 1964, 6.3.6 and 6.3.18.
    """
    m = SHIFT[x.dtype.itemsize]
    y = x + m
    z = 1 / y
    s = z * z
    tail = 1 / 252 - s * (1 / 240 - s * (1 / 132 - s * (691 / 32760 - s / 12)))
    series = z / 2 + s * (1 / 12 - s * (1 / 120 - s * tail))
    small = jnp.minimum(x, 1e18)  # its square is finite
    square = small * (small + (m - 1))
    pairs = sum(1 / (square + i * (m - 1 - i)) for i in range(m // 2))
    return y, -series - (2 * small + (m - 1)) * pairs


def exp_digamma(x):
    """exp ψ(x) for x > 0: near x − 1/2 where x is large, exp(−1/x) where it is small."""
    y, t = digamma_parts(x)
    return y * jnp.exp(t)
