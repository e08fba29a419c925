"""Units in which the arithmetic of a model is safe: data centred, of unit variance.

A model with the capability `Units` writes `standardize(x, weights) -> Standardized` and the two
changes of params `inward(units, params)` and `outward(units, params)`. Here are the same for any
model: one without the capability is climbed in the units of its data.
"""

from typing import Any, NamedTuple

import jax

from jaxem.protocol.capabilities import Units, has


class Standardized(NamedTuple):
    """A model and its data in safe units.

    units: a tree of arrays, such as location and scale, that `inward` and `outward` take; empty
    where params do not change. log_volume: log p(x | params) = log p(data | inward params) −
    log_volume, per unit of weight; no parameter enters it; a scalar or (n,).
    """

    model: Any
    data: Any
    units: Any = ()
    log_volume: Any = 0.0


def standardized(model, x, weights) -> Standardized:
    """The model and the data x with weights (n,) in safe units."""
    if has(model, Units):
        return model.standardize(x, weights)
    return Standardized(model, x)


def inward(model, units, params):
    """Params of the data's units in safe ones."""
    return model.inward(units, params) if jax.tree.leaves(units) else params


def outward(model, units, params):
    """Params of safe units in those of the data."""
    return model.outward(units, params) if jax.tree.leaves(units) else params
