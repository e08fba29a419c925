"""The precision of a call: float64 for host data whose digits float32 cannot hold.

Time stamps and map coordinates have a large offset and a small spread. Cast to float32 they lose
the digits that matter, and so do params in their units. Such data are fitted in float64, whether or
not JAX has x64 on; all other data in JAX's default float.
"""

import contextlib
import functools

import jax
import numpy as np

from jaxem.numerics import tuning
from jaxem.numerics.tree import is_on_host, is_traced
from jaxem.protocol.domains import whole
from jaxem.protocol.status import warn

FLOAT32_EPS = float(np.finfo(np.float32).eps)
KEPT = 1e-3
"""The largest rounding error of a cast to float32, as a part of the spread of a column. It adds
1e-7 of a column's variance."""

TOLERATED = 1e-2
"""The largest rounding error of float32 data without a warning, as a part of the spread."""


@contextlib.contextmanager
def float64():
    """A context with x64 on, for this thread; on a TPU also with the host as the device."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        if tuning.platform() == "tpu":
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        yield


def on_host(tree):
    """The tree with NumPy arrays, which keep 64 bits where x64 is off."""
    return jax.tree.map(np.asarray, tree)


def needs_float64(data, is_batch: bool = False) -> bool:
    """Whether x64 is off and the cast of 64-bit host data to float32 loses digits that matter.

    data: an array-like (n, ...), or a tree of them; if `is_batch` a list of such data, or an array
    (b, n, ...) or a tree of such arrays.
    """
    if jax.config.jax_enable_x64:
        return False
    if is_batch and isinstance(data, (list, tuple)) and not hasattr(data, "_fields"):
        return any(needs_float64(dataset) for dataset in data)
    if jax.tree_util.all_leaves([data]) or isinstance(data, list):
        return len(_lost(data, is_batch)) > 0
    leaves = jax.tree.leaves(data, is_leaf=lambda node: isinstance(node, list))
    return any(len(_lost(leaf, is_batch)) > 0 for leaf in leaves if not _is_integer(leaf))


def is_beyond_float32(tree) -> bool:
    """Whether x64 is off and a tree holds arrays in float64, as results of `needs_float64` do."""
    if jax.config.jax_enable_x64:
        return False
    return any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(tree))


def in_own_precision(method):
    """A method of a result, in float64 where its params are: see `is_beyond_float32`. Its products
    are those of a fit."""

    @functools.wraps(method)
    def computed(self, *args, **kwargs):
        with tuning.full_products():
            if not is_beyond_float32(self.params):
                return method(self, *args, **kwargs)
            with float64():
                return on_host(method(self, *args, **kwargs))

    return computed


def _is_integer(leaf) -> bool:
    """Whether a leaf of a tree is an array of integers, which are not cast to floating point."""
    return getattr(getattr(leaf, "dtype", None), "kind", "") in "iub"


def _lost(leaf, is_batch):
    """The columns of a host array in 64 bits that lose digits in float32."""
    if leaf is None or isinstance(leaf, (str, bytes, jax.Array)) or is_traced(leaf):
        return ()
    try:
        array = np.asarray(leaf)
    except (ValueError, TypeError):
        return ()  # the check of the data says what is wrong
    if array.dtype.kind not in "iuf" or array.dtype.itemsize < 8:
        return ()
    if is_batch and array.ndim > 1 and array.size:
        ends = array[:, [0, -1]].swapaxes(0, 1)
        suspects = _suspect(ends).reshape(len(array), -1).any(axis=-1)
        return [i for i in np.flatnonzero(suspects) if len(lost_columns(array[i], KEPT))]
    if array.ndim == 0 or not array.size or not _suspect(array[[0, -1]]).any():
        return ()
    return lost_columns(array, KEPT)


def _suspect(ends):
    """Whether the first and the last row, ends (2, ...), leave it open that digits are lost: cheap,
    for batches of many data sets."""
    first, last = ends.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        reach = np.maximum(abs(first), abs(last))
        return ~(FLOAT32_EPS * reach <= 0.1 * KEPT * abs(last - first))


def lost_columns(array, part: float):
    """The columns (flat indices) of an array (n, ...) in which rounding to float32 is more than
    `part` of the spread.

    From at most `SAMPLED_UNITS` rows, evenly spaced. The offset of a column is its median, the
    spread its interquartile range over that of a normal of variance 1, so that single outliers
    change neither.
    """
    n = array.shape[0]
    rows = np.unique(np.linspace(0, n - 1, min(n, tuning.SAMPLED_UNITS)).astype(int))
    sample = array[rows].reshape(len(rows), -1)
    values = sample.astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return np.zeros(0, int)
    low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
    spread = (high - low) / 1.349
    spread = np.where(spread > 0, spread, abs(values - middle).mean(axis=0))
    return np.flatnonzero((FLOAT32_EPS * abs(middle) > part * spread) & (spread > 0))


def warn_of_lost_digits(x) -> None:
    """A warning that names the columns of concrete float32 arrays that have lost digits before they
    came here, such as time stamps on a device."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if is_traced(leaf) or leaf.dtype != np.float32 or not leaf.size:
            continue
        n = leaf.shape[0]
        rows = slice(0, None, max(1, n // tuning.SAMPLED_UNITS))
        sample = np.asarray(leaf[rows])
        if not _suspect(sample[[0, -1]]).any():
            continue
        if sample.ndim > 2 or _are_small_integers(sample):
            continue
        columns = lost_columns(sample, TOLERATED)
        if len(columns):
            _warn_of_columns("data" + jax.tree_util.keystr(path), columns, 5)


def warn_of_lost_digits_in_batch(blocks) -> None:
    """One warning that names the first data set and its columns in which float32 arrays have lost
    digits before they came here. blocks: of a batch; the ends of all data sets are looked at, and
    of those that leave it open at most `EXAMINED`, evenly spaced."""
    for block in blocks:
        sets, last = np.arange(len(block.index)), np.maximum(block.sizes - 1, 0)
        for _, leaf in jax.tree_util.tree_leaves_with_path(block.x):
            if is_traced(leaf) or leaf.dtype != np.float32 or not leaf.size or leaf.ndim > 3:
                continue
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                continue  # no process has all of it
            ends = _rows(leaf, sets, np.stack([np.zeros_like(last), last]))
            suspects = np.flatnonzero(_suspect(ends).reshape(len(block.index), -1).any(axis=-1))
            if len(suspects) > FEW_SUSPECTS:
                suspects = suspects[_still_suspect(leaf, suspects, block.sizes)]
            suspects = suspects[:: max(1, len(suspects) // EXAMINED)]
            for i, sample in zip(suspects, _samples(leaf, suspects, block.sizes), strict=True):
                if _are_small_integers(sample):
                    continue
                columns = lost_columns(sample, TOLERATED)
                if len(columns):
                    _warn_of_columns(f"Batch data[{block.index[i]}]", columns, 6)
                    return


EXAMINED = 256
"""Data sets of a batch whose rows are looked at for lost digits."""


FEW_SUSPECTS, QUICK_ROWS = 8, 32
"""Up to FEW_SUSPECTS data sets are examined at once. Of more, QUICK_ROWS rows are looked at before
(65,536 data sets of 500 × 2: 96 examinations took 45 ms)."""


def _still_suspect(leaf, chosen, sizes):
    """Whether QUICK_ROWS rows of each chosen data set leave it open that digits are lost: a spread
    20 times the least one is none."""
    place = (np.arange(QUICK_ROWS) * sizes[chosen][:, None]) // QUICK_ROWS
    rows = np.sort(_rows(leaf, chosen[:, None], place), axis=1).astype(np.float64)
    low, middle, high = (rows[:, QUICK_ROWS * part // 4] for part in (1, 2, 3))
    with np.errstate(invalid="ignore"):
        is_sound = 20 * FLOAT32_EPS * abs(middle) <= TOLERATED * (high - low)
    return ~is_sound.reshape(len(chosen), -1).all(axis=1)


def _samples(leaf, chosen, sizes):
    """At most SAMPLED_UNITS rows of each chosen data set of an array (b, n, ...), evenly spaced; of
    an array on an accelerator in one transfer."""
    if is_on_host(leaf):
        for i in chosen:
            yield np.asarray(leaf)[i, : sizes[i] : max(1, sizes[i] // tuning.SAMPLED_UNITS)]
        return
    if len(chosen):
        wide = max(1, leaf.size // (leaf.shape[0] * leaf.shape[1]) * len(chosen))
        rows = min(leaf.shape[1], tuning.SAMPLED_UNITS, max(64, SAMPLED_NUMBERS // wide))
        place = (np.arange(rows) * sizes[chosen][:, None]) // rows
        yield from _rows(leaf, chosen[:, None], place)


SAMPLED_NUMBERS = 2**24
"""The most numbers, roughly, of such a transfer."""


def _rows(leaf, sets, place):
    """leaf[sets, place] by NumPy, of an array (b, n, ...) on an accelerator in one transfer."""
    if is_on_host(leaf):
        return np.asarray(leaf)[sets, place]
    return np.asarray(_gathered(leaf, sets, place))


@jax.jit
def _gathered(leaf, sets, place):
    return leaf.at[sets, place].get(mode="promise_in_bounds")


def _warn_of_columns(name: str, columns, stacklevel: int) -> None:
    names = ", ".join(map(str, columns[:5])) + ", ..." * (len(columns) > 5)
    warn(
        f"{name} are float32 and their offset is so large that column {names} (counted from 0) has "
        "lost digits: subtract the offset before the cast, or pass float64 NumPy data",
        stacklevel=stacklevel,
    )


def _are_small_integers(sample) -> bool:
    """Whether float32 holds all values exactly because they are integers below 2²⁴."""
    return bool(np.all(whole(sample) & (abs(sample) < 2**24)))
