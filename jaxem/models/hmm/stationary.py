"""The stationary distribution of a transition matrix, and the M-step of chains that start from it.

The initial probabilities are then a function of the transition matrix, and the expected log joint,
Σ pairs·log A + Σ first·log π(A), has no maximum in closed form.
"""

import jax
import jax.numpy as jnp

from jaxem.numerics.descent import descend
from jaxem.numerics.special import safe_xlogy
from jaxem.protocol.counts import is_empty, safe

STEPS = 8
"""Newton's steps in an M-step. The start, the best matrix without the second sum, is near: that sum
counts for one row of a sequence."""


def stationary(transition):
    """π (k,) with π A = π, of a matrix with one recurrent class."""
    k = transition.shape[-1]
    system = jnp.eye(k, dtype=transition.dtype) - transition.T + 1
    return jnp.maximum(jnp.linalg.solve(system, jnp.ones(k, transition.dtype)), 0)


def best_transition(previous, first, pairs):
    """The matrix (k, k) that maximises Σ pairs·log A + Σ first·log π(A); zeros of `previous` stay.

    previous is returned where no step raises that sum.
    """
    is_free = previous > 0

    def matrix(logits):
        return jax.nn.softmax(jnp.where(is_free, logits, -jnp.inf), axis=-1)

    def loss(vector):
        transition = matrix(vector.reshape(previous.shape))
        joint = jnp.sum(jnp.where(is_free, safe_xlogy(pairs, jnp.where(is_free, transition, 1)), 0))
        pi = stationary(transition)
        return -(joint + jnp.sum(safe_xlogy(first, jnp.where(pi > 0, pi, 1))))

    total = pairs.sum(-1, keepdims=True)
    start = jnp.where(is_empty(total), previous, pairs / safe(total))
    least = jnp.finfo(previous.dtype).tiny
    logits = jnp.log(jnp.where(is_free, jnp.maximum(start, least), 1)).reshape(-1)
    found, _ = descend(None, loss, logits, (), STEPS)
    before = jnp.log(jnp.where(is_free, previous, 1)).reshape(-1)
    return jnp.where(loss(found) <= loss(before), matrix(found.reshape(previous.shape)), previous)
