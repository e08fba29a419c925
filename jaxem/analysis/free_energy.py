"""The free energy F(q, θ), which every rule of EM maximises, and its terms."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import rel_entr

from jaxem.numerics.special import safe_entr
from jaxem.protocol.capabilities import Bound, FiniteLatents, LocalPosterior, has
from jaxem.protocol.model import name_of
from jaxem.protocol.posterior import expectation, responsibilities_of
from jaxem.wrappers.adopt import adopt

__all__ = ["Ascent", "FreeEnergy", "ascent", "decompose", "free_energy"]


class FreeEnergy(NamedTuple):
    """F and its terms in both decompositions, in nats; each a scalar.

    value: F(q, θ) = expected + entropy = evidence − divergence. expected: E_q[log p(x, z | θ)].
    entropy: H(q) = −E_q[log q]. evidence: log p(x | θ). divergence: KL(q ‖ p(z | x, θ)) ≥ 0.
    Source: Neal & Hinton 1998.
    """

    value: Any
    expected: Any
    entropy: Any
    evidence: Any
    divergence: Any


class Ascent(NamedTuple):
    """The gain of a step of EM and its terms, gain = expected + divergence, in nats; each a scalar.

    gain: log p(x | θ₁) − log p(x | θ₀). expected: g(θ₁) − g(θ₀), where g is the expected log joint
    under q₀ = p(z | x, θ₀), which an M-step does not lower. divergence: KL(q₀ ‖ p(z | x, θ₁)) ≥ 0.
    Source: Dempster, Laird & Rubin 1977.
    """

    gain: Any
    expected: Any
    divergence: Any


def free_energy(model, params, x, q, weights=None):
    """F(q, θ) = Σ_i w_i Σ_k q_ik (log p(x_i, z = k | params) − log q_ik), a scalar in nats.

    = log p(x | params) − KL(q ‖ p(z | x, params)), so F ≤ the log-likelihood, with equality at the
    posterior (Neal & Hinton 1998). No term is dropped; the log prior is not part of F.

    Args:
      model: a model with `log_joint(params, x) -> (n, k)`, or with a `free_energy(params, x, q)` of
        its own, per unit (n,).
      q: responsibilities (n, k), rows summing to 1, or what `model.posterior` returned; of several
        latent variables (`MeanField`) those of each, (n, m, k).
      params, x: those of the model, as in `jaxem.model`.
      weights: (n,), or None for 1.

    Raises NotImplementedError for a model with neither function.
    """
    model = adopt(model)
    if has(model, Bound) or has(model, LocalPosterior):
        return _total(model.free_energy(params, x, q), weights)
    q, model = responsibilities_of(q), _with_classes(model)
    joint = model.log_joint(params, x)
    return _total(expectation(q, joint) + _entropy(q), weights)


def _with_classes(model):
    """The model, which has a `log_joint` of its classes; NotImplementedError for another one."""
    model = adopt(model)
    if has(model, LocalPosterior) or not has(model, FiniteLatents):
        raise NotImplementedError(f"{name_of(model)} must define log_joint(params, x)")
    return model


def decompose(model, params, x, q, weights=None) -> FreeEnergy:
    """`free_energy` with its terms: expected log joint + entropy, and evidence − KL.

    Each term is summed by itself, so that the two decompositions check each other.

    Args:
      model, params, x, weights: as in `free_energy`, of a model with a `log_joint`.
      q: responsibilities (n, k), or what `model.posterior` returned.

    Raises NotImplementedError for a model without a `log_joint`. Source: Neal & Hinton 1998.
    """
    q, model = responsibilities_of(q), _with_classes(model)
    joint = model.log_joint(params, x)
    posterior, evidence = model.posterior(params, x)
    return FreeEnergy(
        free_energy(model, params, x, q, weights),
        _total(expectation(q, joint), weights),
        _total(_entropy(q), weights),
        _total(evidence, weights),
        _total(rel_entr(q, responsibilities_of(posterior)).sum(-1), weights),
    )


def ascent(model, before, after, x, weights=None) -> Ascent:
    """The identity behind EM's monotonicity, log p(x | θ₁) − log p(x | θ₀) = [g(θ₁) − g(θ₀)] + KL.

    Args:
      model: a model with `log_joint(params, x) -> (n, k)`.
      before, after: params θ₀, at whose posterior q₀ the expectation is taken, and any θ₁.
      x: the data, (n, d) or a tree of arrays.
      weights: (n,), or None for 1.

    Raises NotImplementedError for a model without a `log_joint`. Source: Dempster, Laird & Rubin
    1977, lemma 1 and theorem 1.
    """
    model = _with_classes(model)
    (first, evidence_before), (second, evidence_after) = (
        model.posterior(params, x) for params in (before, after)
    )
    q = responsibilities_of(first)
    expected = expectation(q, model.log_joint(after, x)) - expectation(
        q, model.log_joint(before, x)
    )
    return Ascent(
        _total(evidence_after - evidence_before, weights),
        _total(expected, weights),
        _total(rel_entr(q, responsibilities_of(second)).sum(-1), weights),
    )


def _entropy(q):
    """−Σ_k q_ik log q_ik per unit (n,)."""
    return safe_entr(q).sum(-1)


def _total(per_unit, weights):
    if weights is None:
        return per_unit.sum()
    return jnp.where(weights > 0, weights * per_unit, 0).sum()
