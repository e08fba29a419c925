"""F(q, θ) and its decompositions, on every model."""

import chex
import numpy as np
import pytest
from internals import ascent, decompose
from quantities import WEIGHTS, quantities
from zoo import MODELS, usually

import jaxem


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-8)


every_model = pytest.mark.parametrize("name", usually(MODELS))


@every_model
def test_both_forms_agree(name):
    """At a q that is not the posterior, with each term summed by itself."""
    seen = quantities(name)
    parts, q = seen["parts"], seen["far"]
    close(parts.value, parts.expected + parts.entropy)
    close(parts.value, parts.evidence - parts.divergence)
    assert parts.divergence > 1e-3 and parts.entropy > 1e-3
    close(parts.entropy, -(WEIGHTS[:, None] * q * np.log(np.where(q > 0, q, 1))).sum())
    close(parts.evidence, WEIGHTS @ seen["evidence"])


@every_model
def test_why_em_climbs(name):
    """log p(x|θ₁) − log p(x|θ₀) = [g(θ₁) − g(θ₀)] + KL, and both terms are what they should be."""
    seen = quantities(name)
    terms = seen["ascents"]
    gain, expected, divergence = terms.gain, terms.expected, terms.divergence
    close(gain, expected + divergence)
    before, after = seen["log prior"]
    assert expected[0] + after - before > -1e-8 and (divergence > 0).all()
    close(gain[0], -gain[1])
    close(divergence[0], seen["divergence"])


def test_both_forms_need_a_log_joint():
    for function in (decompose, ascent):
        with pytest.raises(NotImplementedError, match=r"LDA must define log_joint\(params, x\)"):
            function(jaxem.LDA(2), None, None, None)
