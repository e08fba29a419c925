"""Starts of topics that differ from each other."""

import jax
import jax.numpy as jnp

EQUAL = 8
"""Topics whose random projections differ by less than EQUAL · ε of themselves count as equal."""


def separated(key, topics):
    """topics (k, v), where each that equals an earlier one is multiplied by exponential draws."""
    k, v = topics.shape
    projection_key, draws_key = jax.random.split(key)
    projection = topics @ jax.random.uniform(projection_key, (v,), topics.dtype)
    distance = jnp.abs(projection[:, None] - projection)
    rounding = EQUAL * jnp.finfo(topics.dtype).eps * jnp.abs(projection)
    is_copy = jnp.any(jnp.tril(distance <= rounding, -1), axis=1)[:, None]
    drawn = topics * jax.random.exponential(draws_key, (k, v), topics.dtype)
    return jnp.where(is_copy, drawn / drawn.sum(1, keepdims=True), topics)
