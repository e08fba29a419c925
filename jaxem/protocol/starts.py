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

    Each unit belongs to the nearest seed. Outliers are no seeds, and have responsibilities of 0.
    Source: Arthur & Vassilvitskii 2007.
    """

    def responsibilities(self, key, points, weights, k):
        return _seeded(key, points, weights, k, lambda distance: distance)


@pytree
class RandomRows(Start):
    """Seeds drawn evenly from the units that differ from all earlier seeds.

    Each unit belongs to the nearest seed. Outliers are no seeds, and have responsibilities of 0.
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


GROSS = 100.0
"""A squared distance is gross from this many times the typical one between two units."""

AROUND = 16.0
"""A unit is around a new seed where its squared distance to the nearest seed falls by this
factor."""

ISOLATED_PART = 0.1
"""Units around a seed at a gross distance are outliers where they are fewer than this part of an
even share of a component."""

MOST_IGNORED = 0.4
"""Units at gross distances from all seeds are ignored where they are fewer than this part."""

REDRAWS = 16
"""The most outliers that are drawn as seeds and refused."""

TYPICAL_ROWS = 4
"""Units whose distances to all others are the sample for the typical distance."""


def _seeded(key, points, weights, k, preference):
    """Responsibilities (n, k) by the nearest of k seeds, which are drawn one after the other.

    A unit is drawn with probability ∝ weight · preference(squared distance to the nearest seed),
    the first one ∝ weight. An outlier is no seed: a unit at a gross distance from all others, or
    from the earlier seeds with few units around it. It is refused, and another one drawn. Units at
    a gross distance from all seeds have responsibilities of 0: the start does not depend on them.
    """
    if points is None:
        raise ValueError('this model cannot place its units in space: use init="random"')
    uniforms = jax.random.uniform(key, (k,), points.dtype)
    spare_key = jax.random.fold_in(key, 1)
    spare = jax.random.uniform(spare_key, (REDRAWS + TYPICAL_ROWS,), points.dtype)
    few = ISOLATED_PART / k * weights.sum()

    def drawn(mass, uniform):
        cumulative = jnp.cumsum(mass)
        row = jnp.sum(cumulative <= uniform * cumulative[-1])
        return jnp.minimum(row, points.shape[0] - 1)

    def squared_distance(row):
        return jnp.square(points - points[row]).sum(-1)

    sample = jax.lax.map(
        lambda uniform: _typical(squared_distance(drawn(weights, uniform)), weights),
        spare[REDRAWS:],
    )
    gross = GROSS * sample.min()

    def draw(carry):
        j, redraws, nearest, label, refused = carry
        uniform = jnp.where(redraws > 0, spare[redraws - 1], uniforms[jnp.minimum(j, k - 1)])
        row = drawn(jnp.where(refused, 0, weights * preference(nearest)), uniform)
        distance = squared_distance(row)
        is_closer = (distance < nearest) | (j == 0)
        is_far = jnp.where(j == 0, _typical(distance, weights), nearest[row]) > gross
        is_around = distance < nearest / AROUND
        is_isolated = (j == 0) | (jnp.where(is_around, weights, 0).sum() < few)
        is_outlier = is_far & is_isolated & (redraws < REDRAWS)
        is_closer &= ~is_outlier
        return (
            jnp.where(is_outlier, j, j + 1),
            jnp.where(is_outlier, redraws + 1, 0),
            jnp.where(is_closer, distance, nearest),
            jnp.where(is_closer, j, label),
            refused | (is_outlier & (jnp.arange(points.shape[0]) == row)),
        )

    n = points.shape[0]
    zero, nearest = jnp.zeros((), jnp.int32), jnp.ones(n, points.dtype)
    start = (zero, zero, nearest, jnp.zeros(n, jnp.int32), jnp.zeros(n, bool))
    _, _, nearest, label, _ = jax.lax.while_loop(lambda carry: carry[0] < k, draw, start)
    shares = jnp.where(
        label[:, None] == jnp.arange(k), 1 - EVEN_PART + EVEN_PART / k, EVEN_PART / k
    )
    is_far = nearest > gross
    is_ignored = is_far & (jnp.where(is_far, weights, 0).sum() < MOST_IGNORED * weights.sum())
    return jnp.where(is_ignored[:, None], 0, shares)


def _typical(distance, weights):
    """The geometric mean of squared distances above 0: few outliers hardly change it."""
    mass = jnp.where(distance > 0, weights, 0)
    total = mass.sum()
    logs = jnp.log(jnp.where(distance > 0, distance, 1))
    return jnp.where(
        total > 0, jnp.exp((mass * logs).sum() / jnp.where(total > 0, total, 1)), jnp.inf
    )
