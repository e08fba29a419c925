"""What a step must return: a tree like its params, and a scalar objective."""

import jax

from jaxem.data.check_starts import listed
from jaxem.protocol.model import name_of


def check_step(model, params, memory, evaluate) -> None:
    """Raises TypeError, leaf by leaf, where one EM step does not return a tree like its params."""
    seen = jax.eval_shape(evaluate, params, memory)
    before, after = jax.tree.structure(params), jax.tree.structure(seen.proposal)
    name = name_of(model)
    if before != after:
        raise TypeError(
            f"{name}.maximize must return params like {listed(params)}; got {listed(seen.proposal)}"
        )
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
