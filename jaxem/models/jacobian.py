"""The derivative of a mixture's EM map from those of densities and M-step, not column by column.

In a separate bank (`Bank.separate`) the density of a component depends on its own params alone, and
its M-step on its own responsibilities alone. Let p be the number of params of a component. Then p
forward products through the densities give all s_ijb = ∂ log p(x_i | j) / ∂θ_jb, and p reverse
products through the M-step all t_ija = ∂M_ja / ∂r_ij. The derivative is a sum over units:

  ∂M_ja / ∂θ_lb = Σ_i t_ija r_ij (δ_jl − r_il) s_ilb.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import Precision

from jaxem.data.data import of_components, of_rows, within_units


@dataclass(frozen=True)
class KnownJacobian:
    """The derivative of a mixture's EM map, as the capability `SmoothMap` returns it."""

    mixture: Any

    def jacobian(self, params, x, weights):
        """∂(EM map)/∂params at params, (P, P), for units x with weights (n,)."""
        return jacobian(self.mixture, params, x, weights)


def jacobian(mixture, params, x, weights):
    """∂M/∂θ at params, (P, P), in the order of `ravel_pytree`: of a `Mixture` over a separate bank,
    with the weights (n,) of the units x. Where statistics depend on params beside responsibilities,
    column by column."""
    if mixture.bank.domain.completes(of_components(x)):
        return _by_columns(mixture, params, x, weights)
    bank, bank_params, k = mixture.components, params.components, mixture.k
    leaves, tree = jax.tree.flatten(bank_params)
    plain = of_components(x)
    q, _ = mixture.posterior(params, x)
    r = q.responsibilities.T

    def densities(components):
        return within_units(x, bank.posterior(components, plain)[1]).T

    def maximized(r):
        stats = bank.statistics(bank_params, plain, q.components, of_rows(x, (r * weights).T))
        new_leaves = jax.tree.leaves(bank.maximize(bank_params, stats))
        return jnp.concatenate([leaf.reshape(k, -1) for leaf in new_leaves], axis=1)

    # A unit vector for each param, of every component at once.
    ends = np.cumsum([leaf.size // k for leaf in leaves])
    unit_vectors = np.eye(ends[-1], dtype=leaves[0].dtype)[:, None]
    unit_vectors = np.broadcast_to(unit_vectors, (ends[-1], k, ends[-1]))
    parts = np.split(unit_vectors, ends[:-1], axis=2)
    directions = [a.reshape(-1, *leaf.shape) for a, leaf in zip(parts, leaves, strict=True)]
    _, push = jax.linearize(densities, bank_params)
    _, pull = jax.vjp(maximized, r)
    s = jax.vmap(push)(jax.tree.unflatten(tree, directions))
    (t,) = jax.vmap(pull)(unit_vectors)

    # The first param of a component is its weight; `t` has the derivative of its count there.
    s = jnp.concatenate([jnp.broadcast_to(1 / params.weights[:, None], r.shape)[None], s])
    t = jnp.concatenate([jnp.broadcast_to(weights, r.shape)[None], t])
    within = jnp.einsum("ajn,bjn->jab", t, r * (1 - r) * s, precision=Precision.HIGHEST)
    across = jnp.einsum("ajn,bln->jalb", r * t, r * s, precision=Precision.HIGHEST)
    is_same = jnp.eye(k, dtype=bool)[:, None, :, None]
    slope = jnp.where(is_same, within[:, :, None, :], -across)
    count = jnp.matmul(r, weights, precision=Precision.HIGHEST)
    weights_by_count = jax.jacfwd(lambda count: mixture.mixing.params(count, None).weights)(count)
    of_weights = jnp.tensordot(weights_by_count, slope[:, 0], 1, precision=Precision.HIGHEST)
    slope = slope.at[:, 0].set(of_weights)

    # Reordered to leaf by leaf, and component by component within a leaf.
    position = np.arange(k * (ends[-1] + 1)).reshape(k, -1)
    order = [position[:, 0], *np.split(position[:, 1:], ends[:-1], axis=1)]
    order = np.concatenate([part.ravel() for part in order])
    return slope.reshape(order.size, order.size)[order][:, order]


def _by_columns(mixture, params, x, weights):
    """∂M/∂θ at params, (P, P), by a forward product through the EM map for every param."""
    flat, unravel = ravel_pytree(params)

    def em_map(flat):
        at = unravel(flat)
        q, _ = mixture.posterior(at, x)
        return ravel_pytree(mixture.maximize(at, mixture.statistics(at, x, q, weights)))[0]

    return jax.jacfwd(em_map)(flat)
