"""The check that a step returns a tree like its params, and a scalar objective."""

import jax

from jaxem.data.check_starts import listed
from jaxem.protocol.model import name_of


def check_step(model, params, memory, evaluate) -> None:
    """Raises TypeError, leaf by leaf, where one EM step does not return a tree like its params."""
    evaluation = jax.eval_shape(evaluate, params, memory)
    before, after = jax.tree.structure(params), jax.tree.structure(evaluation.proposal)
    name = name_of(model)
    if before != after:
        raise TypeError(
            f"{name}.maximize must return params like {listed(params)}; "
            f"got {listed(evaluation.proposal)}"
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(evaluation.proposal),
        strict=True,
    )
    for (path, before_leaf), after_leaf in pairs:
        if (before_leaf.shape, before_leaf.dtype) != (after_leaf.shape, after_leaf.dtype):
            raise TypeError(
                f"{name}.maximize returned params{jax.tree_util.keystr(path)} with shape "
                f"{after_leaf.shape} and dtype {after_leaf.dtype}; it must keep "
                f"{before_leaf.shape} and {before_leaf.dtype}"
            )
    if evaluation.objective.shape != ():
        raise TypeError(
            f"{name}.posterior must return evidence of shape (n,) and log_prior a scalar: "
            f"the objective came out with shape {evaluation.objective.shape}"
        )
