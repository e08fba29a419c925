"""Sums without rounding errors."""

import jax.numpy as jnp


def rounding(a, b, total):
    """a + b − total, exactly, where total is a + b rounded.

    Source: Knuth, The Art of Computer Programming 2, section 4.2.2.
    """
    added = total - a
    return (a - (total - added)) + (b - added)


def excess(probs):
    """The sum over the last axis less 1, exact where it is nearly 0: (...) from (..., v)."""
    errors = 0.0
    while (v := probs.shape[-1]) > 1:
        half = v // 2
        a, b, odd = probs[..., :half], probs[..., half : 2 * half], probs[..., 2 * half :]
        total = a + b
        errors = errors + rounding(a, b, total).sum(-1)
        probs = jnp.concatenate([total, odd], axis=-1)
    return (probs[..., 0] - 1) + errors
