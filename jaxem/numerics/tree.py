"""Frozen dataclasses that are pytrees, and the split of a model into arrays and structure."""

import dataclasses
import enum
import functools
import numbers
import operator
import types
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
"""For every registered class, a function from an object to the arguments of its constructor."""


def arguments(value):
    """The arguments of the constructor of a registered class, by name; None for other classes."""
    known = CONSTRUCTORS.get(type(value))
    return None if known is None else known(value)


def register(cls, data, static, keys=()):
    """Registers `cls` as a pytree, with the fields `data` as leaves and `static` as structure.
    keys: from some of `data` to their keys in paths, where these are not the names.

    `register_dataclass` is not used: with it, trees of two types with equal fields are equal
    (jaxlib 0.10.2), and `jit` then calls the program of the one for the other.
    """
    keys = tuple(dict(keys).get(n, jax.tree_util.GetAttrKey(n)) for n in data)
    of_data, of_static = map(_getter, (data, static))

    def flatten(obj):
        values = obj.__dict__
        return of_data(values), of_static(values)

    def flatten_with_keys(obj):
        leaves, structure = flatten(obj)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure, leaves):
        obj = object.__new__(cls)
        obj.__dict__.update(zip(data, leaves, strict=True))
        if static:
            obj.__dict__.update(zip(static, structure, strict=True))
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _getter(names):
    """A function from a dict to the tuple of its values of these names."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


class Structure(NamedTuple):
    """The hashable part of a split object: its tree and all leaves that are not numbers."""

    treedef: Any
    others: tuple
    """One entry for each leaf: None for a number, `Node` for a user's pytree, `Parts` for an object
    that is split by its fields, else (leaf,)."""
    types: int
    """The hash of the tree, which depends on the types of dataclasses; its == does not."""


class Parts(NamedTuple):
    """An object that is no pytree, split by its fields: its class, their names, the structure of
    their values, and the number of arrays in them (size)."""

    cls: type
    names: tuple[str, ...]
    fields: Structure
    size: int


class Node(NamedTuple):
    """A pytree of a user's class: its tree with the hash of it, the structure of its leaves, and
    the number of those that are traced (size)."""

    treedef: Any
    types: int
    leaves: Structure
    size: int


class ByIdentity:
    """A value that cannot be hashed. It is equal only to itself."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, ByIdentity) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def is_number(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, numbers.Number))


def is_array(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def is_real(leaf) -> bool:
    """Whether a leaf is an array or a real number; an int may be a size."""
    return is_array(leaf) or isinstance(leaf, (float, np.floating))


def split(obj, is_data=is_number) -> tuple[list, Structure]:
    """Splits `obj` into its numeric leaves, which are traced, and its structure, which is static.

    The hyperparameters of a pytree are traced, so that another value needs no compilation; of a
    user's pytree its arrays and floats. An object of another class is split by its fields: arrays
    among them are traced, all else is structure. So equal objects have equal structures, and a
    changed object has another one.

    is_data: whether a leaf is traced.
    """
    leaves, treedef = jax.tree.flatten(obj, is_leaf=_is_users_pytree)
    numeric, others = [], []
    for leaf in leaves:
        if is_data(leaf):
            numeric.append(leaf)
            others.append(None)
        elif _is_users_pytree(leaf):
            inner, users = jax.tree.flatten(leaf)
            values, fields = split(inner, is_real)
            numeric += values
            others.append(Node(users, hash(users), fields, len(values)))
        elif has_fields(leaf):
            names = tuple(sorted(vars(leaf)))
            arrays, fields = split([vars(leaf)[name] for name in names], is_array)
            numeric += arrays
            others.append(Parts(type(leaf), names, fields, len(arrays)))
        else:
            others.append((_hashable(leaf),))
    return numeric, Structure(treedef, tuple(others), hash(treedef))


def merge(numeric, structure: Structure):
    """The object of which `split` returned these two parts."""
    numbers_left = iter(numeric)
    leaves = []
    for other in structure.others:
        if other is None:
            leaves.append(next(numbers_left))
        elif isinstance(other, Node):
            values = merge([next(numbers_left) for _ in range(other.size)], other.leaves)
            leaves.append(jax.tree.unflatten(other.treedef, values))
        elif isinstance(other, Parts):
            values = merge([next(numbers_left) for _ in range(other.size)], other.fields)
            instance = object.__new__(other.cls)
            instance.__dict__.update(zip(other.names, values, strict=True))
            leaves.append(instance)
        else:
            leaf = other[0]
            leaves.append(leaf.value if isinstance(leaf, ByIdentity) else leaf)
    return jax.tree.unflatten(structure.treedef, leaves)


def has_fields(leaf) -> bool:
    """Whether an object is split by its fields: it is of a user's class, and not a function, type
    or module. An object that can be called is a function, but for models."""
    if isinstance(leaf, (type, types.ModuleType, enum.Enum, np.dtype)):
        return False
    if callable(leaf) and not hasattr(type(leaf), "init"):
        return False
    return type(leaf).__module__ != "builtins" and hasattr(leaf, "__dict__")


def _is_users_pytree(node) -> bool:
    """Whether a node is of a pytree class that is neither jaxem's nor a container of Python's."""
    cls = type(node)
    return not _is_known(cls) and not is_number(node) and not jax.tree_util.all_leaves((node,))


@functools.lru_cache(maxsize=1024)
def _is_known(cls) -> bool:
    """Whether a class is jaxem's, one of Python's own, or a container."""
    module = cls.__module__
    is_own = module == "builtins" or module.partition(".")[0] == "jaxem"
    return is_own or issubclass(cls, (tuple, list, dict))


def _hashable(leaf):
    try:
        hash(leaf)
    except TypeError:
        return ByIdentity(leaf)
    return leaf


def is_floating(tree) -> bool:
    """Whether all leaves are floating-point numbers, so that steps have lengths."""
    return all(jnp.issubdtype(jnp.result_type(a), jnp.floating) for a in jax.tree.leaves(tree))


def is_traced(*trees) -> bool:
    """Whether any leaf is an abstract value under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def is_on_host(leaf) -> bool:
    """Whether NumPy can read an array without a copy from a device."""
    if isinstance(leaf, np.ndarray):
        return True
    if not isinstance(leaf, jax.Array) or is_traced(leaf) or leaf.is_deleted():
        return False
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def in_jit() -> bool:
    """Whether a jitted function is being traced, where the values at hand may be its constants.
    The transfer of an array is then part of that function, and does nothing elsewhere."""
    return isinstance(jax.device_put(_zero()), jax.core.Tracer)


@functools.cache
def _zero():
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.float32(0))


def select(condition, on_true, on_false):
    """`where` over two trees of one structure. condition: a scalar, or with leading axes of
    leaves."""

    def pick(a, b):
        shape = condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jax.tree.map(pick, on_true, on_false)


class SharedLeaves:
    """A base of trees of which some leaves have no unit axis: all units share them."""

    def over_units(self, function):
        """This tree with `function` applied to every leaf with a unit axis."""
        raise NotImplementedError


def over_units(function, x):
    """Data with `function` applied to every leaf (n, ...) with a unit axis. Leaves that units share
    (`SharedLeaves`) stay as they are."""

    def is_shared(node):
        return isinstance(node, SharedLeaves)

    def applied(node):
        return node.over_units(function) if is_shared(node) else function(node)

    return jax.tree.map(applied, x, is_leaf=is_shared)


def have_unit_axes(x) -> list[bool]:
    """Of every leaf of the data, whether it has a unit axis."""
    return jax.tree.leaves(over_units(lambda _: True, jax.tree.map(lambda _: False, x)))


def float_dtype(x):
    """The dtype to compute in: the widest float among the leaves, else JAX's default."""
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1 and leaves[0].dtype == np.float32:
        return np.dtype(np.float32)
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def in_dtype(leaf, dtype):
    """A hyperparameter in the precision of the data."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf
