"""Components whose coefficients have no finite estimate, in the data of a fit."""

import jax
import numpy as np

from jaxem.protocol.capabilities import defines
from jaxem.protocol.model import name_of
from jaxem.results.totals import with_units


def separated(result, x, weights):
    """`Result.separated`, (k,), of one fit with data x and weights (n,), None for 1."""
    model, k = result.model, result.model.domain.components
    if not defines(model, "separated"):
        return np.zeros(k, bool)
    x, weights, _ = with_units(x, weights)
    r = np.asarray(result._responsibilities(x), float)  # of units, also of groups
    r = np.where(np.isfinite(r), r, 0)  # of a unit that the model does not take
    r = r if weights is None else r * np.asarray(weights, float)[:, None]
    return np.asarray(model.separated(result.params, x, r))


def of_own_data(result):
    """`Result.separated` of a fit, (k,), or of every fit of a batch, (b, k)."""
    if result.is_fleet:
        return np.stack([of_own_data(one) for one in result])
    if not defines(result.model, "separated"):
        return np.zeros(result.model.domain.components, bool)
    if result.own_data is None:
        raise TypeError(
            f"the data of this fit of {name_of(result.model)} are not known here: call "
            "result.model.separated(result.params, x, result.predict_proba(x))"
        )
    return separated(result, *result.own_data)


def explain_separation(result, model, x, weights) -> str | None:
    """A sentence where components of a fit are separated; None where none is."""
    if not defines(model, "separated"):
        return None
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params)):
        return None
    found = np.flatnonzero(separated(result, x, weights))
    if not len(found):
        return None
    which = ", ".join(map(str, found))
    subject = f"component {which} is" if len(found) == 1 else f"components {which} are"
    return (
        f"{subject} separated: regressors predict the responses there without error, so that "
        "coefficients have no finite estimate and grow until the gain is below tol; predictions "
        "are sound, standard errors are not; a prior of the coefficients gives finite ones"
    )
