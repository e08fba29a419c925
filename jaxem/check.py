"""Checks of given starts against the model that is to climb from them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.pytree import is_traced


def check_init(model, init, x, restarts: int, dtype):
    """Given params with a leading restart axis, in the model's dtypes.

    Raises ValueError that names the leaf where the tree, a shape or a value is not one that
    `model.init` could have returned.
    """

    def shaped(x):
        return model.init(jax.random.key(0), x, jnp.ones(jax.tree.leaves(x)[0].shape[0], dtype))

    expected = jax.eval_shape(shaped, x)
    wanted, got = jax.tree.structure(expected), jax.tree.structure(init)
    if wanted != got:
        raise ValueError(
            f"init must be a tree like {wanted}, got {got}: start from model.init(key, x, weights) "
            "or from the params of an earlier result"
        )
    lead = () if restarts == 1 else (restarts,)

    def ready(path, leaf, like):
        name = "init" + jax.tree_util.keystr(path)
        shape = lead + like.shape
        if jnp.shape(leaf) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(leaf)}")
        if not is_traced(leaf):
            leaf = np.asarray(leaf, like.dtype)
            if np.isnan(leaf).any():
                raise ValueError(f"{name} holds NaN: give finite values")
        else:
            leaf = leaf.astype(like.dtype)
        return leaf if lead else leaf[None]

    init = jax.tree_util.tree_map_with_path(ready, init, expected)
    if not is_traced(init):
        for r in range(restarts):
            model.check_params(jax.tree.map(lambda leaf: leaf[r], init))  # noqa: B023
    return init


def check_step(model, params, evaluate) -> None:
    """Raises TypeError, leaf by leaf, where one EM step does not return a tree like its params."""
    seen = jax.eval_shape(evaluate, params)
    before, after = jax.tree.structure(params), jax.tree.structure(seen.proposal)
    name = type(model).__name__
    if before != after:
        raise TypeError(f"{name}.maximize must return a tree like its params {before}, got {after}")
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(seen.proposal), strict=True
    )
    for (path, old), new in pairs:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise TypeError(
                f"{name}.maximize returned params{jax.tree_util.keystr(path)} with shape "
                f"{new.shape} and dtype {new.dtype}; it must keep {old.shape} and {old.dtype}"
            )
    if seen.objective.shape != ():
        raise TypeError(
            f"{name}.posterior must return evidence of shape (n,) and log_prior a scalar: "
            f"the objective came out with shape {seen.objective.shape}"
        )
