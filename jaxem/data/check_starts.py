"""Checks of initial params, labels and responsibilities against the model that is fitted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_array
from jaxem.numerics.tree import in_dtype, is_traced, merge, split
from jaxem.protocol.derived import check_params
from jaxem.protocol.returned import listed
from jaxem.protocol.starts import (
    GROSS,
    REFERENCES,
    KMeansPlusPlus,
    Labels,
    Responsibilities,
    Start,
)

MOST_CHECKED = 64
"""The most initial params whose values are checked before a fit. Errors in the others show in the
status of their fits."""


@partial(jax.jit, static_argnames=("structure", "dtype"))
def _initial(numeric, x, structure, dtype):
    """The params of the model's own start: for their shapes, which JAX keeps for equal calls."""
    model = merge([in_dtype(leaf, dtype) for leaf in numeric], structure)
    return model.init(jax.random.key(0), x, jnp.ones(jax.tree.leaves(x)[0].shape[0], dtype))


def shapes_of_params(model, x, dtype):
    """The params of the model's own start for data shaped like x, as shapes. JAX traces equal calls
    once."""
    numeric, structure = split(model)
    return _initial.eval_shape(numeric, x, structure=structure, dtype=np.dtype(dtype))


def check_init(model, init, x, lead: tuple[int, ...], dtype):
    """Initial params in the model's dtypes, every leaf with the leading axes `lead`.

    Raises ValueError that names the leaf where the tree, a shape or a value is not one that
    `model.init` could have returned.
    """

    if isinstance(init, type) and issubclass(init, Start):
        raise TypeError(f"init must be an instance, got the class: write {init.__name__}(...)")
    expected = shapes_of_params(model, x, dtype)
    if jax.tree.structure(expected) != jax.tree.structure(init):
        hint = "the params of an earlier result, or model.init(key, x, weights)"
        if hasattr(init, "params"):
            hint = "init=result.params"
        raise ValueError(f"init must be {listed(expected)}; got {listed(init)}: pass {hint}")

    def checked(path, leaf, like):
        name = "init" + jax.tree_util.keystr(path)
        shape = lead + like.shape
        if jnp.shape(leaf) != shape:
            hint = f": give one start a fit, stacked with leading shape {lead}" if lead else ""
            raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(leaf)}{hint}")
        if not np.can_cast(jnp.result_type(leaf), complex) or jnp.iscomplexobj(leaf):
            raise TypeError(f"{name} must hold real numbers, got dtype {jnp.result_type(leaf)}")
        if not is_traced(leaf):
            with np.errstate(over="ignore"):
                leaf = np.asarray(leaf, like.dtype)
            wrong = ~np.isfinite(leaf)
            if wrong.any():
                position = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise ValueError(
                    f"{name} holds {int(wrong.sum())} values that are not finite in {like.dtype}, "
                    f"the first at index {position}: give finite values"
                )
        else:
            leaf = leaf.astype(like.dtype)
        return leaf

    init = jax.tree_util.tree_map_with_path(checked, init, expected)
    if not is_traced(init):
        flattened = jax.tree.map(lambda leaf, like: leaf.reshape(-1, *like.shape), init, expected)
        check_params(model, jax.tree.map(lambda leaf: leaf[:MOST_CHECKED], flattened))
    return init


def check_start(start: Start, n: int, k: int) -> Start:
    """Labels and responsibilities as arrays, checked for shape and, unless traced, for values."""
    if isinstance(start, Labels):
        values = as_array(start.values, "init=Labels", keep_integers=True)
        if values.shape != (n,):
            raise ValueError(f"init=Labels must have shape ({n},), got {values.shape}")
        wrong = None if is_traced(values) else ~np.isin(np.asarray(values), np.arange(k))
        accepted = f"integers from 0 to {k - 1}; for unknown labels fit jaxem.Data(x, labels=...)"
        start = Labels(values.astype(np.int32))
    elif isinstance(start, Responsibilities):
        values = as_array(start.values, "init=Responsibilities")
        if values.shape != (n, k):
            raise ValueError(
                f"init=Responsibilities must have shape ({n}, {k}), got {values.shape}"
            )
        host = None if is_traced(values) else np.asarray(values)
        wrong = None if host is None else ~((host >= 0).all(1) & (abs(host.sum(1) - 1) < 1e-3))
        accepted = "rows of numbers of 0 or more that sum to 1; divide each row by its sum"
        start = Responsibilities(values)
    else:
        return start
    if wrong is not None and wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"init={type(start).__name__} is wrong at {int(wrong.sum())} units, first at index "
            f"{first}: {np.asarray(values)[first]}; it takes {accepted}"
        )
    return start


MOST_SEARCHED = 2**18
"""Units × features up to which outliers are looked for before a fit."""


def without_outliers(init, x):
    """The start rule `init`, None for the default, where a look at host data x (n, d) shows that no
    unit is an outlier: then as a rule that does not look for them. Its seeds are the same, and its
    program is shorter, which counts in a first fit of few units."""
    is_default = init is None or init == KMeansPlusPlus()
    if not is_default or not isinstance(x, np.ndarray) or x.ndim != 2 or x.size > MOST_SEARCHED:
        return init
    with np.errstate(all="ignore"):
        columns = np.ascontiguousarray(x.T)
        low, middle, high = np.sort(columns)[:, len(x) * np.arange(1, 4) // 4].T[..., None]
        away = columns - middle
        spread = high - low
        spread[~(spread > 0)] = 1
        points = np.stack([away / spread, away])  # a scale for every feature, and one for all
        references = points[..., :: -(-len(x) // REFERENCES), None]
        apart = np.square(references - points[..., None, :]).sum(1)
        differs = apart > 0
        apart[~differs] = 1
        typical = np.exp(np.log(apart).sum(-1) / np.maximum(differs.sum(-1), 1)).min(-1)
        farthest = np.square(points).sum(1).max(-1)
        safe = (4 * farthest < GROSS / 2 * typical).all()
    return KMeansPlusPlus(outliers=True) if safe else init
