"""The derivative of the EM map taken apart by components: the same matrix as column by column."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import SmoothMap, has, inward, standardized
from jax.flatten_util import ravel_pytree
from slopes import FAST
from zoo import MODELS, N

import jaxem

KNOWN = ("normal-diagonal-map", "bernoulli", "gamma", "product", "weights-map", "labelled")
RARE = ("normal-full", "normal-diagonal", "normal-spherical", "normal-full-map")
RARE += ("normal-spherical-map", "poisson", "poisson-map", "bernoulli-map", "categorical")
RARE += ("categorical-map", "multinomial", "multinomial-map", "exponential", "exponential-map")
RARE += ("gamma-map",)


@pytest.mark.parametrize("names", [KNOWN, pytest.param(RARE, marks=pytest.mark.slow)])
def test_it_is_the_jacobian_of_the_map(names):
    """Away from the fixed point and with weights too; all models in one program."""
    weights = np.random.default_rng(1).uniform(0.5, 1.5, N)
    weights[3] = 0
    starts = {}
    for name in names:
        model, x = MODELS[name]
        starts[name] = jaxem.fit(model, x, key=0, max_iter=3, tol=0, weights=weights).params

    def both(starts):
        out = {}
        for name, params in starts.items():
            model, x = MODELS[name]
            view = standardized(model, jax.tree.map(jnp.asarray, x), jnp.asarray(weights))
            flat, back = ravel_pytree(inward(model, view.units, params))

            def step(flat, view=view, back=back):
                seen = jaxem.EM().map(view.model, back(flat), view.data, weights)
                return ravel_pytree(seen.proposal)[0]

            known = view.model.smooth_map().jacobian(back(flat), view.data, weights)
            out[name] = known, jax.jacfwd(step)(flat)
        return out

    for name, (known, expected) in jax.jit(both, compiler_options=FAST)(starts).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(known, expected, rtol=1e-9, atol=1e-11 * scale, err_msg=name)


@dataclasses.dataclass(frozen=True)
class Own(jaxem.Normal):
    """What a family says of itself does not hold for one that is made from it."""


def test_others_go_by_products():
    others = (jaxem.Normal("tied"), jaxem.StudentT(), MODELS["each"].model.components, Own())
    mixed = jaxem.Product({"a": (jaxem.Normal(), 0), "b": (jaxem.StudentT(), 1)})
    for bank in (*others, mixed):
        assert jaxem.Mixture(bank, k=2).smooth_map() is None
    assert not has(MODELS["restricted"].model, SmoothMap)
