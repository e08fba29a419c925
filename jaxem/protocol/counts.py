"""Components to which no unit belongs: what their params are, and how not to divide by 0."""

import jax.numpy as jnp

from jaxem.numerics.tree import select


def is_empty(count):
    """Components whose weight has underflowed: no estimate can be formed from them."""
    limits = jnp.finfo(count.dtype)
    return count <= limits.tiny / limits.eps


def keep_empty(count, new, old):
    """`new` params, but `old` ones for components that no unit belongs to any more."""
    return new if old is None else select(is_empty(count), old, new)


def safe(count):
    """`count` with empty components set to 1, to divide by."""
    return jnp.where(is_empty(count), 1, count)
