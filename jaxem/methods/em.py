"""Exact EM: one map of the parameters, with the objective at the parameters it started from."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxem.pytree import pytree
from jaxem.sweep import sweep

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
        sums = sweep(model, params, x, weights)
        prior = jnp.asarray(model.log_prior(params), sums.evidence.dtype)
        return Evaluation(
            model.maximize(params, sums.statistics),
            sums.evidence + prior,
            sums.magnitude + jnp.abs(prior),
        )
