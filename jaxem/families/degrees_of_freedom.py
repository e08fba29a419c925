"""What the degrees of freedom ν of a t density contribute, by τ = 1/ν."""

import math

import jax.numpy as jnp

from jaxem.numerics.special import half_gamma_ratio, half_gamma_ratio_slope

SMALL = 0.05
"""Arguments up to which `_tail_slope` is a series."""


def log_constant(tau, d):
    """log Γ((ν+d)/2) − log Γ(ν/2) − (d/2) log(ν/2) for τ = 1/ν, (k,).

    It is a sum of terms of one sign and, for odd d, one of half a step, so that it is exact to
    rounding where it is nearly 0 too.
    """
    steps = 2 * tau[:, None] * _steps(d, tau.dtype)
    half = half_gamma_ratio(2 * tau) if d % 2 else 0.0
    return jnp.log1p(steps).sum(1) + half


def log_constant_slope(tau, d):
    """The derivative of `log_constant` by τ."""
    steps = 2 * _steps(d, tau.dtype)
    half = 2 * half_gamma_ratio_slope(2 * tau) if d % 2 else 0.0
    return (steps / (1 + tau[:, None] * steps)).sum(1) + half


def _steps(d, dtype):
    return jnp.arange(d // 2, dtype=dtype) + (d % 2) / 2


def tail_slope(distance, tau, d, expanded):
    """Slope and bend, the first two derivatives by τ, of −((1/τ + d)/2) log(1 + δτ), for distances
    δ (n, k).

    Where `expanded`, S · (1 + 2τ) is held fixed, so that δ is proportional to 1 + 2τ, and a term
    −d/2 log |S| is included. All parts are bounded, since a square of δ may overflow, and series
    take the place of differences that cancel.
    """
    y = distance * tau
    apart, inside = 1 / (1 + y), y / (1 + y)
    reach = inside / tau  # δ/(1 + δτ)
    rate = jnp.where(expanded, 2 / (1 + 2 * tau), 0)  # d log δ/dτ
    small = jnp.minimum(y, SMALL)
    is_small = y <= SMALL
    bounded = small / tau
    part = 1 / 2 - small * (2 / 3 - small * (3 / 4 - small * (4 / 5 - small * (5 / 6))))
    bent = -small * (1 / 3 - small * (3 / 4 - small * (6 / 5 - small * (5 / 3))))
    excess = jnp.log1p(y) - inside
    slope = jnp.where(is_small, bounded**2 * part, excess / tau**2) / 2 - d / 2 * reach
    direct = (0.5 * (1 + rate * tau) * inside**2 - excess) / tau**3
    series = bounded**2 / tau * (bent + 0.5 * rate * tau / jnp.square(1 + small))
    bend = jnp.where(is_small, series, direct) + d / 2 * reach * (reach - apart * rate)
    of_scale = (1 / tau + d) * inside - d
    turn = reach * (apart * rate - reach) + d * reach * apart * (1 + rate * tau)
    half = rate / 2
    return slope - half * of_scale, bend - half * (turn - rate * of_scale)


def information(tau, d, expanded):
    """The expected information of a unit on τ = 1/ν, with S · (1 + 2τ) held fixed where `expanded`,
    else with S: (k,).

    The first is exact for d = 2 and in both limits, and within 10% for d = 1 (by quadrature).
    """
    size = d * (d + 2) / 2
    of_tau = size / jnp.square(1 + math.sqrt(size) * tau)
    of_scale = jnp.square(2 / (1 + 2 * tau)) * d / (2 * (1 + (d + 2) * tau))
    return of_tau + jnp.where(expanded, 0, of_scale)
