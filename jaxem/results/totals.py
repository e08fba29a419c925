"""The log-likelihood of data under a fit, beside the number of observations or units."""

import jax.numpy as jnp

from jaxem.data import arrays as checks
from jaxem.data.data import as_units, given_response
from jaxem.data.grouped import Grouped, unit_shape
from jaxem.numerics.tree import is_traced
from jaxem.protocol.capabilities import defines
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.wrapper import Wrapper
from jaxem.results import answers, fleet


def score_and_weight(result, x, weights, units=False):
    """(log-likelihood, Σw) of the fit itself where x is None, else of x. Σw is over observations,
    or over units."""
    if x is None:
        require_no_weights(weights)
        if not units:
            return result.log_likelihood, result.total_weight
        if result.own_data is None:
            raise ValueError("the units of this fit are not at hand: give x, and their weights")
        return result.log_likelihood, score_and_weight(result, *result.own_data, units)[1]
    if result.is_fleet:
        return fleet.score_and_weight(result, fleet.data_sets(result, x, weights), units)
    x, weights, _ = with_units(x, weights)
    evidence = result.score_samples(x)
    counts = None if units else result.model.domain.observations(x)
    if weights is None:
        return evidence.sum(), evidence.shape[0] if counts is None else counts.sum()
    weights = checked_weights(weights, evidence.shape[0], evidence.dtype)
    total = weights if counts is None else weights * counts
    return jnp.where(weights > 0, weights * evidence, 0).sum(), total.sum()


def with_units(x, weights=None):
    """(data as a tree with one leading axis of units, weights of the units, names of groups)."""
    x, _, names = as_units(x)
    return x, weights if names is None else names.weights(weights), names


def of_rows(values, names):
    """Values of units, or where rows are in groups, for every row that of its group."""
    return values if names is None else values[names.place]


def response(result, x):
    """As `Result.predict_response`."""
    wraps = isinstance(result.model, Wrapper) and not isinstance(result.model, Bank)
    if not defines(result.model.wrapped if wraps else result.model, "response"):
        raise TypeError(
            f"{name_of(result.model)} has no response to predict: predict_response is of mixtures "
            "whose components define mean(params, x)"
        )
    if isinstance(x, Grouped):
        raise TypeError("data are grouped, in another order than the rows: give the jaxem.Data")
    x, n, names = as_units(x)
    result._require_features(unit_shape(x))
    result.model.domain.check_gate(x, (n,))
    if given_response(x):
        result.model.domain.check(x, name_of(result.model))
    found = answers.response(result._numeric, result.params, x, result._structure)
    return found if names is None else found[x.rows_in_order(names)]


def checked_weights(weights, n, dtype):
    """Weights (n,) or None. ValueError where they are not traced and are negative, not finite or
    all 0."""
    weights = checks.as_weights(weights, n, dtype)
    if weights is not None and not is_traced(weights):
        explanation = checks.explain_bad_weights(weights)
        if explanation is not None:
            raise ValueError(explanation)
    return weights


def require_no_weights(weights):
    if weights is not None:
        raise TypeError(
            "weights belong to data: give x with them, or leave both for those of the fit"
        )
