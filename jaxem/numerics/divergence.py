"""Kullback–Leibler divergences of conjugate posteriors from their priors, in nats.

Γ and ψ are written as Stirling's formula and its remainder, and what is large in both cancels on
paper: a posterior that has seen a million units is 10 nats from its prior, and float32 shows it.
"""

import jax.numpy as jnp
from jax.lax import lgamma

from jaxem.numerics.special import log_minus_digamma, stirling_term


def dirichlet(a, prior, real=None):
    """Σ KL(Dirichlet(a) ‖ Dirichlet(prior)) over all vectors (..., v).

    real: booleans that broadcast to (..., v); entries that are not are left out of their vector.
    """
    c = jnp.broadcast_to(jnp.asarray(prior, a.dtype), a.shape)
    real = jnp.broadcast_to(True if real is None else real, a.shape)

    def total(values):
        return jnp.where(real, values, 0).sum(-1, keepdims=True)

    a, c = jnp.where(real, a, 1), jnp.where(real, c, 1)
    whole = total(a)
    each = stirling_term(a) + lgamma(c) - c * jnp.log(a / whole)
    each -= (a - c) * (log_minus_digamma(a) - log_minus_digamma(whole))
    return jnp.sum(total(each) - stirling_term(whole) - lgamma(total(c)))


def gamma(shape, rate, prior_shape, prior_rate):
    """Σ KL(gamma(shape, rate) ‖ gamma(prior_shape, prior_rate)) over all entries."""
    c = jnp.broadcast_to(jnp.asarray(prior_shape, shape.dtype), shape.shape)
    ratio = prior_rate / rate
    known = stirling_term(shape) - (shape - c) * log_minus_digamma(shape) + lgamma(c)
    return jnp.sum(known - c * jnp.log(shape * ratio) + shape * ratio)


def wishart(df, log_det, prior_df, prior_log_det, trace, steps):
    """KL(Wishart(df, (df·C)⁻¹) ‖ Wishart(prior_df, S⁻¹)), the shape of df.

    C is the inverse of the expected precision matrix and S the prior's scale, (d, d).

    Args:
      log_det: log |C|.  prior_log_det: log |S|.  trace: tr(S C⁻¹).
      steps: (d,), 0 1 … d−1. With zeros in their place, C and S diagonal, it is the divergence of d
        precisions, each gamma(df/2, df·C/2) from gamma(prior_df/2, S/2).
    """
    d, half = len(steps), df / 2
    prior_df = jnp.asarray(prior_df, df.dtype)
    known = prior_df / 2 * (d * jnp.log(df) + log_det - prior_log_det) + trace / 2
    for j in steps:
        a, c = half - j / 2, (prior_df - j) / 2
        known += stirling_term(a) + lgamma(c) - c * jnp.log(a) - j / 2
        known -= (df - prior_df) / 2 * log_minus_digamma(a)
    return known
