"""Exact EM: one map of the parameters, with the objective at the parameters it started from."""

from typing import Any, NamedTuple

import jax.numpy as jnp

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
        terms = jnp.where(weights > 0, weights * evidence, 0)
        prior = jnp.asarray(model.log_prior(params), terms.dtype)
        proposal = model.maximize(params, model.statistics(params, x, q, weights))
        return Evaluation(
            proposal,
            row_sum(terms) + prior,
            row_sum(jnp.abs(terms) + weights) + jnp.abs(prior),
        )


BLOCK = 1024


def row_sum(values):
    """The sum of (n,) values in blocks, so that rounding grows like √n/1024 + 1024, not like n."""
    n = values.shape[0]
    if n <= BLOCK:
        return values.sum()
    padded = jnp.pad(values, (0, -n % BLOCK))
    return padded.reshape(-1, BLOCK).sum(-1).sum()
