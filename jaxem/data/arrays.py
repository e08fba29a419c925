"""The only place that inspects what a user hands in: data, weights, keys, options."""

import difflib
import math
import operator
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.tree import is_traced
from jaxem.protocol.status import FitWarning

_warned_about_x64 = False


def as_data(data):
    """The data as a tree of arrays with one leading unit axis, and the number of units.

    A bare array-like becomes floating point; in a tree, integers stay integers.
    """
    if _is_tree(data):
        data = jax.tree_util.tree_map_with_path(
            lambda path, leaf: as_array(leaf, "data" + jax.tree_util.keystr(path), True),
            data,
            is_leaf=lambda node: isinstance(node, list),
        )
    else:
        data = as_array(data, "data")
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise ValueError("data hold no array: pass an array of shape (n, d)")
    leaves = [("data" + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    for name, leaf in leaves:
        if leaf.ndim == 0:
            raise ValueError(f"{name} is a single number: pass an array of shape (n, d)")
        if 0 in leaf.shape:
            what = "unit" if leaf.shape[0] == 0 else "feature"
            raise ValueError(f"{name} is empty, with shape {leaf.shape}: pass at least one {what}")
    if len({leaf.shape[0] for _, leaf in leaves}) > 1:
        listed = ", ".join(f"{name}: {leaf.shape[0]}" for name, leaf in leaves)
        raise ValueError(f"the arrays in data must have one leading size, got {listed}")
    return data, leaves[0][1].shape[0]


def _is_tree(data) -> bool:
    if isinstance(data, dict) or (isinstance(data, tuple) and hasattr(data, "_fields")):
        return True
    bare = data is None or isinstance(data, (list, tuple))
    return not bare and not jax.tree_util.all_leaves([data])


def as_array(value, name: str, keep_integers: bool = False):
    """One array in a dtype that JAX computes in; the input is never written to."""
    if isinstance(value, jax.Array):
        if not _is_real(value.dtype):
            raise TypeError(f"{name} has dtype {value.dtype}: pass real numbers")
        return value if keep_integers and _is_integer(value.dtype) else _cast(value)
    _refuse(value, name)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is ragged: pass one rectangular array of numbers"
            + ("; for data sets of different lengths use jaxem.Batch" * (name == "data"))
        ) from error
    if array.dtype == object and isinstance(value, (list, tuple)):
        raise ValueError(
            f"{name} is ragged or holds objects: pass one rectangular array of numbers"
        )
    if not _is_real(array.dtype):
        raise TypeError(
            f"{name} has dtype {array.dtype}: pass real numbers, with categories coded 0, 1, ..."
        )
    if keep_integers and array.dtype.kind in "biu":
        return _small_integers(array, name)
    return _cast(array)


def _refuse(value, name):
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an array of numbers, got {value!r:.40}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill it, or give masked rows weight 0")
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} is a sparse matrix: pass {name}.toarray()")
    if hasattr(value, "__next__"):
        raise TypeError(f"{name} is an iterator: pass an array, for example np.array(list(...))")


def _is_integer(dtype) -> bool:
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
    """To float32 or, when it is wider or an integer, to JAX's default float."""
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


def as_weights(weights, n: int, dtype):
    """Weights (n,) in the data's dtype, or None."""
    if weights is None:
        return None
    weights = as_array(weights, "weights")
    if weights.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), one per unit, got {weights.shape}")
    with np.errstate(over="ignore"):
        return weights.astype(dtype)


LOOK = 2**16
"""Units that are looked at together: a look makes several arrays as large as they are."""


def is_clean(model, x) -> bool:
    """Whether data that lie on the host are valid throughout, at the cost of one look."""
    if not all(map(_on_host, jax.tree.leaves(x))):
        return False
    x = jax.tree.map(np.asarray, x)
    leaves = jax.tree.leaves(x)
    with np.errstate(invalid="ignore"):  # inf % 1
        for begin in range(0, len(leaves[0]), LOOK):
            some = jax.tree.map(lambda leaf: leaf[begin : begin + LOOK], x)  # noqa: B023
            if not all(np.all(mask) for mask in jax.tree.leaves(model.domain.valid(some))):
                return False
    return True


def _on_host(leaf) -> bool:
    """Whether NumPy reads an array where it lies."""
    if isinstance(leaf, np.ndarray):
        return True
    if not isinstance(leaf, jax.Array) or is_traced(leaf) or leaf.is_deleted():
        return False
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


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
        got = f"dtype {key.dtype} of shape {key.shape}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"key must be one jax.random.key(seed) or an int, got {got}") from error


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


def plan_to_unroll(max_iter, restarts) -> None:
    """TypeError where a fit cannot be unrolled: its length is fixed, and no restart is dropped."""
    if isinstance(max_iter, jax.core.Tracer):
        raise TypeError('gradient="unrolled" takes exactly max_iter steps: pass a Python int')
    if not isinstance(restarts, int):
        raise TypeError('gradient="unrolled" cannot screen restarts: pass restarts as an int')


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


ELSEWHERE = {
    "n_init": "restarts",
    "random_state": "key",
    "seed": "key",
    "rng": "key",
    "sample_weight": "weights",
    "n_iter": "max_iter",
}
"""What other libraries call an argument of `fit`."""


def refuse_unknown(unknown, allowed):
    """TypeError for keyword arguments that do not exist."""
    for word in unknown:
        meant = ELSEWHERE.get(word, word)
        raise TypeError(f"fit() has no argument {word!r}" + suggestion(meant, allowed))


def explain_bad_weights(weights) -> str | None:
    """What is wrong with weights (n,), None where nothing is."""
    w = np.asarray(weights)
    wrong = ~(np.isfinite(w) & (w >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        return (
            f"weights hold {int(wrong.sum())} negative or non-finite values, the first at index "
            f"{first}: {w[first]}; weights are 0 for an absent unit, else positive"
        )
    if not (w > 0).any():
        return "weights are all zero: there is nothing to fit; give at least one unit weight"
    return None


def explain_bad_input(model, x, weights) -> str:
    """Where the values lie that made a fit end as BAD_INPUT or EMPTY: count and first position."""
    n = jax.tree.leaves(x)[0].shape[0]
    w = np.ones(n) if weights is None else np.asarray(weights)
    if (wrong := explain_bad_weights(w)) is not None:
        return wrong
    with np.errstate(invalid="ignore"):
        masks = jax.tree_util.tree_leaves_with_path(model.domain.valid(jax.tree.map(np.asarray, x)))
    for (path, mask), leaf in zip(masks, jax.tree.leaves(x), strict=True):
        mask, leaf = np.asarray(mask), np.asarray(leaf)
        wrong = ~mask & (w > 0).reshape((n,) + (1,) * (mask.ndim - 1))
        if wrong.any():
            name = jax.tree_util.keystr(path)
            takes = model.domain.words
            if name == ".labels":
                takes = f"-1 where unknown, else 0 to {model.domain.components - 1}"
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            many = int(wrong.sum())
            return (
                f"data{name} holds {many} value{'s' * (many > 1)} outside the model's support, the "
                f"first at index {first if len(first) > 1 else first[0]}: {leaf[first]}; it takes "
                f"{takes}: give such units weight 0 or remove them"
            )
    return "the data hold values outside the model's support"
