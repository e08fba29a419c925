"""Rules for the initial params of a fit: initial responsibilities of every unit. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

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
        k, points, labels = model.domain.components, model.embed(x), model.known_labels(x)
        if labels is None:
            responsibilities = self.responsibilities(key, points, weights, k)
        else:
            responsibilities = self.labelled(key, points, weights, k, labels)
            if self.random and points is None:
                weights = _balanced(weights, k, labels)
        model_key = jax.random.fold_in(key, 1)
        responsibilities = responsibilities.astype(weights.dtype)
        return model.from_responsibilities(model_key, x, responsibilities, weights)

    def labelled(self, key, points, weights, k, labels):
        """`responsibilities` where the component of some units is known: labels (n,), −1 unknown.
        Those of the known units are set by the model."""
        return self.responsibilities(key, points, weights, k)

    @staticmethod
    def default(model, x) -> "Start":
        """k-means++ where the units of the model are points in space, else random
        responsibilities."""
        return RandomResponsibilities() if model.embed(x) is None else KMeansPlusPlus()


@pytree
class KMeansPlusPlus(Start):
    """Seeds drawn with probability ∝ squared distance to the nearest earlier seed.

    Each unit belongs to the nearest seed. Where the components of some units are known, the mean of
    the known units of a component is its seed. Source: Arthur & Vassilvitskii 2007.
    """

    def responsibilities(self, key, points, weights, k):
        return self.labelled(key, points, weights, k, None)

    def labelled(self, key, points, weights, k, labels):
        return _seeded(key, points, weights, k, lambda distance: distance, labels)


@pytree
class RandomRows(Start):
    """Seeds drawn evenly from the units that differ from all earlier seeds.

    Each unit belongs to the nearest seed. Known components have seeds as in `KMeansPlusPlus`.
    """

    def responsibilities(self, key, points, weights, k):
        return self.labelled(key, points, weights, k, None)

    def labelled(self, key, points, weights, k, labels):
        return _seeded(key, points, weights, k, lambda distance: (distance > 0) * 1.0, labels)


@pytree
class RandomResponsibilities(Start):
    """Responsibilities of every unit drawn from the uniform Dirichlet distribution.

    Where the components of some units are known, they are the mean of such draws and of the
    responsibilities of `KMeansPlusPlus`.
    """

    def responsibilities(self, key, points, weights, k):
        draws = jax.random.exponential(key, (weights.shape[0], k), weights.dtype)
        return draws / draws.sum(-1, keepdims=True)

    def labelled(self, key, points, weights, k, labels):
        drawn = self.responsibilities(key, points, weights, k)
        if points is None:
            return drawn
        seeds_key = jax.random.fold_in(key, 1)
        return (drawn + KMeansPlusPlus().labelled(seeds_key, points, weights, k, labels)) / 2


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


def _seeded(key, points, weights, k, preference, labels=None):
    """Responsibilities (n, k) by the nearest of k seeds, which are drawn one after the other.

    A unit is drawn with probability ∝ weight · preference(squared distance to the nearest seed),
    the first one ∝ weight. labels (n,): the seed of a component with known units is their mean, and
    no draw; None: no component is known.
    """
    if points is None:
        raise ValueError('this model cannot place its units in space: use init="random"')
    uniforms = jax.random.uniform(key, (k,), points.dtype)

    def nearer(carry, seed, j):
        """(squared distance to the nearest seed, its number) with one more seed."""
        nearest, label = carry
        distance = jnp.square(points - seed).sum(-1)
        is_closer = (distance < nearest) | (label < 0)
        return jnp.where(is_closer, distance, nearest), jnp.where(is_closer, j, label)

    def draw(j, carry):
        nearest, label = carry
        cumulative = jnp.cumsum(weights * jnp.where(label < 0, 1, preference(nearest)))
        row = jnp.sum(cumulative <= uniforms[j] * cumulative[-1])
        return nearer(carry, points[jnp.minimum(row, points.shape[0] - 1)], j)

    n = points.shape[0]
    carry = jnp.ones(n, points.dtype), jnp.full(n, -1, jnp.int32)
    if labels is None:
        _, label = jax.lax.fori_loop(0, k, draw, carry)
    else:
        shares = _known_shares(weights.astype(points.dtype), k, labels)
        count = shares.sum(0)
        means = jnp.matmul(shares.T, points, precision=Precision.HIGHEST)
        means = means / jnp.where(is_empty(count), 1, count)[:, None]

        def add(condition, seed):
            return lambda j, carry: jax.lax.cond(condition[j], seed, lambda _, c: c, j, carry)

        carry = jax.lax.fori_loop(
            0, k, add(~is_empty(count), lambda j, c: nearer(c, means[j], j)), carry
        )
        _, label = jax.lax.fori_loop(0, k, add(is_empty(count), draw), carry)
    return jnp.where(label[:, None] == jnp.arange(k), 1 - EVEN_PART + EVEN_PART / k, EVEN_PART / k)


def _known_shares(weights, k, labels):
    """Weights (n, k) of the known units of every component."""
    return jnp.where(labels[:, None] == jnp.arange(k), weights[:, None], 0)


def _balanced(weights, k, labels):
    """Weights (n,) in which the known units of a component weigh as much as all units, for starts
    of models that have no seeds."""
    shares = _known_shares(weights, k, labels)
    count = shares.sum(0)
    factor = weights.sum() / jnp.where(is_empty(count), 1, count)
    return jnp.where(labels >= 0, (shares * factor).sum(1), weights)
