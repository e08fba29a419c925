"""F(q, θ) and its decompositions, on every model."""

import jax
import numpy as np
import pytest
from zoo import MODELS, K, N, usually

import jaxem
from jaxem.analysis.free_energy import ascent, decompose


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8)


@pytest.fixture(params=usually(MODELS))
def case(request):
    model, data = MODELS[request.param]
    weights = np.random.default_rng(1).uniform(0.2, 2.0, N)
    return model, data, weights, jax.jit(model.init)(jax.random.key(3), data, weights)


def test_both_forms_agree(case):
    """At a q that is not the posterior, with each term summed by itself."""
    model, data, weights, params = case
    r = np.asarray(model.posterior(params, data)[0].responsibilities)
    unknown = getattr(data, "labels", np.full(N, -1)) < 0
    other = np.random.default_rng(0).dirichlet(np.ones(K), N)
    q = np.where(unknown[:, None], 0.5 * r + 0.5 * other, r)
    parts = jax.jit(decompose, static_argnums=0)(model, params, data, q, weights)
    close(parts.value, parts.expected + parts.entropy)
    close(parts.value, parts.evidence - parts.divergence)
    assert parts.divergence > 1e-3 and parts.entropy > 1e-3
    close(parts.entropy, -(weights[:, None] * q * np.log(np.where(q > 0, q, 1))).sum())
    close(parts.evidence, (weights * np.asarray(model.log_prob(params, data))).sum())


def test_why_em_climbs(case):
    """log p(x|θ₁) − log p(x|θ₀) = [g(θ₁) − g(θ₀)] + KL, and both terms are what they should be."""
    model, data, weights, params = case
    after = jaxem.EM().evaluate(model, params, data, weights).proposal
    terms = jax.jit(ascent, static_argnums=0)(model, params, after, data, weights)
    close(terms.gain, terms.expected + terms.divergence)
    prior = float(model.log_prior(after)) - float(model.log_prior(params))
    assert terms.expected + prior > -1e-8 and terms.divergence > 0
    back = jax.jit(ascent, static_argnums=0)(model, after, params, data, weights)
    close(back.gain, -terms.gain)
    close(back.gain, back.expected + back.divergence)
    assert back.divergence > 0
    q = model.posterior(params, data)[0]
    moved = decompose(model, after, data, q, weights).divergence
    close(terms.divergence, moved)
