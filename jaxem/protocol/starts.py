"""Where a fit begins: rules that give every unit a first share in every component. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import is_empty

BLEND = 0.1
"""The part of every unit that a seeded start spreads evenly over all components, so that none
begins on a handful of identical units."""


class Start:
    """A rule `responsibilities(key, points, weights, k) -> (n, k)`; points (n, e) or None."""

    random = True

    def params(self, model, key, x, weights):
        """Params of `model` at the responsibilities that the rule gives."""
        r = self.responsibilities(key, model.embed(x), weights, model.domain.components)
        other = jax.random.fold_in(key, 1)
        return model.from_responsibilities(other, x, r.astype(weights.dtype), weights)

    @staticmethod
    def default(model, x) -> "Start":
        """k-means++ where the model can place units in space, else random responsibilities."""
        return RandomResponsibilities() if model.embed(x) is None else KMeansPlusPlus()


@pytree
class KMeansPlusPlus(Start):
    """Seeds drawn with probability ∝ squared distance to the seeds so far; each unit joins the
    nearest. Source: Arthur & Vassilvitskii 2007."""

    def responsibilities(self, key, points, weights, k):
        return _seeded(key, points, weights, k, lambda distance: distance)


@pytree
class RandomRows(Start):
    """Seeds drawn evenly from the units unlike the seeds so far; each unit joins the nearest."""

    def responsibilities(self, key, points, weights, k):
        return _seeded(key, points, weights, k, lambda distance: (distance > 0) * 1.0)


@pytree
class RandomResponsibilities(Start):
    """Every unit's shares drawn from the flat Dirichlet distribution."""

    def responsibilities(self, key, points, weights, k):
        shares = jax.random.exponential(key, (weights.shape[0], k), weights.dtype)
        return shares / shares.sum(-1, keepdims=True)


@pytree(eq=False)
class Responsibilities(Start):
    """Given shares: (n, k), not negative, every row summing to 1."""

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
    """Even shares in every component that no unit belongs to, so that it has a place to start."""
    empty = is_empty((responsibilities * weights[:, None]).sum(0))
    return jnp.where(empty, 1 / responsibilities.shape[1], responsibilities)


def _seeded(key, points, weights, k, preference):
    """k seeds one after the other, the first by weight alone; then the units' nearest seeds."""
    if points is None:
        raise ValueError('this model cannot place its units in space: use init="random"')
    draws = jax.random.uniform(key, (k,), points.dtype)

    def add(j, carry):
        nearest, label = carry
        share = jnp.cumsum(weights * preference(nearest))
        row = jnp.sum(share <= draws[j] * share[-1])
        seed = points[jnp.minimum(row, points.shape[0] - 1)]
        distance = jnp.square(points - seed).sum(-1)
        closer = (distance < nearest) | (j == 0)
        return jnp.where(closer, distance, nearest), jnp.where(closer, j, label)

    even = jnp.ones(points.shape[0], points.dtype)
    label = jnp.zeros(points.shape[0], jnp.int32)
    _, label = jax.lax.fori_loop(0, k, add, (even, label))
    return jnp.where(label[:, None] == jnp.arange(k), 1 - BLEND + BLEND / k, BLEND / k)
