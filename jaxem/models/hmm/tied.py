"""The M-step of a transition matrix with fixed entries and ties across its rows."""

import jax.numpy as jnp
import numpy as np

from jaxem.numerics.descent import descend
from jaxem.protocol.counts import is_empty, safe

STEPS = 20
"""Newton's steps on the multipliers, one for each row of the matrix. They begin at the counts of
the rows, where they stay without ties."""


def tied_rows(held, counts, previous):
    """The matrix (k, k) that maximises Σ counts·log A under restrictions, a `Held`.

    With g the entries of one tie, n_g the sum of their counts, m_rg how many of them are in row r,
    and multipliers λ of the rows, A_g = n_g / Σ_r λ_r m_rg. The multipliers minimise the convex
    function Σ_r λ_r b_r − Σ_g n_g log Σ_r λ_r m_rg, where b_r is what fixed entries leave of row r.
    """
    k = len(previous)
    leaders, number = np.unique(held.group, return_inverse=True)
    number = number.reshape(k, k)
    is_free = ~held.fixed
    members = np.zeros((k, len(leaders)))
    np.add.at(members, (np.arange(k)[:, None].repeat(k, 1)[is_free], number[is_free]), 1)
    members = jnp.asarray(members, counts.dtype)
    one_hot = jnp.asarray(np.arange(len(leaders)) == number[..., None], counts.dtype)
    of_groups = jnp.einsum("ij,ijg->g", jnp.where(is_free, counts, 0), one_hot)
    left = 1 - jnp.where(held.fixed, previous, 0).sum(1)

    def shares(logs):
        total = jnp.matmul(jnp.exp(logs), members, precision="highest")
        return of_groups, jnp.where(total > 0, total, 1)

    def loss(logs):
        n, total = shares(logs)
        return jnp.sum(jnp.exp(logs) * left) - jnp.sum(n * jnp.log(total))

    of_rows = jnp.where(is_free, counts, 0).sum(1)
    has_room = (left > 0) & ~is_empty(of_rows)
    start = jnp.log(jnp.where(has_room, of_rows / jnp.where(left > 0, left, 1), 1))
    found, _ = descend(None, loss, start, (), STEPS)
    n, total = shares(found)
    estimate = (n / total)[number]
    estimate = jnp.where(has_room[:, None] & is_free, estimate, previous)
    free = jnp.where(is_free, estimate, 0)
    total = free.sum(1, keepdims=True)
    return jnp.where(is_free, free * jnp.maximum(left, 0)[:, None] / safe(total), previous)
