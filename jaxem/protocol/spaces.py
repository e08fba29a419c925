"""The set that each leaf of params lives in: how to move in it, and how to leave constraints out.

A model declares one `Space` per leaf (`Model.spaces`). A space acts on the trailing axes of its
leaf, so that any leading axes (components, lanes) may precede them.
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

KEEP = 0.2
"""An extrapolated coordinate keeps this part of what a plain step gives: EM on probabilities is
multiplicative, so one that is set to 0 never returns."""


TRACE = 1e-6
"""The least share that still counts in a metric."""

OFF = 1e-3
"""How far from 1 the sum of given shares may be."""

SMALL = 1e-3
"""The part of its natural size below which a number is next to 0, and its gain too small to see."""


class Space:
    """All real numbers.

    chart/leaf: coordinates in which straight lines are followed, and back. guard: coordinates that
    are legal, from a proposal and from legal ones. free/bound: coordinates without any constraint,
    and back. metric: the information that a unit of weight holds on every entry, in the
    coordinates of the chart, more or less. margin: how far every entry is from 0 or another bound
    at which EM stands still, as a part of its natural size; None: there is no such bound.
    """

    def chart(self, leaf):
        return leaf

    def leaf(self, chart):
        return chart

    def guard(self, proposal, legal):
        return proposal

    def free(self, leaf):
        return leaf

    def bound(self, free):
        return free

    def metric(self, leaf):
        return jnp.ones_like(leaf)

    def margin(self, leaf):
        return None

    def outside(self, leaf) -> str | None:
        """What is wrong with a NumPy array that does not lie in the space, for a message."""
        return None


@dataclass(frozen=True)
class Positive(Space):
    """Numbers above 0, or within a range; zero: 0 itself is one of them."""

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

    def guard(self, proposal, legal):
        return jnp.clip(proposal, jnp.maximum(KEEP * legal, self.least), self.most)

    def free(self, leaf):
        return jnp.log(leaf)

    def bound(self, free):
        return jnp.clip(jnp.exp(free), self.least, self.most)

    def metric(self, leaf):
        return 1 / jnp.square(leaf)

    def margin(self, leaf):
        if self.least > 0 or leaf.ndim == 0:
            return None
        largest = leaf.max(0)  # of all components
        return leaf / jnp.where(largest > 0, largest, 1)


class UnitInterval(Space):
    """Numbers between 0 and 1."""

    def outside(self, leaf):
        inside = (leaf >= 0) & (leaf <= 1)
        return None if np.all(inside) else f"must be between 0 and 1, got {leaf[~inside][0]:g}"

    def guard(self, proposal, legal):
        proposal = jnp.maximum(proposal, KEEP * legal)
        return 1 - jnp.maximum(1 - proposal, KEEP * (1 - legal))

    def free(self, leaf):
        return jnp.log(leaf) - jnp.log1p(-leaf)

    def bound(self, free):
        return jax.nn.sigmoid(free)

    def metric(self, leaf):
        return 1 / jnp.maximum(leaf * (1 - leaf), TRACE)

    def margin(self, leaf):
        return 2 * jnp.minimum(leaf, 1 - leaf)


class Simplex(Space):
    """Shares along the last axis: of 0 or more, with the sum 1. A share of 0 stays 0."""

    def outside(self, leaf):
        if np.all(leaf >= 0) and np.all(abs(leaf.sum(-1) - 1) <= OFF):
            return None
        return f"must be 0 or more and sum to 1, got {leaf}: divide by their sum"

    def guard(self, proposal, legal):
        return _shares(jnp.maximum(proposal, KEEP * legal))

    def free(self, leaf):
        return jnp.log(leaf)

    def bound(self, free):
        return jax.nn.softmax(free, axis=-1)

    def metric(self, leaf):
        return 1 / jnp.maximum(leaf, TRACE)

    def margin(self, leaf):
        return leaf / leaf.max(-1, keepdims=True)


class PositiveDefinite(Space):
    """Symmetric positive definite matrices in the last two axes, by their Cholesky factor."""

    def outside(self, leaf):
        with jax.ensure_compile_time_eval():  # params are known, even where a caller is traced
            factor = np.asarray(lower_factor(jnp.asarray(leaf)))
        if np.all(np.isfinite(factor)):
            return None
        return "is not positive definite: give a covariance, not its square root or inverse"

    def chart(self, leaf):
        return lower_factor(leaf)

    def leaf(self, chart):
        return jnp.matmul(chart, jnp.swapaxes(chart, -1, -2), precision=Precision.HIGHEST)

    def guard(self, proposal, legal):
        diagonal = jnp.eye(legal.shape[-1], dtype=bool)
        return jnp.where(diagonal, jnp.maximum(proposal, KEEP * legal), proposal)

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


REAL, POSITIVE, UNIT = Space(), Positive(), UnitInterval()
ABOVE_ZERO = Positive(zero=False)
SIMPLEX, POSITIVE_DEFINITE = Simplex(), PositiveDefinite()


def return_time(spaces, params, proposal):
    """How many steps such as this one bring a number that grows from next to 0 back to size.

    EM multiplies probabilities and rates: one that is nearly 0, but should not be, grows by a
    constant factor, at first with no gain to be seen. Infinite where none grows; None where the
    spaces have no such bound.
    """
    times = []
    for space, before, after in zip(*map(jax.tree.leaves, (spaces, params, proposal)), strict=True):
        margin = space.margin(before)
        if margin is None:
            continue
        grown = space.margin(after)
        growing = (margin > 0) & (margin < SMALL) & (grown > margin)
        rate = jnp.log(jnp.where(growing, grown / margin, jnp.e))
        way = jnp.log(jnp.where(growing, SMALL / margin, 1))
        times.append(jnp.min(jnp.where(growing, jnp.maximum(way, 1) / rate, jnp.inf)))
    return functools.reduce(jnp.minimum, times) if times else None


class Coordinates:
    """Params as one vector without constraints, and the way back."""

    def __init__(self, spaces, params):
        self.spaces = spaces
        free = jax.tree.map(lambda space, leaf: space.free(leaf), spaces, params)
        self.origin, self._unravel = ravel_pytree(free)

    def params(self, vector):
        """The params at a vector."""
        return jax.tree.map(
            lambda space, leaf: space.bound(leaf), self.spaces, self._unravel(vector)
        )


def _shares(leaf):
    return leaf / leaf.sum(-1, keepdims=True)
