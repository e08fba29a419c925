"""Spaces of leaves whose components, columns or rows are joined by a relation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem.protocol.spaces import LEAST_RATIO, Positive, PositiveDefinite, Space

RELATION_OFF = 1e-3
"""How far given covariances may be from obeying a relation, as a part of their values."""


class Contrasts(Space):
    """Coefficients (..., k, m) of k classes relative to the first one, whose row is 0."""

    def outside(self, leaf):
        if not np.any(leaf[..., 0, :]):
            return None
        return "must have a first row of 0: subtract that row from every row"

    def holds(self, leaf):
        return jnp.all(leaf[..., 0, :] == 0)

    def guard(self, proposal, legal):
        return proposal.at[..., 0, :].set(0)

    def bound(self, free):
        return free.at[..., 0, :].set(0)

    def constant(self, shape):
        return np.broadcast_to(np.arange(shape[-2])[:, None] == 0, shape)


@dataclass(frozen=True)
class SharedColumns(Space):
    """Real numbers (k, m), of which these columns are equal in all rows."""

    columns: tuple[int, ...]

    def _own(self, width):
        return [j for j in range(width) if j not in self.columns]

    def guard(self, proposal, legal):
        """The first row has the common entries: equal ones may differ by rounding elsewhere."""
        is_shared = np.isin(np.arange(proposal.shape[-1]), self.columns)
        return jnp.where(is_shared, proposal[..., :1, :], proposal)

    def free(self, leaf):
        """(the entries of the other columns (k, m − q), the common ones (q,))."""
        return leaf[..., self._own(leaf.shape[-1])], leaf[..., 0, list(self.columns)]

    def bound(self, free):
        own, common = free
        common = jnp.broadcast_to(common[..., None, :], (*own.shape[:-1], common.shape[-1]))
        order = np.argsort([*self._own(own.shape[-1] + common.shape[-1]), *self.columns])
        return jnp.concatenate([own, common], axis=-1)[..., order]

    def outside(self, leaf):
        common = leaf[..., list(self.columns)]
        if np.all(common == common[..., :1, :]):
            return None
        return f"must have equal entries in column {self.columns[0]} for all components"

    def holds(self, leaf):
        common = leaf[..., list(self.columns)]
        return jnp.all(common == common[..., :1, :])

    def groups(self, shape):
        place = np.arange(math.prod(shape)).reshape(shape)
        place[..., list(self.columns)] = place[..., :1, list(self.columns)]
        return place


class Loadings(Space):
    """Real matrices (d, q) in the last two axes that matter up to a rotation of their columns."""

    def redundant(self, shape):
        return shape[-1] * (shape[-1] - 1) // 2


@dataclass(frozen=True)
class Relation:
    """What relates the components of a leaf, beside the space of each of them.

    nearest(leaf): a leaf that obeys the relation, near one that may not; a leaf that does comes
    back up to rounding errors. deviation(leaf, xp): by how much it is not obeyed, as a part of the
    values, of a leaf with any leading axes; xp is NumPy or `jax.numpy`. count(shape): the number of
    free parameters. words: for a message.
    """

    nearest: Callable
    deviation: Callable
    count: Callable
    words: str


class Related(Space):
    """A space with a `relation`. Coordinates are those of the space of one component, more than are
    free: params at any of them are the nearest that obey the relation."""

    def freedom(self, shape):
        return self.relation.count(shape)

    def outside(self, leaf):
        wrong = super().outside(leaf)
        if wrong is None and not np.all(self.relation.deviation(leaf, np) <= RELATION_OFF):
            wrong = f"is not {self.relation.words}: start from such covariances, or from labels"
        return wrong

    def holds(self, leaf):
        return super().holds(leaf) & jnp.all(self.relation.deviation(leaf, jnp) <= RELATION_OFF)


@dataclass(frozen=True)
class RelatedVariances(Related, Positive):
    """Numbers above 0 that a relation joins, by their logarithms."""

    zero: bool = False
    relation: Any = None

    def chart(self, leaf):
        return jnp.log(leaf)

    def leaf(self, chart):
        return self.relation.nearest(jnp.exp(chart))

    def guard(self, proposal, legal):
        return jnp.maximum(proposal, legal + math.log(LEAST_RATIO))

    def bound(self, free):
        return self.leaf(free)

    def metric(self, leaf):
        return jnp.ones_like(leaf)

    def margin(self, leaf):
        return None


@dataclass(frozen=True)
class RelatedMatrices(Related, PositiveDefinite):
    """Positive definite matrices that a relation joins, by their Cholesky factors."""

    relation: Any

    def leaf(self, chart):
        return self.relation.nearest(super().leaf(chart))


CONTRASTS, LOADINGS = Contrasts(), Loadings()
