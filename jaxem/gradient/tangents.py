"""Tangents and cotangents that are NaN where a derivative cannot be trusted, and only there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def guarded(ok, leaf):
    """The leaf itself; its derivative is NaN unless `ok`."""
    return leaf


@partial(guarded.defjvp, symbolic_zeros=True)
def _guarded_jvp(primals, tangents):
    (ok, leaf), tangent = primals, tangents[1]
    if not may_be_nonzero(tangent):
        return leaf, zero_tangent(leaf)
    zero = jnp.zeros_like(tangent)
    return leaf, jnp.where(ok, tangent, zero) + poison(jnp.where(ok, zero, tangent))


class DataTangents:
    """The leaves of the data whose tangents are not known to be 0."""

    def __init__(self, data, tangents):
        self.leaves, self.tree = jax.tree.flatten(data)
        nonzero = [(i, t) for i, t in enumerate(jax.tree.leaves(tangents)) if may_be_nonzero(t)]
        self.places, self.tangents = [i for i, _ in nonzero], [t for _, t in nonzero]

    def where(self, trusted):
        """function → the tangent of function(data); tangents of the data are 0 unless `trusted`."""
        moving = [self.leaves[i] for i in self.places]
        moving_tangents = [jnp.where(trusted, t, jnp.zeros_like(t)) for t in self.tangents]

        def apply(function, values):
            leaves = list(self.leaves)
            for i, leaf in zip(self.places, values, strict=True):
                leaves[i] = leaf
            return function(jax.tree.unflatten(self.tree, leaves))

        return lambda function: jax.jvp(partial(apply, function), (moving,), (moving_tangents,))[1]

    def outlet(self, trusted, tree):
        """The tangents of `tree` where `trusted`, else NaN if any tangent of the data is not 0.

        In reverse mode the gradient of a fit that is not trusted is NaN if its cotangent is not 0,
        and 0 if it is: a fit that is masked out of a sum does not change the gradients of others.
        """
        poisoned = sum(
            poison(jnp.where(trusted, jnp.zeros_like(t), t)).sum() for t in self.tangents
        )

        def guard(leaf):
            if leaf.dtype == jax.dtypes.float0:
                return leaf
            added = poison(jnp.broadcast_to(poisoned, leaf.shape).astype(leaf.dtype))
            return jnp.where(trusted, leaf, 0) + added

        return jax.tree.map(guard, tree)


def poison(tangent):
    """0 where a tangent, or in reverse mode a cotangent, is 0, else NaN.

    It is written as the solution of a linear system, so that JAX takes it for a linear map.
    """

    def nan_unless_zero(_, b):
        return jnp.where(b == 0, b, jnp.nan)

    return jax.lax.custom_linear_solve(lambda v: v, tangent, nan_unless_zero, nan_unless_zero)


def may_be_nonzero(tangent) -> bool:
    """Whether a tangent is not known to be 0."""
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def zero_tangent(leaf):
    """The tangent of a leaf that is constant."""
    shape = jnp.shape(leaf)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros(shape, jnp.result_type(leaf))
    return np.zeros(shape, jax.dtypes.float0)
