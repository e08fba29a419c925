"""Frozen dataclasses that are pytrees, and the split of a model into arrays and structure."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def pytree(cls=None, *, static: tuple[str, ...] = (), eq: bool = True):
    """Makes `cls` a frozen dataclass and a pytree; the fields named in `static` are structure."""
    if cls is None:
        return lambda c: pytree(c, static=static, eq=eq)
    cls = dataclasses.dataclass(frozen=True, eq=eq)(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    register(cls, tuple(n for n in names if n not in static), tuple(static))
    CONSTRUCTORS[cls] = lambda value: {name: getattr(value, name) for name in names}
    return cls


CONSTRUCTORS = {}
"""For every registered class the arguments that make an object of it anew."""


def arguments(value):
    """The arguments of the constructor of a registered class, by name; None for other classes."""
    known = CONSTRUCTORS.get(type(value))
    return None if known is None else known(value)


def register(cls, data, static):
    """Registers `cls` by hand: trees of two types that went through `register_dataclass` compare
    equal when their fields do (jaxlib 0.10.2), and `jit` then answers for one with the other."""
    keys = tuple(jax.tree_util.GetAttrKey(n) for n in data)

    def flatten(obj):
        held = obj.__dict__
        return tuple(held[n] for n in data), tuple(held[n] for n in static)

    def flatten_with_keys(obj):
        leaves, structure = flatten(obj)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure, leaves):
        obj = object.__new__(cls)
        obj.__dict__.update(zip(data, leaves, strict=True))
        obj.__dict__.update(zip(static, structure, strict=True))
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


class Structure(NamedTuple):
    """The hashable half of a split object: its tree and every leaf that is not a number."""

    treedef: Any
    others: tuple  # one entry per leaf: None where a number stood, (leaf,) where something else did
    types: int  # the hash of the tree, which sees the types of dataclasses where its == does not


def is_number(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, numbers.Number))


def split(obj) -> tuple[list, Structure]:
    """Parts `obj` into its numeric leaves, to be traced, and its structure, to be compiled for.

    A user's model that is no pytree is one leaf and travels whole in the structure, so any hashable
    object will do; a registered one has its hyperparameters traced and never recompiles for them.
    """
    leaves, treedef = jax.tree.flatten(obj)
    numeric = [leaf for leaf in leaves if is_number(leaf)]
    others = tuple(None if is_number(x) else (x,) for x in leaves)
    return numeric, Structure(treedef, others, hash(treedef))


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
        shape = condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jax.tree.map(pick, on_true, on_false)


def float_dtype(x):
    """The dtype to compute in: the widest float among the leaves, else JAX's default."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def in_dtype(leaf, dtype):
    """A hyperparameter in the precision of the data."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf
