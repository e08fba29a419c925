"""Empty components, to which no unit belongs: their params, and division by their count."""

import jax.numpy as jnp

from jaxem.numerics.tree import select


def total_range(dtype):
    """The sums of weights between which counts of components neither underflow nor overflow."""
    limits = jnp.finfo(dtype)
    return float(limits.tiny) / float(limits.eps) ** 3, float(limits.max) * float(limits.eps) ** 2


def is_empty(count):
    """Which components are empty: their count has underflowed, and has no estimate."""
    limits = jnp.finfo(count.dtype)
    return count <= limits.tiny / limits.eps


def keep_empty(count, updated, previous):
    """`updated` params, but `previous` ones for components to which no unit belongs any more."""
    return updated if previous is None else select(is_empty(count), previous, updated)


def safe(count):
    """`count` with empty components set to 1, to divide by."""
    return jnp.where(is_empty(count), 1, count)
