"""Models with what they lack set from the data: a prior, or the volume of the noise."""

from functools import partial
from typing import Any

import jax

from jaxem.numerics.tree import Structure, merge, pytree, split
from jaxem.solver.problem import sanitize


@pytree(static=("structure",), eq=False)
class SplitModel:
    """A model as `split` returns it, for programs that return one."""

    numeric: Any
    structure: Structure


def informed(model, x, weights, batched: bool = False):
    """The model with what it lacks set from the data x with weights (n,), None for 1. batched: of
    data sets (b, n, ...); every array of the model then has a leading axis b."""
    numeric, structure = split(model)
    found = _informed(numeric, x, weights, structure, batched)
    return merge(found.numeric, found.structure)


@partial(jax.jit, static_argnums=(3, 4))
def _informed(numeric, x, weights, structure, batched):
    model = merge(numeric, structure)

    def of_one(x, weights):
        x, weights, _ = sanitize(model, x, weights)
        return SplitModel(*split(model.informed(x, weights)))

    return jax.vmap(of_one)(x, weights) if batched else of_one(x, weights)
