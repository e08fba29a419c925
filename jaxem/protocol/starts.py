"""Rules for the initial params of a fit: initial responsibilities of every unit. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics import rows
from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import Placed, defines, has
from jaxem.protocol.counts import is_empty
from jaxem.protocol.model import name_of

EVEN_PART = 0.1
"""The part of every unit that a seeded rule spreads evenly over all components, so that no
component begins with few identical units alone."""


SOFT_PART = 0.9
"""The part of every unit that half of the elemental starts spread evenly. They lead to few optima,
mostly to the best one; the others, with `EVEN_PART`, to many."""


class Start:
    """A rule for initial responsibilities, `responsibilities(key, points, weights, k) -> (n, k)`.

    points: (n, e), the units as points in space; None where the model has none. random: whether the
    rule depends on the key.
    """

    random = True

    def require(self, model):
        """Raises TypeError or ValueError where the model cannot start by this rule."""
        if not has(model, Placed):
            raise TypeError(
                f"{name_of(model)} has its own start, and takes no responsibilities: leave "
                "init=None, or give params"
            )

    def params(self, model, key, x, weights):
        """Params of `model` by an M-step at the initial responsibilities of x."""
        return self.started(model, key, x, *self.drawn(model, key, x, weights))

    def drawn(self, model, key, x, weights):
        """The initial responsibilities of x, and the weights of units at which params start."""
        k = model.domain.components if self.random else model.domain.classes
        points, labels = model.embed(x), model.known_labels(x)
        if labels is None:
            responsibilities = self.responsibilities(key, points, weights, k)
        else:
            responsibilities = self.labelled(key, points, weights, k, labels)
            if self.random and points is None:
                weights = _balanced(weights, k, labels)
        if model.domain.discrete:  # what no component was estimated from may be impossible
            is_ignored = responsibilities.sum(1, keepdims=True) == 0
            responsibilities = jnp.where(is_ignored, 1 / k, responsibilities)
        return responsibilities, weights

    def started(self, model, key, x, responsibilities, weights):
        """Params of `model` by an M-step at responsibilities. Those of a random rule are improved
        first, where the model defines `refined`."""
        model_key = jax.random.fold_in(key, 1)
        responsibilities = responsibilities.astype(weights.dtype)
        if self.random and defines(model, "refined"):
            responsibilities = model.refined(model_key, x, responsibilities, weights)
        return model.from_responsibilities(model_key, x, responsibilities, weights)

    def labelled(self, key, points, weights, k, labels):
        """`responsibilities` where the component of some units is known: labels (n,), −1 unknown.
        Those of the known units are set by the model."""
        return self.responsibilities(key, points, weights, k)

    @staticmethod
    def default(model, x) -> "Start":
        """Elemental subsets where the model has them, k-means++ where the units of x are points in
        space, else random responsibilities."""
        if defines(model, "elemental"):
            return ElementalSubsets()
        return RandomResponsibilities() if model.embed(x) is None else KMeansPlusPlus()


@pytree(static=("outliers",))
class KMeansPlusPlus(Start):
    """Seeds drawn with probability ∝ weight · squared distance to the nearest earlier seed.

    Each unit belongs to the component of the nearest seed: to that by nine tenths, with the last
    tenth spread evenly over all. Outliers are no seeds, and have responsibilities of 0. Where the
    components of some units are known, the mean of the known units of a component is its seed.
    Raises TypeError or ValueError, in `fit`, for a model whose units are no points in space.
    Source: Arthur & Vassilvitskii 2007.

    Args:
      outliers: whether outliers may be seeds too, as they may in k-means.
    """

    outliers: bool = False

    def responsibilities(self, key, points, weights, k):
        """Initial responsibilities (n, k) of units at points (n, e)."""
        return self.labelled(key, points, weights, k, None)

    def labelled(self, key, points, weights, k, labels):
        return _seeded(key, points, weights, k, lambda d: d, labels, self.outliers)


@pytree
class RandomRows(Start):
    """Seeds drawn with probability ∝ weight from the units that differ from all earlier seeds.

    All else as in `KMeansPlusPlus`, whose TypeError and ValueError it raises. Source: Forgy 1965.
    """

    def responsibilities(self, key, points, weights, k):
        """Initial responsibilities (n, k) of units at points (n, e)."""
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
        """Initial responsibilities (n, k), drawn by the key."""
        draws = jax.random.exponential(key, (weights.shape[0], k), weights.dtype)
        return draws / draws.sum(-1, keepdims=True)

    def labelled(self, key, points, weights, k, labels):
        drawn = self.responsibilities(key, points, weights, k)
        if points is None:
            return drawn
        seeds_key = jax.random.fold_in(key, 1)
        return (drawn + KMeansPlusPlus().labelled(seeds_key, points, weights, k, labels)) / 2


@pytree
class ElementalSubsets(Start):
    """Components that are each fitted to as few units as they have coefficients, drawn by the key.

    Each unit belongs to the component at the smallest distance, but a part of it is spread evenly
    over all: nine tenths in half of the starts, at random, and one tenth in the others. A component
    with known units is fitted to some of them. For `Regression`; raises TypeError, in `fit`, for
    other models. Source: the elemental sets of Hawkins, Bradu & Kass 1984.
    """

    def require(self, model):
        super().require(model)
        if not defines(model, "elemental"):
            raise TypeError(
                f'{name_of(model)} has no components that few units determine: init="elemental" '
                "is for mixtures of jaxem.Regression"
            )

    def params(self, model, key, x, weights):
        k, labels = model.domain.components, model.known_labels(x)
        of_component = weights if labels is None else _allowed(weights, k, labels)
        distance = model.elemental(key, x, of_component, k)
        even = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 2)), EVEN_PART, SOFT_PART)
        shares = _softened(jnp.argmin(distance, axis=1), k, even).astype(weights.dtype)
        return self.started(model, key, x, fill_empty(shares, weights), weights)


@pytree(eq=False)
class Responsibilities(Start):
    """Given responsibilities of every unit.

    values: (n, k), not negative, every row summing to 1. Raises ValueError, in `fit`, for another
    shape.
    """

    values: Any
    random = False

    def responsibilities(self, key, points, weights, k):
        """The given responsibilities (n, k); ValueError where they have another shape."""
        values = jnp.asarray(self.values)
        expected = (weights.shape[0], k)
        if values.shape != expected:
            raise ValueError(f"Responsibilities must have shape {expected}, got {values.shape}")
        return fill_empty(values, weights)


@pytree(eq=False)
class Labels(Start):
    """A given component for every unit.

    values: (n,) integers from 0 to k−1. Raises ValueError, in `fit`, for another shape.
    """

    values: Any
    random = False

    def responsibilities(self, key, points, weights, k):
        """The given labels as responsibilities (n, k); ValueError for another shape."""
        values = jnp.asarray(self.values)
        if values.shape != weights.shape:
            raise ValueError(f"Labels must have shape {weights.shape}, got {values.shape}")
        return fill_empty(jax.nn.one_hot(values, k, dtype=weights.dtype), weights)


@pytree(static=("is_cyclic",))
class Template(Start):
    """Params of a chain whose states follow each other: left to right, or in a cycle. The model
    defines `template(is_cyclic)`: a function of (key, x, weights) that returns them, or ValueError
    where it cannot have the structure."""

    is_cyclic: bool

    def require(self, model):
        if not defines(model, "template"):
            name = "cyclic" if self.is_cyclic else "left_to_right"
            raise TypeError(
                f"init={name!r} is for chains such as HMM and SemiMarkov, {name_of(model)} is "
                "none: leave init=None, or give params"
            )
        model.template(self.is_cyclic)

    def params(self, model, key, x, weights):
        return model.template(self.is_cyclic)(key, x, weights)


NAMED = {
    "kmeans++": KMeansPlusPlus(),
    "random_rows": RandomRows(),
    "random": RandomResponsibilities(),
    "elemental": ElementalSubsets(),
    "left_to_right": Template(is_cyclic=False),
    "cyclic": Template(is_cyclic=True),
}


def fill_empty(responsibilities, weights):
    """Responsibilities (n, k) with 1/k for every unit in each component of total weight 0, so that
    an M-step is defined for it."""
    empty = is_empty((responsibilities * weights[:, None]).sum(0))
    return jnp.where(empty, 1 / responsibilities.shape[1], responsibilities)


GROSS = 400.0
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

REFERENCES = 4
"""Units, evenly spaced in the data, whose distances to all others are the sample for the typical
distance; before the first seed they stand in for seeds."""


def _seeded(key, points, weights, k, preference, labels=None, outliers=False):
    """Responsibilities (n, k) by the nearest of k seeds, which are drawn one after the other.

    A unit is drawn with probability ∝ weight · preference(squared distance to the nearest seed),
    the first one ∝ weight. An outlier is no seed: a unit at a gross distance from all others, or
    from the earlier seeds with few units around it. It is refused, and another one drawn. Units at
    a gross distance from all seeds have responsibilities of 0: the start does not depend on them.
    labels (n,): the seed of a component with known units is their mean, and no draw; None: no
    component is known. outliers: whether they may be seeds.
    """
    if points is None:
        raise ValueError('this model cannot place its units in space: use init="random"')
    n = points.shape[0]
    uniforms = jax.random.uniform(key, (k if outliers else k + REDRAWS,), points.dtype)
    known = None if labels is None else _known_means(points, weights, k, labels)
    nearest, gross = jnp.ones(n, points.dtype), jnp.inf
    if not outliers:
        references = rows.spaced(points, -(-n // REFERENCES))
        apart = jnp.square(references[:, None] - points).sum(-1)
        gross, nearest = GROSS * _typical(apart, weights).min(), apart.min(0)

    def add(carry):
        """One more seed, or an outlier refused, whose distance `nearest` is then −1."""
        j, draws, nearest, label = carry
        mass = weights * jnp.where(j == 0, 1, preference(nearest))
        mass = mass if outliers else jnp.where(nearest < 0, 0, mass)
        row = rows.drawn(mass, uniforms[j if outliers else draws])
        seed = rows.unit(points, row)
        component, seed, is_drawn = (j, seed, True) if known is None else known(j, seed)
        distance = jnp.square(points - seed).sum(-1)
        is_closer = (distance < nearest) | (j == 0)
        if outliers:
            return (
                j + 1,
                draws,
                jnp.where(is_closer, distance, nearest),
                jnp.where(is_closer, component, label),
            )
        around = jnp.where(distance * AROUND < nearest, weights, 0).sum()
        is_outlier = (
            (rows.unit(nearest, row) > gross) & (around < ISOLATED_PART / k * total) & is_drawn
        )
        is_outlier &= draws < j + REDRAWS
        is_closer &= (nearest >= 0) & ~is_outlier
        refused = is_outlier & (jnp.arange(n) == row)
        return (
            j + ~is_outlier,
            draws + 1,
            jnp.where(is_closer, distance, jnp.where(refused, -1, nearest)),
            jnp.where(is_closer, component, label),
        )

    total, zero = weights.sum(), jnp.zeros((), jnp.int32)
    start = zero, zero, nearest, jnp.zeros(n, jnp.int32)
    _, _, nearest, label = jax.lax.while_loop(lambda carry: carry[0] < k, add, start)
    shares = _softened(label, k)
    if outliers:
        return shares
    is_far = (nearest > gross) | (nearest < 0)
    is_ignored = is_far & (jnp.where(is_far, weights, 0).sum() < MOST_IGNORED * total)
    return jnp.where(is_ignored[:, None], 0, shares)


def _softened(label, k, even=EVEN_PART):
    """Responsibilities (n, k) of units that belong to the component label (n,), of which the part
    `even` is spread evenly."""
    return jnp.where(label[:, None] == jnp.arange(k), 1 - even + even / k, even / k)


def _allowed(weights, k, labels):
    """Weights (n, k) of the units that a component may be fitted to: nearly all of the weight lies
    on those that are known to belong to it, and none on those of others."""
    is_own = labels[:, None] == jnp.arange(k)
    part = jnp.where(is_own, 1.0, jnp.where(labels[:, None] < 0, 1e-6, 0.0))
    return weights[:, None] * part.astype(weights.dtype)


def _known_means(points, weights, k, labels):
    """A function (j, drawn) -> (the component of seed j, the seed, whether it is the drawn unit):
    else the mean of its known units, where it has any, which come first."""
    shares = _known_shares(weights.astype(points.dtype), k, labels)
    count = shares.sum(0)
    means = jnp.matmul(shares.T, points, precision=Precision.HIGHEST)
    means = means / jnp.where(is_empty(count), 1, count)[:, None]
    order = jnp.argsort(is_empty(count), stable=True).astype(jnp.int32)

    def seed(j, drawn):
        component = order[j]
        is_drawn = is_empty(count[component])
        return component, jnp.where(is_drawn, drawn, means[component]), is_drawn

    return seed


def _typical(distance, weights):
    """The geometric means (m,) of squared distances (m, n) above 0: few outliers hardly change it.
    Infinite where all are 0."""
    mass = jnp.where(distance > 0, weights, 0)
    logs = jnp.log(jnp.where(distance > 0, distance, 1))
    total = mass.sum(1)
    return jnp.where(total > 0, jnp.exp((mass * logs).sum(1) / total), jnp.inf)


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
