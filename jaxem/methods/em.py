"""Exact EM: one map of the parameters, with the objective at the parameters it started from."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxem.pytree import pytree
from jaxem.sweep import sweep


class Evaluation(NamedTuple):
    """What one pass over the data at `params` tells.

    proposal: M(params). objective: log-likelihood + log prior AT params. magnitude: Σ w·(|ℓ| + 1),
    the scale of the objective's rounding.
    """

    proposal: Any
    objective: Any
    magnitude: Any


@pytree
class EM:
    """Exact E-step and exact M-step: coordinate ascent on the free energy (Neal & Hinton 1998)."""

    def evaluate(self, model, params, x, weights) -> Evaluation:
        """One E-step and one M-step."""
        sums = sweep(model, params, x, weights)
        prior = jnp.asarray(model.log_prior(params), sums.evidence.dtype)
        return Evaluation(
            model.maximize(params, sums.statistics),
            sums.evidence + prior,
            sums.magnitude + jnp.abs(prior),
        )
