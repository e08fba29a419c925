"""Exact EM: one map of the parameters, with the objective at the parameters it started from."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.pytree import pytree


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
        q, evidence = model.posterior(params, x)
        evidence = jnp.where(weights > 0, evidence, 0)
        prior = jnp.asarray(model.log_prior(params), evidence.dtype)
        proposal = model.maximize(params, model.statistics(params, x, q, weights))
        return Evaluation(
            proposal,
            row_sum(weights, evidence) + prior,
            row_sum(weights, jnp.abs(evidence) + 1) + jnp.abs(prior),
        )


BLOCK = 1024


def row_sum(weights, values):
    """Σ_i weights_i · values_i, in blocks, so that rounding grows like √n/1024 + 1024, not like n.

    A product of matrices: sums along a minor axis do not vectorise on a CPU.
    """
    n = values.shape[0]
    if n > BLOCK:
        blocks = [jnp.pad(a, (0, -n % BLOCK)).reshape(-1, BLOCK) for a in (weights, values)]
        weights, values = blocks
    sums = jnp.einsum("...n,...n->...", weights, values, precision=Precision.HIGHEST)
    return sums.sum()
