"""Regressors and normal responses in units in which they are about 1."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.families.units import middle, over_rows, power_of_two


class RegressionUnits(NamedTuple):
    """regressors = (x − location)/scale, both (p,); response = (y − offset − level)/spread."""

    location: Any
    scale: Any
    level: Any
    spread: Any


def regressor_units(x, weights, centred):
    """(location, scale): regressors (n, p) in these units lie between −1 and 1. centred: whether
    the location may differ from 0, a boolean scalar."""
    x, weights = stop_gradient((x, weights))
    location = jnp.where(centred, middle(x, weights)[0], 0)

    def farthest(x, weights):
        present = (weights > 0)[:, None]
        return jnp.max(jnp.where(present, jnp.abs(x - location), 0), axis=0)

    reach = over_rows(farthest, jnp.maximum, x, weights)
    return location, jnp.where(reach > 0, power_of_two(jnp.where(reach > 0, reach, 1)), 1)


def response_units(y, weights, centred: bool):
    """(level, spread, sd): a response (n,) in units in which its standard deviation sd is about 1.
    It is that of the middle half of the rows, so that outliers do not change it."""
    y, weights = stop_gradient((y, weights))
    level, sd = (a[0] for a in middle(y[:, None], weights))
    present = weights > 0
    reach = jnp.max(jnp.where(present, jnp.abs(y - level), 0))
    sd = jnp.where(sd > 0, sd, reach)
    sd = jnp.where(sd > 0, sd, jnp.where(level != 0, jnp.abs(level), 1))
    level = level if centred else jnp.zeros_like(level)
    size = sd if centred else jnp.maximum(sd, jnp.max(jnp.where(present, jnp.abs(y), 0)))
    spread = power_of_two(size)
    return level, spread, sd / spread


def inward_coefficients(units: RegressionUnits, coefficients, intercept: bool):
    """Coefficients (..., m) of data in their own units, for standardised data."""
    slopes = coefficients[..., intercept:]
    inner = slopes * (units.scale / units.spread)
    if not intercept:
        return inner
    shift = (slopes * units.location).sum(-1)
    level = (coefficients[..., 0] + shift - units.level) / units.spread
    return jnp.concatenate([level[..., None], inner], -1)


def outward_coefficients(units: RegressionUnits, coefficients, intercept: bool):
    """Coefficients (..., m) of standardised data, for data in their own units."""
    slopes = coefficients[..., intercept:] * (units.spread / units.scale)
    if not intercept:
        return slopes
    shift = (slopes * units.location).sum(-1)
    level = coefficients[..., 0] * units.spread + units.level - shift
    return jnp.concatenate([level[..., None], slopes], -1)
