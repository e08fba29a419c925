"""The units of the arithmetic: those of standardised data, such as centred ones of variance 1.

In these units rounding errors are small whatever the units of the data are. A model with the
capability `Units` defines `standardize(x, weights) -> Standardized` and the conversions of params
`inward(units, params)` and `outward(units, params)`. The functions of this module call them; a
model without the capability is fitted in the units of its data.
"""

from typing import Any, NamedTuple

from jaxem.protocol.capabilities import Units, has


class Standardized(NamedTuple):
    """A model and its data in the units of the arithmetic.

    units: a tree of arrays, such as location and scale, for `inward` and `outward`; empty where
    params need no conversion. log_volume: a scalar or (n,), which does not depend on params, with
    log p(x | params) = log p(data | inward params) − log_volume per unit of weight.
    """

    model: Any
    data: Any
    units: Any = ()
    log_volume: Any = 0.0


def standardized(model, x, weights) -> Standardized:
    """The model and the data x with weights (n,) in the units of the arithmetic."""
    if has(model, Units):
        return model.standardize(x, weights)
    return Standardized(model, x)


def inward(model, units, params):
    """Params in the units of the data, converted to those of the arithmetic."""
    return model.inward(units, params) if has(model, Units) else params


def outward(model, units, params):
    """Params in the units of the arithmetic, converted to those of the data."""
    return model.outward(units, params) if has(model, Units) else params
