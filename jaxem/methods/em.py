"""Exact EM: one map of the parameters, with the objective at the parameters it started from."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.pytree import pytree

ROUNDING = 16
"""The objective is known to ROUNDING · eps · Σw(|ℓ|+1): late float32 iterations fall by up to 3."""


class Evaluation(NamedTuple):
    """What one pass over the data at `params` tells.

    proposal: what to evaluate next, M(params) if exact. objective: log-likelihood + log prior AT
    params. magnitude: Σ w·(|ℓ| + 1), the scale of the objective's rounding.

    memory: what the method remembers. accepted: whether params are kept; None: always. gain, ahead:
    of methods whose steps are not all alike, the gain of a step that tells something, else NaN, and
    the gain they expect to come.
    """

    proposal: Any
    objective: Any
    magnitude: Any
    memory: Any = ()
    accepted: Any = None
    gain: Any = None
    ahead: Any = None

    @property
    def noise(self):
        """How far rounding may move the objective."""
        return ROUNDING * jnp.finfo(self.objective.dtype).eps * self.magnitude


@pytree
class EM:
    """Exact E-step and exact M-step: coordinate ascent on the free energy (Neal & Hinton 1998).

    Args:
      accelerator: None, `SQUAREM()` or `Anderson()`: fewer evaluations of the EM map where it is
        slow.
    """

    accelerator: Any = None

    def start(self, model, params):
        """What the method remembers of a climb that has evaluated nothing."""
        return () if self.accelerator is None else self.accelerator.start(model, params)

    def evaluate(self, model, params, x, weights, memory=()) -> Evaluation:
        """One E-step and one M-step, and what the accelerator makes of them."""
        seen = self.map(model, params, x, weights)
        if self.accelerator is None:
            return seen
        return self.accelerator.advance(model, params, seen, memory)

    def map(self, model, params, x, weights) -> Evaluation:
        """One E-step and one M-step: the EM map at params."""
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
