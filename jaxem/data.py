"""The only place that inspects what a user hands in: data, weights, keys, options."""

import difflib
import math
import operator
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.status import FitWarning

_warned_about_x64 = False


def as_data(data):
    """The data as a tree of arrays with one leading unit axis, and the number of units.

    A bare array-like becomes floating point; in a tree, integers stay integers.
    """
    bare = not _is_tree(data)
    if bare:
        data = as_array(data, "data")
    else:
        data = jax.tree.map(lambda leaf: as_array(leaf, "data", keep_integers=True), data)
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError("data hold no array: pass an array of shape (n, d)")
    sizes = {
        jax.tree_util.keystr(path) or "data": leaf.shape[0] if leaf.ndim else None
        for path, leaf in leaves
    }
    if None in sizes.values():
        raise ValueError("data is a single number: pass an array of shape (n, d)")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"the leaves of data must have one leading size, got {listed}")
    for path, leaf in leaves:
        if 0 in leaf.shape:
            name = jax.tree_util.keystr(path) or "data"
            raise ValueError(f"{name} is empty, with shape {leaf.shape}: pass at least one unit")
    return data, leaves[0][1].shape[0]


def _is_tree(data) -> bool:
    if isinstance(data, dict) or (isinstance(data, tuple) and hasattr(data, "_fields")):
        return True
    return not isinstance(data, (list, tuple)) and not jax.tree_util.all_leaves([data])


def as_array(value, name: str, keep_integers: bool = False):
    """One array in a dtype that JAX computes in; the input is never written to."""
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{name} is complex: pass real numbers")
        return value if keep_integers and _is_integer(value.dtype) else _cast(value)
    _refuse(value, name)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is ragged or not numeric ({error}): pass one rectangular array; for several "
            "data sets of different lengths call fit once for each"
        ) from error
    if array.dtype == object and isinstance(value, (list, tuple)):
        raise ValueError(
            f"{name} is ragged or holds objects: pass one rectangular array of numbers"
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} has dtype {array.dtype}: pass real numbers, with categories coded 0, 1, ..."
        )
    if keep_integers and array.dtype.kind in "biu":
        return _small_integers(array, name)
    return _cast(array)


def _refuse(value, name):
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill it, or give masked rows weight 0")
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} is a sparse matrix: pass {name}.toarray()")
    if hasattr(value, "__next__"):
        raise TypeError(f"{name} is an iterator: pass an array, for example np.array(list(...))")
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an array of shape (n, d), got {type(value).__name__}")


def _is_integer(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or np.dtype(dtype).kind == "b"


def _small_integers(array, name):
    target = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind != "b" and array.size:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"{name} holds integers beyond {target}: enable x64 or recode them")
    return array.astype(target)


def _cast(array):
    """To float32 or, when it is float64 or an integer, to JAX's default float."""
    if array.dtype.kind in "biu" or _is_integer(array.dtype):
        return array.astype(jnp.result_type(float))
    if array.dtype.newbyteorder("=") == np.float64:
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
        "float64 data are fitted in float32 because JAX has x64 off: "
        'jax.config.update("jax_enable_x64", True) at the start of the program keeps them',
        FitWarning,
        stacklevel=4,
    )


def as_weights(weights, n: int, dtype):
    """Weights (n,) in the data's dtype, or None."""
    if weights is None:
        return None
    weights = as_array(weights, "weights")
    if weights.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), one per unit, got {weights.shape}")
    return weights.astype(dtype)


def is_clean(model, x) -> bool:
    """Whether data that lie on the host are valid throughout, at the cost of one look."""
    leaves = jax.tree.leaves(x)
    if not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return False
    return all(np.all(mask) for mask in jax.tree.leaves(model.valid(x)))


def float_dtype(x):
    """The dtype to compute in: the widest float among the leaves, else JAX's default."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def as_key(key):
    """A typed key passes; an int or a legacy uint32 key becomes what `_solve` turns into one."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim:
                raise ValueError(
                    f"key must be one key, got an array of shape {key.shape}: restarts split it"
                )
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return key
    elif isinstance(key, np.ndarray) and key.dtype == np.uint32 and key.shape == (2,):
        return key
    try:
        return np.uint32(operator.index(key) % 2**32)
    except TypeError as error:
        raise TypeError(f"key must be jax.random.key(seed) or an int, got {key!r}") from error


def count(value, name: str, least: int) -> int:
    """An int option of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an int of {least} or more, got {value!r}") from error
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an int of {least} or more, got {value!r}")
    return number


def tolerance(value) -> float:
    """A tolerance per unit of weight: a number of 0 or more, or a traced scalar."""
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tol must be a number of 0 or more, got {value!r}") from error
    if not number >= 0 or math.isinf(number):
        raise ValueError(f"tol must be a finite number of 0 or more, got {value!r}")
    return number


def one_of(value, name: str, allowed):
    """An option from a list of strings, with the nearest one suggested."""
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        + suggestion(value, allowed)
    )


def suggestion(word, allowed) -> str:
    close = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def refuse_unknown(unknown, allowed):
    """TypeError for keyword arguments that do not exist."""
    for word in unknown:
        raise TypeError(f"fit() has no argument {word!r}" + suggestion(word, allowed))


def explain_bad_input(model, x, weights) -> str:
    """Where the values lie that made a fit end as BAD_INPUT or EMPTY: count and first position."""
    n = jax.tree.leaves(x)[0].shape[0]
    w = np.ones(n) if weights is None else np.asarray(weights)
    wrong = ~(np.isfinite(w) & (w >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        return (
            f"weights hold {int(wrong.sum())} negative or non-finite values, the first at index "
            f"{first}: {w[first]}; weights are 0 for an absent unit, else positive"
        )
    if not (w > 0).any():
        return "all weights are zero: there is nothing to fit; give at least one unit weight"
    masks = jax.tree_util.tree_leaves_with_path(model.valid(x))
    for (path, mask), leaf in zip(masks, jax.tree.leaves(x), strict=True):
        mask, leaf = np.asarray(mask), np.asarray(leaf)
        wrong = ~mask & (w > 0).reshape((n,) + (1,) * (mask.ndim - 1))
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            name = "data" + jax.tree_util.keystr(path)
            remedy = "give such units weight 0 or remove them"
            return (
                f"{name} holds {int(wrong.sum())} values outside the model's support, the first at "
                f"index {first}: {leaf[first]}; the model takes {model.support()}: {remedy}"
            )
    return "the data hold values outside the model's support"
