"""The free energy F(q, θ): what every rule of EM climbs."""

import jax.numpy as jnp

from jaxem.model import adopt


def free_energy(model, params, x, q, weights=None):
    """F(q, θ) = Σ_i w_i Σ_k q_ik (log p(x_i, z = k | params) − log q_ik), a scalar in nats.

    = log p(x | params) − KL(q ‖ p(z | x, params)), so F ≤ the log-likelihood, with equality at the
    posterior (Neal & Hinton 1998). Nothing is dropped; the log prior is not part of it.

    Args:
      model: a model with `log_joint(params, x) -> (n, k)`.
      q: responsibilities (n, k), rows summing to 1, or what `model.posterior` returned.
      weights: (n,), or None for 1.
    """
    q = getattr(q, "responsibilities", q)
    joint = adopt(model).log_joint(params, x)
    some = q > 0
    terms = jnp.where(some, q * (joint - jnp.log(jnp.where(some, q, 1))), 0)
    per_unit = terms.sum(-1)
    return (
        per_unit.sum() if weights is None else jnp.where(weights > 0, weights * per_unit, 0).sum()
    )
