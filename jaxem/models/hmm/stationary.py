"""The stationary distribution of a transition matrix, and the M-step of chains that start from it.

The initial probabilities are then a function of the transition matrix, and the expected log joint,
Σ pairs·log A + Σ first·log π(A), has no maximum in closed form.
"""

import jax
import jax.numpy as jnp

from jaxem.numerics.special import safe_xlogy
from jaxem.protocol.counts import is_empty, safe

STEPS = 10
"""Steps of an M-step. Each divides the distance to the maximum by about the number of rows of a
sequence, since the second sum counts for one row of each."""


def stationary(transition):
    """π (k,) with π A = π, of a matrix with one recurrent class."""
    k = transition.shape[-1]
    system = jnp.eye(k, dtype=transition.dtype) - transition.T + 1
    return jnp.maximum(jnp.linalg.solve(system, jnp.ones(k, transition.dtype)), 0)


def best_transition(previous, first, pairs):
    """The matrix (k, k) that maximises Σ pairs·log A + Σ first·log π(A); zeros of `previous` stay.

    At the maximum A_ij ∝ pairs_ij + A_ij·(g_ij − min_j g_ij) in every row, where g is the slope of
    the second sum. That is iterated, from the best matrix without the second sum or from
    `previous`; a step that lowers the sum is not made.
    """
    is_free = previous > 0

    def of_start(transition):
        pi = stationary(transition)
        return jnp.sum(safe_xlogy(first, jnp.where(pi > 0, pi, 1)))

    def value(transition):
        logs = safe_xlogy(pairs, jnp.where(transition > 0, transition, 1))
        is_impossible = jnp.any((pairs > 0) & (transition <= 0))
        return jnp.where(is_impossible, -jnp.inf, jnp.sum(logs) + of_start(transition))

    def normalised(counts, otherwise):
        total = counts.sum(-1, keepdims=True)
        return jnp.where(is_empty(total), otherwise, counts / safe(total))

    def better(a, b):
        return jnp.where(value(a) >= value(b), a, b)

    def step(_, transition):
        slope = jax.grad(of_start)(transition)
        least = jnp.where(is_free, slope, jnp.inf).min(-1, keepdims=True)
        counts = pairs + jnp.where(is_free, transition * (slope - least), 0)
        return better(normalised(counts, transition), transition)

    start = better(normalised(jnp.where(is_free, pairs, 0), previous), previous)
    return jax.lax.fori_loop(0, STEPS, step, start)
