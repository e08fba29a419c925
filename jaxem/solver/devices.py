"""Many devices: the fits of a call are spread over them, a queue of lanes on each."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, have_unit_axes
from jaxem.solver import parts, threads


class Spread(NamedTuple):
    """How the fits of a call are spread: over the axes `axes` of a mesh. Hashable.

    batched: whether data sets are spread, else the restarts of one data set, which is copied.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    batched: bool

    @property
    def of_sets(self):
        """The `PartitionSpec` of arrays with a leading axis of data sets."""
        return P(self.axes) if self.batched else P()

    @property
    def of_fits(self):
        """The `PartitionSpec` of arrays with leading axes of data sets and of restarts."""
        return P(self.axes) if self.batched else P(None, self.axes)

    def mapped(self, function, in_specs, out_specs):
        """`function` of the part of every device."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def placed(self, tree, is_spread: bool):
        """A tree on the devices, its leading axis spread or every leaf copied. The leading axis is
        filled up to a multiple of the devices with its last entry."""
        count = int(np.prod([self.mesh.shape[name] for name in self.axes]))
        sharding = NamedSharding(self.mesh, P(self.axes) if is_spread else P())

        def place(leaf):
            if is_spread and len(leaf) % count:
                leaf = np.concatenate(parts.cut(leaf, count))
            return jax.device_put(leaf, sharding)

        return jax.tree.map(place, tree)


def fetched(tree):
    """A tree of arrays that this process can read: those that lie on devices of other processes are
    copied to all devices."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    away = [leaf.sharding.mesh for leaf in leaves if not leaf.is_fully_addressable]
    if not away:
        return tree
    return _copied_to(NamedSharding(away[0], P()))(tree)


@functools.cache
def _copied_to(sharding):
    """The program that copies a tree to a sharding, compiled once for each shape."""
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def spread(args, batched: bool, size: int, seconds: float) -> Spread | None:
    """How a call is spread over devices; None: it is not. args: (numeric, x, ...), as of `search`.

    Data sets that are sharded stay on their devices. Others, and the restarts of one data set, are
    spread over the mesh of `jax.set_mesh`, or else over all devices of this process, unless the
    data were put on one of them.

    Args:
      size: the number of data sets, or else of restarts.
      seconds: the estimated time of the call on one device.
    """
    x = args[1]
    if is_sharded(x):
        return _as_sharded(_shardings(x)[0], batched, size)
    mesh = None if seconds < tuning.PART_SECONDS else _free_mesh(args)
    if mesh is None or size < mesh.size * tuning.PART_FITS:
        return None
    return Spread(mesh, mesh.axis_names, batched)


def _free_mesh(args) -> Mesh | None:
    """The mesh of `jax.set_mesh`, or else of all devices of this process; None for one device,
    where an array was put on a device, and in one of several threads, whose sums over devices could
    wait for each other."""
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    if any(leaf.committed for leaf in arrays) or jax.config.jax_default_device is not None:
        return None
    if threads.is_inside():
        return None
    mesh = threads.current_mesh()
    if mesh is None or mesh.empty:
        mesh = Mesh(np.array(jax.local_devices()), ("all",))
    return None if mesh.size == 1 else mesh


def on_default_device(args) -> bool:
    """Whether no array was put on another device than the default one."""
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    devices = [leaf.sharding.device_set for leaf in arrays if leaf.committed]
    return all(found == {jax.local_devices()[0]} for found in devices)


def with_sharded_units(args, numbers: int):
    """(x, weights) of one data set with its units sharded over all devices, where they are many and
    on none of them; else as given. Units of weight 0 fill up the last device.

    args: (numeric, x, weights, ...), as of `search`. numbers: units × features × components.
    """
    x, weights = args[1:3]
    mesh = None if numbers < tuning.CHUNKED or is_sharded(x) else _free_mesh(args)
    if mesh is None or numbers < tuning.CHUNKED * mesh.size or not all(have_unit_axes(x)):
        return x, weights
    n = jax.tree.leaves(x)[0].shape[0]
    missing = -n % mesh.size
    if missing:
        weights = np.ones(n, float_dtype(x)) if weights is None else np.asarray(weights)
        weights = np.pad(weights, (0, missing))
        x = jax.tree.map(lambda a: np.concatenate([a, *[a[-1:]] * missing]), x)
    spread_units = Spread(mesh, mesh.axis_names, True)
    return spread_units.placed((x, weights), True)


def shards(x):
    """(the mesh with Auto axes, the axes) over which the units of one data set are sharded; None
    where they are not."""
    if not is_sharded(x) or not isinstance(_shardings(x)[0], NamedSharding):
        return None
    mesh, axes = _leading(_shardings(x)[0])
    return (mesh, axes) if axes else None


def is_sharded(x) -> bool:
    """Whether an array of a tree lies on several devices."""
    return len(_shardings(x)) > 0


def _shardings(x) -> list:
    """The shardings of the arrays of a tree that lie on several devices."""
    arrays = [leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, jax.Array)]
    return [leaf.sharding for leaf in arrays if len(leaf.sharding.device_set) > 1]


def _as_sharded(sharding: Any, batched: bool, size: int) -> Spread | None:
    """The spread over the axes of a mesh along which data sets are sharded, or over all axes."""
    if not isinstance(sharding, NamedSharding):
        return None
    mesh, axes = _leading(sharding)
    if not batched and (axes or size < mesh.size):  # of units, or of few restarts
        return None
    return Spread(mesh, axes or mesh.axis_names, batched)


def _leading(sharding: NamedSharding):
    """(its mesh with axes of type Auto, the names of those along which the leading axis is
    sharded)."""
    names = sharding.spec[0] if len(sharding.spec) else None
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    return mesh, (names,) if isinstance(names, str) else tuple(names or ())
