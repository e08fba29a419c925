"""A call in parts that run at the same time, one on each core of a CPU.

XLA runs the loop of a fleet on one core of a CPU. The fits of a call are independent: those of
different data sets, or of different restarts of one data set. So they are cut into parts of equal
shape, which share one program, and every part runs in a thread of its own.
"""

import jax
import numpy as np

from jaxem.numerics import tuning
from jaxem.solver import threads


def number_of_parts(fits: int, seconds: float) -> int:
    """The parts of a call of `fits` fits that is estimated to take so many seconds on one core."""
    if tuning.platform() != "cpu" or seconds < tuning.PART_SECONDS or threads.is_inside():
        return 1
    return max(1, min(threads.cores(), fits // tuning.PART_FITS))


def are_ours(*objects) -> bool:
    """Whether models and methods are of jaxem's own classes alone, whose steps do not call LAPACK.

    On a CPU batched LAPACK calls of two threads may wait for each other for ever (`triangular`).
    """
    return all(_is_ours(one) for one in objects)


def _is_ours(one) -> bool:
    if one is None or isinstance(one, (bool, int, float, str, np.ndarray, np.generic, jax.Array)):
        return True
    if isinstance(one, (tuple, list)):
        return all(map(_is_ours, one))
    if isinstance(one, dict):
        return all(map(_is_ours, one.values()))
    module = type(one).__module__
    if not module.startswith("jaxem.") or module in CALLS_LAPACK:
        return False
    return all(map(_is_ours, vars(one).values()))


CALLS_LAPACK = ("jaxem.methods.mean_field", "jaxem.wrappers.adopted")


def size_of_part(size: int, count: int) -> int:
    """The length of each of `count` equal parts of an axis."""
    return -(-size // count)


def cut(tree, count: int) -> list:
    """Trees whose leaves are `count` equal parts of the leading axis, of which the last is filled
    up with its last entry."""
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return [tree] * count
    each = size_of_part(len(leaves[0]), count)

    def part(leaf, i):
        piece = leaf[i * each : (i + 1) * each]
        missing = each - len(piece)
        return np.concatenate([piece, *[leaf[-1:]] * missing]) if missing else piece

    leaves = [np.asarray(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part(a, i) for a in leaves]) for i in range(count)]


def joined(parts: list, size: int):
    """The tree of which `parts` are the results of the parts, on the device."""
    return jax.device_put(jax.tree.map(lambda *a: np.concatenate(a)[:size], *parts))
