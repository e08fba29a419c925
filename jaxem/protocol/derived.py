"""Functions of a model that have a default: its metric, checks of params, expected log joint."""

import jax
import jax.numpy as jnp

from jaxem.protocol.capabilities import FiniteLatents, Metric, defines, has
from jaxem.protocol.posterior import expectation, responsibilities_of


def whitened(model, params, step):
    """The metric of accelerators: a step in the coordinates of `Space.chart`, a tree like params,
    transformed to uncorrelated entries in standard errors of one unit of complete data. Without a
    `Metric` of the model, entries count as uncorrelated."""
    if has(model, Metric):
        return model.whitened(params, step)

    def scaled(space, leaf, step):
        return step * jnp.sqrt(space.metric(leaf))

    return jax.tree.map(scaled, model.spaces(params), params, step)


def check_params(model, params) -> None:
    """ValueError where given params lie outside the spaces of their leaves. params: NumPy arrays
    with a leading axis, of one or more starts."""
    from jaxem.protocol.layout import Layout  # fits start sooner without it

    first = jax.tree.map(lambda leaf: leaf[0], params)
    Layout(params, model.spaces(first)).require_inside()


def expected_log_joint(model, params, x, q):
    """E_q[log p(x, z | params)] per unit (n,), up to terms that do not depend on params.

    For a model with `posterior` alone, log p(x | params), which has the same gradient at the params
    of q (Fisher's identity).
    """
    if has(model, FiniteLatents):
        return expectation(responsibilities_of(q), model.log_joint(params, x))
    if defines(model, "free_energy"):
        return model.free_energy(params, x, q)
    return model.posterior(params, x)[1]
