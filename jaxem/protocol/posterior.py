"""Responsibilities inside whatever `posterior` returned, and expectations under them."""

import jax.numpy as jnp


def responsibilities_of(q):
    """Responsibilities (n, k), from themselves or from what `posterior` returned."""
    return getattr(q, "responsibilities", q)


def with_responsibilities(q, r):
    """What `posterior` returned, with other responsibilities (n, k)."""
    return q._replace(responsibilities=r) if hasattr(q, "responsibilities") else r


def expectation(q, values):
    """Σ_k q_ik values_ik per unit, shape (n,); what q rules out counts nothing, −∞ included."""
    some = q > 0
    return jnp.where(some, q * jnp.where(some, values, 0), 0).sum(-1)
