"""What is held of one leaf of params: entries that are fixed, and entries that are equal."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Held(NamedTuple):
    """What is held of one leaf, as NumPy arrays of its shape.

    fixed: which entries stay what they are. group: the first of the entries that each equals, as a
    flat index, itself where it is free.
    """

    fixed: np.ndarray
    group: np.ndarray

    @property
    def tied(self) -> bool:
        """Whether any entries are equal."""
        return bool((self.group.ravel() != np.arange(self.group.size)).any())

    @property
    def free(self) -> bool:
        """Whether nothing is held."""
        return not (self.fixed.any() or self.tied)

    @property
    def leaders(self):
        """The first of the rows that each row equals as a whole, itself where it equals none."""
        group = self.group.reshape(len(self.group), -1)
        return group[:, 0] // group.shape[1]

    @property
    def rows(self):
        """(fixed (k,), group (k,)) where every row is fixed, tied or free as a whole, else None."""
        if not self.fixed.ndim:
            return None
        fixed = self.fixed.reshape(len(self.fixed), -1)
        group = self.group.reshape(fixed.shape)
        width = fixed.shape[1]
        leader = group[:, 0] // width
        whole = (fixed == fixed[:, :1]).all()
        whole &= (group == leader[:, None] * width + np.arange(width)).all()
        return (fixed[:, 0], leader) if whole else None


def is_held(node) -> bool:
    return isinstance(node, Held)


def averaged(group, values):
    """values (p, ...) in which the entries of one group are their mean; group (p,), static."""
    labels, which, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(labels) == len(group):
        return values
    order = np.argsort(which, kind="stable")
    place = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    members = np.zeros((len(labels), size.max()), int)
    members[which[order], place] = order
    there = np.arange(size.max()) < size[:, None]
    shape = (*there.shape, *(1,) * (values.ndim - 1))
    some = jnp.where(there.reshape(shape), values[members], 0)
    mean = some.sum(1) / size.astype(values.dtype).reshape(-1, *shape[2:])
    return mean[which]
