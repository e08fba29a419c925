"""Meshes of devices with axes of type Explicit: a fit runs on the same devices with axes of type
Auto, since indexing and sorting along a sharded axis are errors where it is Explicit."""

import contextlib

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxem.numerics.tree import is_traced


def explicit_mesh(tree) -> Mesh | None:
    """The mesh with Explicit axes over which an array of a tree is sharded, or which `jax.set_mesh`
    has set; None where there is none.

    Raises TypeError where an array is traced and sharded over an Explicit axis.
    """
    for leaf in jax.tree.leaves(tree):
        if is_traced(leaf):
            _refuse_sharded(leaf)
        elif isinstance(leaf, jax.Array) and _is_explicit(leaf.sharding):
            return leaf.sharding.mesh
    with contextlib.suppress(ValueError):  # raised inside of jit
        mesh = jax.sharding.get_mesh()
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh with axes of type Auto."""
    return Mesh(mesh.devices, mesh.axis_names)


def moved(tree, mesh: Mesh, to: Mesh):
    """A tree whose arrays on one mesh are on another mesh of the same devices; none is copied."""

    def move(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh != mesh:
            return leaf
        return jax.device_put(leaf, NamedSharding(to, sharding.spec))

    return jax.tree.map(move, tree)


def _is_explicit(sharding) -> bool:
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types


def _refuse_sharded(leaf) -> None:
    """TypeError where a traced array is sharded over an Explicit axis, or varies over an axis of
    `jax.shard_map`, which then checks the types of all loops."""
    kind = jax.typeof(leaf)
    if kind.manual_axis_type.varying:
        raise TypeError(
            f"an array of type {kind} varies over axes of jax.shard_map: a fit inside of it needs "
            "jax.shard_map(..., check_vma=False)"
        )
    # Inside of vmap the type does not say whether the mapped axis is sharded.
    is_sharded = any(kind.sharding.spec) or jax.sharding.get_abstract_mesh().empty
    if is_sharded and AxisType.Explicit in kind.sharding.mesh.axis_types:
        raise TypeError(
            f"an array of type {kind} is on a mesh with Explicit axes, and fit is called inside of "
            "a transformation: call fit outside of it, or inside of jax.shard_map, or make the "
            "mesh with axis_types=(jax.sharding.AxisType.Auto,)"
        )
