"""Units of data that may be sharded over devices: sums over them, and units picked from them.

A loop over chunks of sharded units, or an index into them, would copy all data to every device. So
each device sums over its own units, and picks its own.
"""

import contextlib
import contextvars
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxem.numerics import tuning
from jaxem.numerics.tree import have_unit_axes

_shards = contextvars.ContextVar("shards", default=None)


@contextlib.contextmanager
def sharded(shards):
    """A context in which units are sharded. shards: (a mesh with Auto axes, the names of those over
    which units are sharded), or None."""
    token = _shards.set(shards)
    try:
        yield
    finally:
        _shards.reset(token)


def are_sharded() -> bool:
    """Whether units are sharded over devices."""
    return _shards.get() is not None


def summed(function, params, x, weights, axis=0):
    """`function(params, x, weights)`, a tree of sums over units, where units are sharded: of the
    units of every device, and then added, all leaves at once.

    axis: the axis of units of every leaf of x; leaves that all units share have none.
    """
    mesh, axes = _shards.get()
    leaves, structure = jax.tree.flatten(x)
    has_units = have_unit_axes(x) if axis == 0 else [True] * len(leaves)
    specs = [
        P(*[None] * (axis % leaf.ndim), axes) if has else P()
        for leaf, has in zip(leaves, has_units, strict=True)
    ]
    specs = jax.tree.unflatten(structure, specs)

    def of_device(params, x, weights):
        with sharded(None):
            leaves, structure = jax.tree.flatten(function(params, x, weights))
        flat = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
        flat = jax.lax.psum(flat, axes)
        ends = np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1]
        parts = zip(jnp.split(flat, ends), leaves, strict=True)
        leaves = [part.reshape(jnp.shape(leaf)).astype(leaf.dtype) for part, leaf in parts]
        return jax.tree.unflatten(structure, leaves)

    of_devices = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(), specs, P(axes)), out_specs=P(), check_vma=False
    )
    return of_devices(params, x, weights)


def spaced(x, stride: int):
    """The units 0, stride, 2 · stride, …"""
    n = x.shape[0]
    at = np.arange(0, n, stride)
    if are_sharded():
        return _picked(x, at)
    if n > tuning.SURVEY_ROWS:  # a TPU has no room for slices with large strides
        return x.at[at].get(mode="promise_in_bounds")
    return x[::stride]


def _picked(x, at):
    """The units at these indices, of units that are sharded."""
    mesh, axes = _shards.get()

    def of_device(x):
        n = x.shape[0]
        local = at - jax.lax.axis_index(axes) * n
        is_here = ((local >= 0) & (local < n)).reshape(-1, *(1,) * (x.ndim - 1))
        return jax.lax.psum(jnp.where(is_here, x[jnp.clip(local, 0, n - 1)], 0), axes)

    return jax.shard_map(of_device, mesh=mesh, in_specs=P(axes), out_specs=P(), check_vma=False)(x)


def unit(x, index):
    """The unit at an index."""
    if not are_sharded():
        return x[index]
    picked = (jnp.arange(x.shape[0]) == index).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(picked, x, 0).sum(0, dtype=x.dtype)


def first(mask):
    """The index of the first True; 0 if there is none."""
    if not are_sharded():
        return jnp.argmax(mask)
    n = mask.shape[0]
    return jnp.where(mask, jnp.arange(n), n).min() % n


def drawn(mass, uniform):
    """The index of a unit, drawn with probability ∝ mass (n,) by a number in [0, 1)."""
    n = mass.shape[0]
    if not are_sharded():
        cumulative = jnp.cumsum(mass)
        return jnp.minimum(jnp.sum(cumulative <= uniform * cumulative[-1]), n - 1)
    mesh, axes = _shards.get()
    shards = jnp.arange(math.prod(mesh.shape[name] for name in axes))

    def of_device(mass, uniform):
        cumulative, place = jnp.cumsum(mass), jax.lax.axis_index(axes)
        totals = jax.lax.psum(jnp.where(shards == place, cumulative[-1], 0), axes)
        cumulative = cumulative + jnp.where(shards < place, totals, 0).sum()
        return jax.lax.psum(jnp.sum(cumulative <= uniform * totals.sum()), axes)

    count = jax.shard_map(
        of_device, mesh=mesh, in_specs=(P(axes), P()), out_specs=P(), check_vma=False
    )
    return jnp.minimum(count(mass, uniform), n - 1)
