"""`Held`: the fixed and the tied entries of one leaf of params."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Held(NamedTuple):
    """The fixed and the tied entries of a leaf, as NumPy arrays of its shape.

    fixed: whether an entry keeps its value. group: the flat index of the first entry that an entry
    is tied to; its own index where it is not tied.
    """

    fixed: np.ndarray
    group: np.ndarray

    @property
    def tied(self) -> bool:
        """Whether any entries are tied."""
        return bool((self.group.ravel() != np.arange(self.group.size)).any())

    @property
    def free(self) -> bool:
        """Whether no entry is fixed or tied."""
        return not (self.fixed.any() or self.tied)

    @property
    def leaders(self):
        """For every row the index of the first row that it is tied to as a whole; else its own."""
        group = self.group.reshape(len(self.group), -1)
        return group[:, 0] // group.shape[1]

    @property
    def rows(self):
        """(fixed (k,), group (k,)) where every row is fixed, tied or free as a whole; else None."""
        if not self.fixed.ndim:
            return None
        fixed = self.fixed.reshape(len(self.fixed), -1)
        group = self.group.reshape(fixed.shape)
        width = fixed.shape[1]
        leader = group[:, 0] // width
        by_rows = (fixed == fixed[:, :1]).all()
        by_rows &= (group == leader[:, None] * width + np.arange(width)).all()
        return (fixed[:, 0], leader) if by_rows else None


def is_held(node) -> bool:
    """Whether a node of a tree is a `Held`, for `jax.tree.map`."""
    return isinstance(node, Held)


def averaged(group, values):
    """values (p, ...) with the entries of each group replaced by their mean; group (p,), static."""
    leaders, group_number, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(leaders) == len(group):
        return values
    order = np.argsort(group_number, kind="stable")
    column = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    members = np.zeros((len(leaders), size.max()), int)
    members[group_number[order], column] = order
    is_member = np.arange(size.max()) < size[:, None]
    shape = (*is_member.shape, *(1,) * (values.ndim - 1))
    member_values = jnp.where(is_member.reshape(shape), values[members], 0)
    mean = member_values.sum(1) / size.astype(values.dtype).reshape(-1, *shape[2:])
    return mean[group_number]
