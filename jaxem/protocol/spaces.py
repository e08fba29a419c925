"""The set of values of each leaf of params, with two coordinate systems and a metric.

A model declares one `Space` for each leaf (`Model.spaces`). A space acts on the trailing axes of
its leaf; any axes may precede them, such as those of components and restarts.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import Precision

from jaxem.numerics.linalg import lower_factor

__all__ = [
    "ABOVE_ZERO",
    "KNOWN",
    "POSITIVE",
    "POSITIVE_DEFINITE",
    "REAL",
    "SIMPLEX",
    "UNDECLARED",
    "UNIT",
    "Known",
    "Positive",
    "PositiveDefinite",
    "Reciprocal",
    "Simplex",
    "Space",
    "Undeclared",
    "UnitInterval",
]

LEAST_RATIO = 0.2
"""The least ratio of an extrapolated coordinate to that of the plain EM step. EM multiplies
probabilities, so that one which is set to 0 stays 0."""

LEAST_IN_METRIC = 1e-6
"""Smaller probabilities, and smaller variances of a probability, are raised to this in a metric."""

SHARES_OFF = 1e-3
"""How far from 1 the sum of given probabilities may be."""

SMALL_MARGIN = 1e-3
"""The margin (see `Space`) below which an entry counts as close to its bound, where its growth
gains too little to be measured."""


class Space:
    """All real numbers.

    `Model.spaces` returns a tree with one space for each leaf of params. leaf: an array of params
    with any leading axes before those of the space, such as (k, d). The functions are pure JAX and
    take and return arrays of that shape, unless they say otherwise.
    """

    def chart(self, leaf):
        """The coordinates of a leaf in which accelerators extrapolate."""
        return leaf

    def leaf(self, chart):
        """The leaf with the coordinates `chart`."""
        return chart

    def guard(self, proposal, legal):
        """Legal coordinates of `chart`, from a proposal and from those of a legal leaf."""
        return proposal

    def free(self, leaf):
        """The unconstrained coordinates of a leaf, for steps by gradients."""
        return leaf

    def bound(self, free):
        """The leaf with the unconstrained coordinates `free`."""
        return free

    def metric(self, leaf):
        """The approximate information of a unit of weight on every entry, in the coordinates of
        `chart`."""
        return jnp.ones_like(leaf)

    def margin(self, leaf):
        """The distance of every entry from 0 or another bound that is a fixed point of EM, relative
        to the natural size of the entry; None: there is no such bound."""
        return None

    def freedom(self, shape) -> int | None:
        """The number of free parameters of a leaf of this shape, where entries are related beyond
        the trailing axes; else None."""
        return None

    def redundant(self, shape) -> int:
        """The dimension of the transformations of one block of a leaf of this shape, the last axes
        of it, that leave the model as it is, which is subtracted from its free parameters."""
        return 0

    def outside(self, leaf) -> str | None:
        """What is wrong with a leaf, a NumPy array, that does not lie in the space, for a message;
        else None."""
        return None

    def holds(self, leaf):
        """Whether a leaf lies in the space, a boolean scalar; for traced leaves."""
        return jnp.asarray(True)

    def groups(self, shape):
        """For every entry of a leaf of this shape the flat index of the first of the entries that
        are equal to it in this space: its own where it is free. None: all are free."""
        return None

    def constant(self, shape):
        """Which entries of a leaf of this shape have one value in all of the space, a NumPy array
        of booleans."""
        return np.zeros(shape, bool)


@dataclass(frozen=True)
class Positive(Space):
    """Numbers above 0, or within a range.

    least, most: the ends of the range, in the units of the leaf. zero: 0 itself is in the space.
    """

    least: float = 0.0
    most: float = math.inf
    zero: bool = True

    def outside(self, leaf):
        inside = (leaf >= self.least) & (leaf <= self.most) & ((leaf > 0) | self.zero)
        if np.all(inside):
            return None
        if self.least > 0 or self.most < math.inf:
            return f"must be between {self.least:g} and {self.most:g}, got {leaf[~inside][0]:g}"
        bound = "0 or more" if self.zero else "above 0"
        return f"must be {bound}, got {np.asarray(leaf)[~inside][0]:g}"

    def holds(self, leaf):
        return jnp.all((leaf >= self.least) & (leaf <= self.most) & ((leaf > 0) | self.zero))

    def guard(self, proposal, legal):
        return jnp.clip(proposal, jnp.maximum(LEAST_RATIO * legal, self.least), self.most)

    def free(self, leaf):
        return jnp.log(leaf)

    def bound(self, free):
        return jnp.clip(jnp.exp(free), self.least, self.most)

    def metric(self, leaf):
        return 1 / jnp.square(leaf)

    def margin(self, leaf):
        if self.least > 0 or leaf.ndim == 0:
            return None
        largest = leaf.max(0)  # over the components
        return leaf / jnp.where(largest > 0, largest, 1)


@dataclass(frozen=True)
class Reciprocal(Positive):
    """Numbers within a range, by their reciprocals: for a value whose limit is infinite."""

    def chart(self, leaf):
        return 1 / leaf

    def leaf(self, chart):
        return 1 / chart

    def guard(self, proposal, legal):
        return jnp.clip(proposal, jnp.maximum(LEAST_RATIO * legal, 1 / self.most), 1 / self.least)

    def metric(self, leaf):
        return jnp.square(leaf)


class Known(Positive):
    """Numbers above 0 that the model sets, such as given degrees of freedom: no parameters."""

    def bound(self, free):
        return jax.lax.stop_gradient(super().bound(free))


class UnitInterval(Space):
    """Numbers between 0 and 1."""

    def outside(self, leaf):
        inside = (leaf >= 0) & (leaf <= 1)
        return None if np.all(inside) else f"must be between 0 and 1, got {leaf[~inside][0]:g}"

    def holds(self, leaf):
        return jnp.all((leaf >= 0) & (leaf <= 1))

    def guard(self, proposal, legal):
        proposal = jnp.maximum(proposal, LEAST_RATIO * legal)
        return 1 - jnp.maximum(1 - proposal, LEAST_RATIO * (1 - legal))

    def free(self, leaf):
        return jnp.log(leaf) - jnp.log1p(-leaf)

    def bound(self, free):
        return jax.nn.sigmoid(free)

    def metric(self, leaf):
        return 1 / jnp.maximum(leaf * (1 - leaf), LEAST_IN_METRIC)

    def margin(self, leaf):
        return 2 * jnp.minimum(leaf, 1 - leaf)


class Simplex(Space):
    """Probability vectors along the last axis: entries of 0 or more that sum to 1. EM keeps an
    entry that is 0."""

    def outside(self, leaf):
        inside = (leaf >= 0).all(-1) & (abs(leaf.sum(-1) - 1) <= SHARES_OFF)
        if np.all(inside):
            return None
        return f"must be 0 or more and sum to 1, got {leaf[~inside][0]}: divide by their sum"

    def holds(self, leaf):
        return jnp.all(leaf >= 0) & jnp.all(jnp.abs(leaf.sum(-1) - 1) <= SHARES_OFF)

    def guard(self, proposal, legal):
        raised = jnp.maximum(proposal, LEAST_RATIO * legal)
        return _normalised(jnp.where(legal > 0, raised, 0))

    def free(self, leaf):
        return jnp.log(leaf)

    def bound(self, free):
        return jax.nn.softmax(free, axis=-1)

    def metric(self, leaf):
        return 1 / jnp.maximum(leaf, LEAST_IN_METRIC)

    def margin(self, leaf):
        return leaf / leaf.max(-1, keepdims=True)


class PositiveDefinite(Space):
    """Symmetric positive definite matrices in the last two axes, by their Cholesky factors."""

    def outside(self, leaf):
        try:
            if np.all(np.isfinite(np.linalg.cholesky(leaf))):
                return None
        except np.linalg.LinAlgError:
            pass
        return "is not positive definite: give a covariance, not its square root or inverse"

    def holds(self, leaf):
        return jnp.all(jnp.isfinite(lower_factor(leaf)))

    def chart(self, leaf):
        return lower_factor(leaf)

    def leaf(self, chart):
        return jnp.matmul(chart, jnp.swapaxes(chart, -1, -2), precision=Precision.HIGHEST)

    def guard(self, proposal, legal):
        diagonal = jnp.eye(legal.shape[-1], dtype=bool)
        return jnp.where(diagonal, jnp.maximum(proposal, LEAST_RATIO * legal), proposal)

    def free(self, leaf):
        lower = lower_factor(leaf)
        diagonal = jnp.eye(leaf.shape[-1], dtype=bool)
        return jnp.where(diagonal, jnp.log(jnp.where(diagonal, lower, 1)), lower)

    def bound(self, free):
        diagonal = jnp.eye(free.shape[-1], dtype=bool)
        lower = jnp.tril(jnp.where(diagonal, jnp.exp(jnp.where(diagonal, free, 0)), free))
        return self.leaf(lower)

    def metric(self, leaf):
        variance = jnp.diagonal(leaf, axis1=-2, axis2=-1)
        return jnp.broadcast_to(1 / variance[..., None], leaf.shape)


class Undeclared(Space):
    """All real numbers, for params whose model declares no spaces. There may be relations among
    them that nobody stated, such as a sum of 1, and params that were extrapolated obey these only
    up to rounding errors many times larger than one."""


UNDECLARED = Undeclared()
"""The space of a leaf for which the model declares none."""

REAL = Space()
"""All real numbers."""

POSITIVE = Positive()
"""Numbers of 0 or more."""

ABOVE_ZERO = Positive(zero=False)
"""Numbers above 0."""

KNOWN = Known(zero=False)
"""Numbers above 0 that the model sets, which are no parameters."""

UNIT = UnitInterval()
"""Numbers between 0 and 1."""

SIMPLEX = Simplex()
"""Probability vectors along the last axis."""

POSITIVE_DEFINITE = PositiveDefinite()
"""Symmetric positive definite matrices in the last two axes."""


def return_time(spaces, params, proposal):
    """The least number of steps by which a growing entry reaches the margin `SMALL_MARGIN`.

    Only entries with smaller margins count, and every further step is assumed to multiply them by
    as much as the step from params to proposal. EM multiplies probabilities and rates: one that is
    nearly 0 but should not be grows by a constant factor a step, at first without a measurable gain
    of the objective. Infinite where no such entry grows; None where the spaces have no such bound.
    """
    steps = []
    for space, leaf, proposed_leaf in zip(
        *map(jax.tree.leaves, (spaces, params, proposal)), strict=True
    ):
        margin = space.margin(leaf)
        if margin is None:
            continue
        next_margin = space.margin(proposed_leaf)
        is_growing = (margin > 0) & (margin < SMALL_MARGIN) & (next_margin > margin)
        log_rate = jnp.log(jnp.where(is_growing, next_margin / margin, jnp.e))
        log_distance = jnp.log(jnp.where(is_growing, SMALL_MARGIN / margin, 1))
        needed = jnp.maximum(log_distance, 1) / log_rate
        steps.append(jnp.min(jnp.where(is_growing, needed, jnp.inf)))
    return functools.reduce(jnp.minimum, steps) if steps else None


class Coordinates:
    """Params as one unconstrained vector, `origin`, and the map back."""

    def __init__(self, spaces, params):
        self.spaces = spaces
        self._free = jax.tree.map(lambda space, leaf: space.free(leaf), spaces, params)
        self.origin, self._unravel = ravel_pytree(self._free)

    def of_entries(self, values):
        """Values of the entries of params, a tree like params, for the coordinates that belong to
        one entry each; ∞ for others."""

        def of_leaf(space, value, free):
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(free)]
            if shapes == [jnp.shape(value)]:
                return value
            return jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), jnp.inf, leaf.dtype), free)

        return ravel_pytree(jax.tree.map(of_leaf, self.spaces, values, self._free))[0]

    def params(self, vector):
        """The params with the unconstrained coordinates `vector`."""
        return jax.tree.map(
            lambda space, leaf: space.bound(leaf), self.spaces, self._unravel(vector)
        )


def _normalised(leaf):
    return leaf / leaf.sum(-1, keepdims=True)
