"""Rules for the initial params of a fit: initial responsibilities of every unit. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import is_empty

EVEN_PART = 0.1
"""The part of every unit that a seeded rule spreads evenly over all components, so that no
component begins with few identical units alone."""


class Start:
    """A rule for initial responsibilities, `responsibilities(key, points, weights, k) -> (n, k)`.

    points: (n, e), the units as points in space; None where the model has none. random: whether the
    rule depends on the key.
    """

    random = True

    def params(self, model, key, x, weights):
        """Params of `model` by an M-step at the initial responsibilities."""
        k = model.domain.components
        responsibilities = self.responsibilities(key, model.embed(x), weights, k)
        model_key = jax.random.fold_in(key, 1)
        responsibilities = responsibilities.astype(weights.dtype)
        return model.from_responsibilities(model_key, x, responsibilities, weights)

    @staticmethod
    def default(model, x) -> "Start":
        """k-means++ where the units of the model are points in space, else random
        responsibilities."""
        return RandomResponsibilities() if model.embed(x) is None else KMeansPlusPlus()


@pytree
class KMeansPlusPlus(Start):
    """Seeds drawn with probability ∝ squared distance to the nearest earlier seed.

    Each unit belongs to the nearest seed. Source: Arthur & Vassilvitskii 2007.
    """

    def responsibilities(self, key, points, weights, k):
        return _seeded(key, points, weights, k, lambda distance: distance)


@pytree
class RandomRows(Start):
    """Seeds drawn evenly from the units that differ from all earlier seeds.

    Each unit belongs to the nearest seed.
    """

    def responsibilities(self, key, points, weights, k):
        return _seeded(key, points, weights, k, lambda distance: (distance > 0) * 1.0)


@pytree
class RandomResponsibilities(Start):
    """Responsibilities of every unit drawn from the uniform Dirichlet distribution."""

    def responsibilities(self, key, points, weights, k):
        draws = jax.random.exponential(key, (weights.shape[0], k), weights.dtype)
        return draws / draws.sum(-1, keepdims=True)


@pytree(eq=False)
class Responsibilities(Start):
    """Given responsibilities: (n, k), not negative, every row summing to 1."""

    values: Any
    random = False

    def responsibilities(self, key, points, weights, k):
        values = jnp.asarray(self.values)
        expected = (weights.shape[0], k)
        if values.shape != expected:
            raise ValueError(f"Responsibilities must have shape {expected}, got {values.shape}")
        return fill_empty(values, weights)


@pytree(eq=False)
class Labels(Start):
    """A given component for every unit: (n,) integers from 0 to k−1."""

    values: Any
    random = False

    def responsibilities(self, key, points, weights, k):
        values = jnp.asarray(self.values)
        if values.shape != weights.shape:
            raise ValueError(f"Labels must have shape {weights.shape}, got {values.shape}")
        return fill_empty(jax.nn.one_hot(values, k, dtype=weights.dtype), weights)


NAMED = {
    "kmeans++": KMeansPlusPlus(),
    "random_rows": RandomRows(),
    "random": RandomResponsibilities(),
}


def fill_empty(responsibilities, weights):
    """Responsibilities (n, k) with 1/k for every unit in each component of total weight 0, so that
    an M-step is defined for it."""
    empty = is_empty((responsibilities * weights[:, None]).sum(0))
    return jnp.where(empty, 1 / responsibilities.shape[1], responsibilities)


def _seeded(key, points, weights, k, preference):
    """Responsibilities (n, k) by the nearest of k seeds, which are drawn one after the other.

    A unit is drawn with probability ∝ weight · preference(squared distance to the nearest seed),
    the first one ∝ weight.
    """
    if points is None:
        raise ValueError('this model cannot place its units in space: use init="random"')
    uniforms = jax.random.uniform(key, (k,), points.dtype)

    def add(j, carry):
        nearest, label = carry
        cumulative = jnp.cumsum(weights * preference(nearest))
        row = jnp.sum(cumulative <= uniforms[j] * cumulative[-1])
        seed = points[jnp.minimum(row, points.shape[0] - 1)]
        distance = jnp.square(points - seed).sum(-1)
        is_closer = (distance < nearest) | (j == 0)
        return jnp.where(is_closer, distance, nearest), jnp.where(is_closer, j, label)

    ones = jnp.ones(points.shape[0], points.dtype)
    label = jnp.zeros(points.shape[0], jnp.int32)
    _, label = jax.lax.fori_loop(0, k, add, (ones, label))
    return jnp.where(label[:, None] == jnp.arange(k), 1 - EVEN_PART + EVEN_PART / k, EVEN_PART / k)
