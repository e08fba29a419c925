"""Special functions of the boundary: values, slopes and types where the library's have a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special as reference

import jaxem
from jaxem.numerics import special


def slopes(function, *values):
    return np.array(jax.grad(function, argnums=tuple(range(len(values))))(*values))


def test_logarithms_at_zero(dtype):
    zero, half, minus_one = dtype(0), dtype(0.5), dtype(-1)
    assert special.safe_xlogy(zero, zero) == 0 and special.safe_xlog1py(zero, minus_one) == 0
    np.testing.assert_array_equal(slopes(special.safe_xlogy, zero, zero), 0)
    np.testing.assert_array_equal(slopes(special.safe_xlog1py, zero, minus_one), 0)
    np.testing.assert_allclose(slopes(special.safe_xlogy, zero, half), [np.log(0.5), 0], rtol=1e-6)
    assert special.safe_xlogy(half, zero) == -np.inf
    assert special.safe_entr(zero) == 0 and jax.grad(special.safe_entr)(zero) == 0
    p = np.linspace(0, 1, 11).astype(dtype)
    np.testing.assert_allclose(special.safe_entr(p), reference.entr(p), rtol=1e-6)
    assert np.isnan(special.safe_entr(dtype(np.nan)))
    assert special.safe_entr(p).dtype == special.safe_xlogy(p, p).dtype == dtype


def test_betaln(dtype):
    a, b = np.meshgrid(np.geomspace(1e-3, 1e4, 30), [1e-3, 0.5, 1.0, 7.9, 8.1, 50.0, 1e4])
    a, b = a.astype(dtype), b.astype(dtype)
    got = jax.jit(special.betaln)(a, b)
    wanted = reference.betaln(a.astype(float), b.astype(float))
    assert got.dtype == dtype
    error = np.abs(got - wanted) / (1 + np.abs(wanted))
    assert error.max() < (1e-11 if dtype == np.float64 else 3e-6)
    found = jax.grad(special.betaln)(dtype(3), dtype(3))
    np.testing.assert_allclose(found, reference.digamma(3) - reference.digamma(6), rtol=1e-5)


@pytest.mark.parametrize("x", [1e-30, 1e-3, 0.3, 4.0, 1e4])
def test_slope_of_digamma(x, dtype):
    if dtype == np.float32 and x < 1e-15:
        return  # 1/x² overflows
    found = jax.grad(special.digamma)(dtype(x))
    np.testing.assert_allclose(found, reference.polygamma(1, dtype(x).astype(float)), rtol=1e-5)


def test_slope_of_a_prior_at_concentration_one(dtype):
    """Concentration 1 is where the factor of log p is 0, not its slope."""
    probs = np.array([0.2, 0.3, 0.5], dtype)

    def density(concentration):
        return jaxem.DirichletPrior(concentration).log_density(jnp.asarray(probs))

    wanted = 3 * (reference.digamma(3) - reference.digamma(1)) + np.log(probs).sum()
    np.testing.assert_allclose(jax.grad(density)(dtype(1)), wanted, rtol=1e-5)


def test_priors_on_the_boundary(dtype):
    corner = jnp.asarray([0, 0.5, 0.5], dtype)
    for prior, at, value in (
        (jaxem.DirichletPrior(1.0), corner, np.log(2)),
        (jaxem.BetaPrior(1.0, 2.0), corner[0], np.log(2)),
        (jaxem.BetaPrior(2.0, 1.0), 1 - corner[0], np.log(2)),
        (jaxem.GammaPrior(1.0, 2.0), corner[0], np.log(2)),
    ):
        density = prior.log_density(at)
        assert density.dtype == dtype
        np.testing.assert_allclose(density, value, rtol=3e-6)
        assert np.isfinite(jax.grad(prior.log_density)(at)).all()
