"""The responsibilities in the q that `posterior` returned, and expectations under them."""

import jax.numpy as jnp


def responsibilities_of(q):
    """The responsibilities (n, k) of a q that `posterior` returned, or q itself if it is an
    array."""
    return getattr(q, "responsibilities", q)


def with_responsibilities(q, r):
    """The q that `posterior` returned, with r (n, k) as its responsibilities."""
    return q._replace(responsibilities=r) if hasattr(q, "responsibilities") else r


def expectation(q, values):
    """Σ_k q_ik values_ik per unit, shape (n,); entries with q = 0 count 0, also where they are
    −∞."""
    is_positive = q > 0
    return jnp.where(is_positive, q * jnp.where(is_positive, values, 0), 0).sum(-1)
