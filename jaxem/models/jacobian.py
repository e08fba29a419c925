"""The derivative of a mixture's EM map, by units and components instead of column by column.

In a separate bank (`Bank.separate`) the density of a component has its own params alone, and its
M-step its own responsibilities. So p products forward through the densities give all
s_ijb = ∂ log p(x_i | j) / ∂θ_jb, p in reverse through the M-step all t_ija = ∂M_ja / ∂r_ij, with p
the params of one component, and sums over the units join them:

  ∂M_ja / ∂θ_lb = Σ_i t_ija r_ij (δ_jl − r_il) s_ilb.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.data.labelled import unlabelled


@dataclass(frozen=True)
class KnownJacobian:
    """A mixture's EM map, of which the derivative is known."""

    mixture: Any

    def jacobian(self, params, x, weights):
        """∂(EM map)/∂params at params, (P, P), for units x with weights (n,)."""
        return jacobian(self.mixture, params, x, weights)


def jacobian(mixture, params, x, weights):
    """∂M/∂θ at params, (P, P), in the order of `ravel_pytree`: of a `Mixture` over a separate bank,
    with the weights (n,) of the units x."""
    bank, own, k = mixture.components, params.components, mixture.k
    leaves, tree = jax.tree.flatten(own)
    plain = unlabelled(x)[0]
    q, _ = mixture.posterior(params, x)
    r = q.responsibilities.T

    def densities(components):
        return bank.posterior(components, plain)[1].T

    def maximized(r):
        stats = bank.statistics(own, plain, q.components, (r * weights).T)
        new = jax.tree.leaves(bank.maximize(own, stats))
        return jnp.concatenate([leaf.reshape(k, -1) for leaf in new], axis=1)

    # One param of every component at once.
    ends = np.cumsum([leaf.size // k for leaf in leaves])
    each = np.eye(ends[-1], dtype=leaves[0].dtype)[:, None]
    each = np.broadcast_to(each, (ends[-1], k, ends[-1]))
    parts = np.split(each, ends[:-1], axis=2)
    ways = [a.reshape(-1, *leaf.shape) for a, leaf in zip(parts, leaves, strict=True)]
    _, push = jax.linearize(densities, own)
    _, pull = jax.vjp(maximized, r)
    s = jax.vmap(push)(jax.tree.unflatten(tree, ways))
    (t,) = jax.vmap(pull)(each)

    # First of the params of a component its weight; in place of its slope that of the count.
    s = jnp.concatenate([jnp.broadcast_to(1 / params.weights[:, None], r.shape)[None], s])
    t = jnp.concatenate([jnp.broadcast_to(weights, r.shape)[None], t])
    within = jnp.einsum("ajn,bjn->jab", t, r * (1 - r) * s, precision=Precision.HIGHEST)
    across = jnp.einsum("ajn,bln->jalb", r * t, r * s, precision=Precision.HIGHEST)
    same = jnp.eye(k, dtype=bool)[:, None, :, None]
    slope = jnp.where(same, within[:, :, None, :], -across)
    count = jnp.matmul(r, weights, precision=Precision.HIGHEST)
    shares = jax.jacfwd(lambda count: mixture.assembled(count, None).weights)(count)
    of_weights = jnp.tensordot(shares, slope[:, 0], 1, precision=Precision.HIGHEST)
    slope = slope.at[:, 0].set(of_weights)

    # Leaf by leaf, and component by component within.
    place = np.arange(k * (ends[-1] + 1)).reshape(k, -1)
    order = [place[:, 0], *np.split(place[:, 1:], ends[:-1], axis=1)]
    order = np.concatenate([part.ravel() for part in order])
    return slope.reshape(order.size, order.size)[order][:, order]
