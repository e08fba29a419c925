"""The prior of the initial and the transition probabilities of a chain."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxem.numerics.special import safe_xlogy
from jaxem.numerics.tree import is_traced, pytree
from jaxem.protocol.priors import above_zero


@pytree
class ChainPrior:
    """initial ~ Dirichlet(`initial`); transition[i] ~ Dirichlet(`transition` + `sticky`·e_i).

    initial, transition: the concentration of every entry, 1 for a uniform density. sticky: added to
    the concentration of staying in a state, 0 or more (Fox et al. 2011); e_i is 1 at i, else 0.
    Entries that are 0 in the params of the start are left out: they stay 0. With
    initial="stationary" the initial probabilities have no prior of their own. Shapes: initial a
    number or (k,); transition a number, (k,) or (k, k).

    Raises ValueError where a concentration is not above 0 or sticky is below 0.
    """

    initial: Any = 1.0
    transition: Any = 1.0
    sticky: Any = 0.0

    def __post_init__(self):
        above_zero(self, "initial", "transition")
        if not is_traced(self.sticky):
            values = np.asarray(self.sticky)
            if values.dtype.kind not in "fiu" or not np.all((values >= 0) & np.isfinite(values)):
                raise ValueError(f"ChainPrior needs sticky of 0 or more, got {self.sticky!r}")

    def counts(self, first, pairs, params):
        """Expected counts, first (k,) of states and pairs (k, k) of transitions, with those of the
        prior, not below 0; 0 where params are 0."""
        concentration = self._of_transitions(pairs)
        first = jnp.maximum(first + self.initial - 1, 0)
        pairs = jnp.maximum(pairs + concentration - 1, 0)
        return jnp.where(params.initial > 0, first, 0), jnp.where(params.transition > 0, pairs, 0)

    def log_density(self, initial, transition):
        """The log density of initial (k,) and transition (k, k); without that of the initial
        probabilities where these are None."""
        value = _log_dirichlet(self._of_transitions(transition), transition)
        if initial is None:
            return value
        concentration = jnp.broadcast_to(self.initial, initial.shape).astype(initial.dtype)
        return value + _log_dirichlet(concentration, initial)

    def _of_transitions(self, like):
        k = like.shape[0]
        concentration = self.transition + self.sticky * jnp.eye(k, dtype=like.dtype)
        return jnp.broadcast_to(concentration, (k, k)).astype(like.dtype)


def _log_dirichlet(concentration, probs):
    """The log densities of probability vectors (..., v), summed; over the entries above 0."""
    is_free = probs > 0
    concentration = jnp.where(is_free, concentration, 0)
    constant = gammaln(concentration.sum(-1))
    each = jnp.where(is_free, gammaln(jnp.where(is_free, concentration, 1)), 0)
    logs = jnp.where(is_free, safe_xlogy(concentration - 1, jnp.where(is_free, probs, 1)), 0)
    return jnp.sum(constant - each.sum(-1) + logs.sum(-1))
