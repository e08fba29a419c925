"""Checks and conversion of arguments: data and weights."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.memory import require_room
from jaxem.numerics import tuning
from jaxem.numerics.tree import have_unit_axes, is_on_host, over_units
from jaxem.protocol.counts import total_range
from jaxem.protocol.status import FitWarning

_warned_about_x64 = False

OF_ANY_LENGTH = (
    "for data sets of different lengths use jaxem.Batch, for series of different lengths "
    "jaxem.Sequences"
)


def as_data(data, name: str = "data"):
    """The data as a tree of arrays with one leading unit axis, and the number of units.

    A bare array-like becomes floating point; in a tree, such as a tuple of arrays (features, y),
    integers stay integers, for models that index by them. name: of the argument, for messages.
    """

    def converted(path, leaf):
        leaf_name = name + jax.tree_util.keystr(path)
        require_room(leaf, leaf_name)
        return as_array(_with_nan(leaf), leaf_name, keep_integers=bool(path))

    if is_tree(data):
        data = jax.tree_util.tree_map_with_path(
            converted, data, is_leaf=lambda node: isinstance(node, list) or _is_sparse(node)
        )
    else:
        data = converted((), data)
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError(f"{name} hold no array: pass an array of shape (n, d)")
    leaves = [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    for leaf_name, leaf in leaves:
        if leaf.ndim == 0:
            raise ValueError(f"{leaf_name} is a single number: pass an array of shape (n, d)")
        if 0 in leaf.shape and not _is_intercept(leaf_name, leaf):
            axis = "unit" if leaf.shape[0] == 0 else "feature"
            raise ValueError(
                f"{leaf_name} is empty, with shape {leaf.shape}: pass at least one {axis}"
            )
    leaves = list(itertools.compress(leaves, have_unit_axes(data)))
    if len({leaf.shape[0] for _, leaf in leaves}) > 1:
        sizes = ", ".join(f"{leaf_name}: {leaf.shape[0]}" for leaf_name, leaf in leaves)
        remedy = f"; {OF_ANY_LENGTH}" * isinstance(data, tuple)
        raise ValueError(f"the arrays in {name} must have one leading size, got {sizes}{remedy}")
    return data, leaves[0][1].shape[0]


def _is_intercept(name: str, leaf) -> bool:
    """Whether an array has no column since an intercept alone is wanted: covariates (n, 0) of
    mixing weights."""
    return name.endswith(".gate") and leaf.shape[0] > 0


def is_tree(data) -> bool:
    """Whether data are a tree of arrays, not one array or a list of rows. A plain tuple is a tree
    where it holds an array or a tree: (features, y). A tuple of numbers or of lists is an array."""
    if isinstance(data, dict):
        return True
    if isinstance(data, tuple):
        parts = (getattr(part, "ndim", 0) > 0 or is_tree(part) for part in data)
        return hasattr(data, "_fields") or any(parts)
    bare = data is None or isinstance(data, list) or _is_sparse(data)
    return not bare and not jax.tree_util.all_leaves([data])


def as_array(value, name: str, keep_integers: bool = False):
    """An array in a dtype that JAX computes in. The input is not changed."""
    if isinstance(value, jax.Array):
        if not _is_real(value.dtype):
            raise TypeError(f"{name} has dtype {value.dtype}: pass real numbers")
        return value if keep_integers and _is_integer(value.dtype) else _cast(value)
    _require_array_like(value, name)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is ragged: pass one rectangular array of numbers"
            + (f"; {OF_ANY_LENGTH}" * (name == "data"))
        ) from error
    if array.dtype == object and isinstance(value, (list, tuple)):
        raise ValueError(
            f"{name} is ragged or holds objects: pass one rectangular array of numbers"
        )
    if not _is_real(array.dtype):
        raise TypeError(
            f"{name} has dtype {array.dtype}{_of_columns(value)}: pass real numbers, with "
            "categories coded 0, 1, ..."
        )
    if keep_integers and array.dtype.kind in "biu":
        return _small_integers(array, name)
    return _cast(array)


def _of_columns(frame) -> str:
    """Which columns of a data frame hold no numbers, in words; "" for other values."""
    if not hasattr(frame, "columns"):
        return ""
    found = [str(c) for c in frame.columns if not _is_real(np.asarray(frame[c]).dtype)]
    return f" in column{'s' * (len(found) > 1)} " + ", ".join(map(repr, found)) if found else ""


def _require_array_like(value, name):
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an array of numbers, got {value!r:.40}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill it, or give masked rows weight 0")
    if _is_sparse(value):
        dense = "toarray()" if hasattr(value, "tocsr") else "todense()"
        raise TypeError(
            f"{name} is a sparse matrix: pass {name}.{dense}, or to a topic model "
            f"jaxem.Documents({name})"
        )
    if hasattr(value, "__next__"):
        raise TypeError(f"{name} is an iterator: pass an array, for example np.array(list(...))")


def _is_sparse(value) -> bool:
    """Whether a value is a sparse array of SciPy or JAX."""
    return hasattr(value, "tocsr") or hasattr(value, "todense")


def _with_nan(value):
    """A data frame or series with nullable numbers as a float array with NaN; else the value."""
    convert = getattr(value, "to_numpy", None)
    if convert is None or isinstance(value, (jax.Array, np.ndarray)):
        return value
    if np.asarray(value).dtype != object:
        return value
    try:
        return convert(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        return value  # it holds other objects, which `as_array` refuses


def _is_integer(dtype) -> bool:
    if isinstance(dtype, np.dtype) and dtype.kind == "m":  # durations: integers to NumPy
        return False
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _is_real(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or _is_integer(dtype)


def _small_integers(array, name):
    target = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind != "b" and array.size:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"{name} holds integers beyond {target}: enable x64 or recode them")
    return array.astype(target)


def _cast(array):
    """To JAX's default float where the dtype is an integer or has 64 bits, else to float32."""
    with np.errstate(over="ignore"):
        if array.dtype.itemsize >= 8 or _is_integer(array.dtype):
            _warn_about_x64(array)
            return array.astype(jnp.result_type(float))
        return array.astype(np.float32)


def _warn_about_x64(array):
    global _warned_about_x64
    if jax.config.jax_enable_x64 or _warned_about_x64 or isinstance(array, jax.Array):
        return
    if np.array_equal(array.astype(np.float32), array):
        return
    _warned_about_x64 = True
    warnings.warn(
        f"{array.dtype} data are fitted in float32 because JAX has x64 off: "
        'jax.config.update("jax_enable_x64", True) at the start of the program keeps them',
        FitWarning,
        stacklevel=4,
    )


def as_weights(weights, n: int, dtype, name: str = "weights"):
    """Weights (n,) in the data's dtype, or None. name: of the argument, for messages."""
    if weights is None:
        return None
    require_room(weights, name)
    weights = as_array(_with_nan(weights), name)
    if weights.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one per unit, got {weights.shape}")
    with np.errstate(over="ignore"):
        return weights.astype(dtype)


def is_clean(model, x) -> bool:
    """Whether the data lie on the host, with every value in the support, and every unit has an
    observed value, in one pass."""
    if not all(map(is_on_host, jax.tree.leaves(x))):
        return False
    x = jax.tree.map(np.asarray, x)
    leaves = jax.tree.leaves(x)
    with np.errstate(invalid="ignore"):  # of a user's `valid`
        count = max(1, tuning.CHECKED_NUMBERS * len(leaves[0]) // sum(leaf.size for leaf in leaves))
        for first in range(0, len(leaves[0]), count):
            chunk = over_units(lambda leaf: leaf[first : first + count], x)  # noqa: B023
            observed = model.domain.is_observed(chunk)
            masks = [] if observed is None else [observed]
            masks += jax.tree.leaves(model.domain.valid(chunk))
            if not all(np.all(mask) for mask in masks):
                return False
    return True


def explain_bad_weights(weights) -> str | None:
    """A sentence that says what is wrong with weights (n,), None where they are sound."""
    values = np.asarray(weights)
    is_wrong = ~(np.isfinite(values) & (values >= 0))
    if is_wrong.any():
        first = int(np.argmax(is_wrong))
        return (
            f"weights hold {int(is_wrong.sum())} negative or non-finite values, the first at index "
            f"{first}: {values[first]}; weights are 0 for an absent unit, else positive"
        )
    if not (values > 0).any():
        return (
            f"weights are all zero (in {values.dtype}): there is nothing to fit; give at least one "
            "unit weight"
        )
    total, (least, most) = values.sum(dtype=float), total_range(values.dtype)
    if not least < total < most:
        return (
            f"weights sum to {total:.3g}, and {values.dtype} takes sums from {least:.1g} to "
            f"{most:.1g}: multiply them by one number, such as {values.size / total:.1g}"
        )
    return None


def explain_bad_input(model, x, weights, names=None) -> str:
    """A sentence on the values that made a fit end as BAD_INPUT or EMPTY: how many they are, and
    the position of the first. names: of the columns of x, where it was a data frame."""
    n = jax.tree.leaves(x)[0].shape[0]
    weight = np.ones(n) if weights is None else np.asarray(weights)
    if (explanation := explain_bad_weights(weight)) is not None:
        return explanation
    with np.errstate(invalid="ignore"):
        x = model.domain.examined(jax.tree.map(np.asarray, x))
        valid = jax.tree_util.tree_leaves_with_path(model.domain.valid(x))
    for (path, is_valid), leaf in zip(valid, jax.tree.leaves(x), strict=True):
        is_valid, leaf = np.asarray(is_valid), np.asarray(leaf)
        is_wrong = ~is_valid & (weight > 0).reshape((n,) + (1,) * (is_valid.ndim - 1))
        if is_wrong.any():
            name = jax.tree_util.keystr(path)
            accepted, remedy = model.domain.accepted(name, leaf[~np.isnan(leaf)])
            at = tuple(int(i) for i in np.argwhere(is_wrong)[0])
            count = int(is_wrong.sum())
            are_few = bool(is_wrong.reshape(n, -1).any(1).sum() <= n / 2)
            drop = "give such units weight 0 or remove them"
            remedies = [remedy] * bool(remedy) + [drop] * are_few
            column = name in ("", ".x") and names and len(at) == 2 and f" in {names[at[1]]!r}"
            return (
                f"data{name} holds {count} value{'s' * (count > 1)} outside the model's support, "
                f"the first at index {at if len(at) > 1 else at[0]}{column or ''}: {leaf[at]}; it "
                "takes "
                f"{accepted}: " + (", or ".join(remedies) or "use a model that takes such data")
            )
    return "the data hold values outside the model's support"
