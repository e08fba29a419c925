"""What follows from the spaces of a model's leaves: distances, and checks of given params."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.protocol.capabilities import FiniteLatents, Metric, has
from jaxem.protocol.layout import Layout
from jaxem.protocol.posterior import expectation, shares
from jaxem.protocol.status import FitWarning


def whitened(model, params, step):
    """A step in the spaces' charts, a tree like params, in standard errors of a unit of complete
    data, uncorrelated: the metric of accelerators. Without a `Metric` of the model's own, as if
    entries were uncorrelated."""
    if has(model, Metric):
        return model.whitened(params, step)

    def scaled(space, leaf, step):
        return step * jnp.sqrt(space.metric(leaf))

    return jax.tree.map(scaled, model.spaces(params), params, step)


def check_params(model, params) -> None:
    """ValueError where given params, as NumPy arrays, lie outside the spaces of their leaves; a
    `FitWarning` where all components of a bank are the same."""
    Layout(params, model.spaces(params)).require_inside()
    k = model.domain.components
    components = [leaf for leaf in jax.tree.leaves(params) if np.ndim(leaf) > 1 and len(leaf) == k]
    if k > 1 and components and all((leaf == leaf[:1]).all() for leaf in components):
        warnings.warn(
            "init components are identical: EM cannot tell them apart and will not move them "
            "apart; start from different components",
            FitWarning,
            stacklevel=5,
        )


def expected_log_joint(model, params, x, q):
    """E_q[log p(x, z | params)] per unit (n,), up to what no parameter changes."""
    if has(model, FiniteLatents):
        return expectation(shares(q), model.log_joint(params, x))
    return model.free_energy(params, x, q)
