"""Frozen dataclasses that are pytrees, and the split of a model into arrays and structure."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax
import numpy as np


def pytree(cls=None, *, static: tuple[str, ...] = (), eq: bool = True):
    """Makes `cls` a frozen dataclass and a pytree; the fields named in `static` are structure."""
    if cls is None:
        return lambda c: pytree(c, static=static, eq=eq)
    cls = dataclasses.dataclass(frozen=True, eq=eq)(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    jax.tree_util.register_dataclass(
        cls, data_fields=[n for n in names if n not in static], meta_fields=list(static)
    )
    return cls


class Structure(NamedTuple):
    """The hashable half of a split object: its tree and every leaf that is not a number."""

    treedef: Any
    others: tuple  # one entry per leaf: None where a number stood, (leaf,) where something else did


def is_number(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, numbers.Number))


def split(obj) -> tuple[list, Structure]:
    """Parts `obj` into its numeric leaves, to be traced, and its structure, to be compiled for.

    A user's model that is no pytree is one leaf and travels whole in the structure, so any hashable
    object will do; a registered one has its hyperparameters traced and never recompiles for them.
    """
    leaves, treedef = jax.tree.flatten(obj)
    numeric = [leaf for leaf in leaves if is_number(leaf)]
    return numeric, Structure(treedef, tuple(None if is_number(x) else (x,) for x in leaves))


def merge(numeric, structure: Structure):
    """Undoes `split`."""
    rest = iter(numeric)
    leaves = [next(rest) if other is None else other[0] for other in structure.others]
    return jax.tree.unflatten(structure.treedef, leaves)


def is_traced(*trees) -> bool:
    """Whether any leaf is an abstract value under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def select(condition, on_true, on_false):
    """`where` over two trees of one structure, the scalar or leading-axis condition broadcast."""

    def pick(a, b):
        shape = condition.shape + (1,) * (jax.numpy.ndim(a) - condition.ndim)
        return jax.numpy.where(condition.reshape(shape), a, b)

    return jax.tree.map(pick, on_true, on_false)
