"""Tangents that are NaN where they are not known, and leave everything else alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def guarded(ok, leaf):
    """A leaf whose gradient is NaN unless `ok`."""
    return leaf


@partial(guarded.defjvp, symbolic_zeros=True)
def _guard(primals, tangents):
    (ok, leaf), tangent = primals, tangents[1]
    if not moves(tangent):
        return leaf, still(leaf)
    zero = jnp.zeros_like(tangent)
    return leaf, jnp.where(ok, tangent, zero) + poison(jnp.where(ok, zero, tangent))


class Motion:
    """The tangents of the leaves of data that move."""

    def __init__(self, data, tangents):
        self.leaves, self.tree = jax.tree.flatten(data)
        moving = [(i, t) for i, t in enumerate(jax.tree.leaves(tangents)) if moves(t)]
        self.places, self.tangents = [i for i, _ in moving], [t for _, t in moving]

    def where(self, good):
        """function(data) -> its tangent; where not `good` nothing moves."""
        start = [self.leaves[i] for i in self.places]
        motion = [jnp.where(good, t, jnp.zeros_like(t)) for t in self.tangents]

        def at(function, values):
            leaves = list(self.leaves)
            for i, leaf in zip(self.places, values, strict=True):
                leaves[i] = leaf
            return function(jax.tree.unflatten(self.tree, leaves))

        return lambda function: jax.jvp(partial(at, function), (start,), (motion,))[1]

    def outlet(self, good, tree):
        """The tangents of `tree` where `good`; elsewhere NaN if anything moves.

        In reverse mode that is a NaN gradient if a cotangent arrives, and 0 if none does: fits that
        are masked out of a sum leave the others' gradients alone.
        """
        lost = sum(poison(jnp.where(good, jnp.zeros_like(t), t)).sum() for t in self.tangents)

        def guarded(leaf):
            if leaf.dtype == jax.dtypes.float0:
                return leaf
            bad = poison(jnp.broadcast_to(lost, leaf.shape).astype(leaf.dtype))
            return jnp.where(good, leaf, 0) + bad

        return jax.tree.map(guarded, tree)


def poison(tangent):
    """0 where a tangent, or in reverse a cotangent, is 0, else NaN: a linear map to JAX."""

    def ruin(_, b):
        return jnp.where(b == 0, b, jnp.nan)

    return jax.lax.custom_linear_solve(lambda v: v, tangent, ruin, ruin)


def moves(tangent) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def still(leaf):
    """The tangent of what does not move."""
    shape = jnp.shape(leaf)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros(shape, jnp.result_type(leaf))
    return np.zeros(shape, jax.dtypes.float0)
