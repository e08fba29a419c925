"""Checks of what the functions of a user's model return: shapes and dtypes alone, while a fit is
traced. Every driver calls them, so that a shape that would broadcast is an error in each."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.protocol.model import name_of


class WrongReturn(TypeError):
    """A function of a user's model returned an array of another shape or dtype than it must."""


def listed(tree) -> str:
    """A description of a tree: its type, and its leaves with their shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = ", ".join(f"{jax.tree_util.keystr(path)} {np.shape(leaf)}" for path, leaf in leaves)
    is_bare = not leaves or not leaves[0][0]
    return repr(tree)[:80] if is_bare else f"{type(tree).__name__} with leaves {shapes}"


def require_params(model, params, proposal):
    """The proposal of an M-step. TypeError, leaf by leaf, where it is no tree like `params`."""
    before, after = jax.tree.structure(params), jax.tree.structure(proposal)
    name = name_of(model)
    if before != after:
        raise WrongReturn(
            f"{name}.maximize must return params like {listed(params)}; got {listed(proposal)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(proposal), strict=True)
    for (path, leaf), proposed in pairs:
        kept = jnp.shape(leaf), jnp.result_type(leaf)
        got = jnp.shape(proposed), jnp.result_type(proposed)
        if kept != got:
            raise WrongReturn(
                f"{name}.maximize returned params{jax.tree_util.keystr(path)} with shape "
                f"{got[0]} and dtype {got[1]}; keep shape and dtype, {kept[0]} and {kept[1]}"
            )
    return proposal


def maximized(model, params, statistics):
    """The M-step of a model. TypeError where it returns no tree like `params`."""
    return require_params(model, params, model.maximize(params, statistics))


def require_evidence(model, evidence, weights) -> None:
    """TypeError unless there is one number a unit, as there are weights (n,)."""
    if jnp.shape(evidence) != weights.shape:
        raise WrongReturn(
            f"{name_of(model)}.posterior must return evidence of shape {weights.shape}, one number "
            f"a unit, got {jnp.shape(evidence)}: sum over all axes but the first"
        )


def require_scalar_prior(model, prior) -> None:
    """TypeError unless log p(params) is a scalar."""
    if jnp.shape(prior) != ():
        raise WrongReturn(
            f"{name_of(model)}.log_prior must return a scalar, got shape {jnp.shape(prior)}: sum it"
        )
