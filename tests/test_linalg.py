"""Factors, floors and differences of gamma functions; and what a collapse does to a fit."""

import decimal
import warnings
from fractions import Fraction
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import (
    Factor,
    compilations,
    floored,
    is_floored,
    solve_shape,
    special,
    triangular_inverse,
)
from oracles import spd

import jaxem
from jaxem import Status

STRUCTURES = ("full", "tied", "diagonal", "spherical")


@pytest.mark.parametrize("d", [1, 3, 8, 10, 37])
def test_factor(d, dtype):
    rng = np.random.default_rng(d)
    a, x = spd(rng, 2, d=d).astype(dtype), rng.normal(size=(2, d, 5)).astype(dtype)
    exact, tol = a.astype(float), 1e-11 if dtype == np.float64 else 1e-4

    @jax.jit
    def ours(a, x):
        factor = Factor(a)
        indefinite = Factor(a - 2 * a[..., -1:, -1:] * jnp.eye(d, dtype=dtype)).singular()
        return (factor.log_det, factor.mahalanobis(x), factor.pivots), (
            factor.singular(), indefinite, floored(a, 1e-3), is_floored(a, 1e-3),
        )  # fmt: skip

    got, (singular, indefinite, same, flag) = ours(a, x)
    expected = (
        np.linalg.slogdet(exact)[1],
        (x * np.linalg.solve(exact, x)).sum(1),
        np.diagonal(np.linalg.cholesky(exact), axis1=1, axis2=2) ** 2,
    )
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=tol, atol=tol)
    assert not singular.any() and indefinite.all() and not flag.any()
    np.testing.assert_array_equal(same, a)  # bit for bit


@pytest.mark.parametrize("d", [16, 37])
def test_inverse_of_a_triangle_and_its_derivative(d):
    rng = np.random.default_rng(d)
    lower, slope = np.linalg.cholesky(spd(rng, 2, d=d)), rng.normal(size=(2, d, d))
    upper = np.triu(rng.normal(size=(d, d)), 1)  # is not read
    value, pull = jax.vjp(jax.jit(triangular_inverse), lower + upper)
    inverse = np.linalg.inv(lower)
    transposed = np.swapaxes(inverse, 1, 2)
    np.testing.assert_allclose(np.tril(value), inverse, rtol=1e-10, atol=1e-12)
    expected = -np.tril(transposed @ np.tril(slope) @ transposed)
    np.testing.assert_allclose(pull(np.tril(slope))[0], expected, rtol=1e-9, atol=1e-11)


def test_wide_matrices_take_few_operations():
    """Compile time grows with them: those of d = 300 took 20 seconds."""

    def operations(function, d):
        return str(jax.make_jaxpr(function)(jnp.zeros((2, d, d)))).count("\n")

    for function in (triangular_inverse, lambda a: floored(a, 1e-3), lambda a: is_floored(a, 1.0)):
        assert operations(function, 300) < 3 * operations(function, 32)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_floor_makes_a_singular_matrix_sound_and_is_recognised(d, dtype):
    rng = np.random.default_rng(0)
    eps = np.finfo(dtype).eps
    rows = rng.normal(size=(20, d, 4 * d))
    rows[:10, -1] = rows[:10, :-1].sum(1)  # collinear
    rows[10:15, 0] = 0  # constant
    rows[15:] = 0
    a = rows @ np.swapaxes(rows, 1, 2) / (4 * d)
    noise = rng.uniform(-1, 1, a.shape) * eps * np.sqrt(a[:, :1].max() * a[:, 0].max())
    a = (a + np.tril(noise, -1) * (a != 0)).astype(dtype)
    floor = np.geomspace(1, 10, d).astype(dtype) * dtype(100 * eps**1.5)
    new = jax.jit(floored)(a, floor)
    assert jnp.all(Factor(new).pivots > 0) and jnp.all(is_floored(new, floor))
    assert jnp.all(jnp.diagonal(new, axis1=1, axis2=2) >= floor)
    np.testing.assert_allclose(new, a, atol=200 * d * eps * a.max())


# The gamma functions, against 80 decimal digits.


def bernoulli(m):
    b = [Fraction(1)]
    for n in range(1, m + 1):
        b.append(-sum(comb(n + 1, j) * b[j] for j in range(n)) / (n + 1))
    return b


BERNOULLI = bernoulli(40)
TWO_PI = decimal.Decimal(
    "6.28318530717958647692528676655900576839433879875021164194988918461563281"
)


def lgamma(y):
    """Stirling's series at y + 60, and the recurrence down from there."""
    z, down = y + 60, decimal.Decimal(1)
    for j in range(60):
        down *= y + j
    total = (z - decimal.Decimal("0.5")) * z.ln() - z + TWO_PI.ln() / 2 - down.ln()
    for m in range(2, 41, 2):
        b = BERNOULLI[m]
        total += decimal.Decimal(b.numerator) / b.denominator / (m * (m - 1) * z ** (m - 1))
    return total


def exact(name, y):
    """One of the functions of jaxem.special, of the float y, as a float."""
    with decimal.localcontext(prec=80):
        y = decimal.Decimal(float(y))
        h = y * decimal.Decimal("1e-13")
        low, at, high = lgamma(y - h), lgamma(y), lgamma(y + h)
        if name == "log_minus_digamma":
            return float(y.ln() - (high - low) / (2 * h))
        if name == "inverse_minus_trigamma":
            return float(1 / y - (high + low - 2 * at) / h**2)
        return float(lgamma(y + decimal.Decimal(name)) - at)


@pytest.mark.parametrize("name", ["log_minus_digamma", "inverse_minus_trigamma", 0.5, 1.0, 5.0])
def test_special(name, dtype):
    y = np.concatenate([np.geomspace(1e-2, 1e6, 60), [4.99, 5.01, 19.99, 20.01]]).astype(dtype)
    if isinstance(name, str):
        got = jax.jit(getattr(special, name))(y)
    else:
        got = jax.jit(special.log_gamma_ratio, static_argnums=1)(y, name)
    expected = np.array([exact(name, v) for v in y])
    assert got.dtype == dtype
    tol = 1e-12 if dtype == np.float64 else 2e-5
    # log Γ(y + 1) − log Γ(y) = log y passes through 0
    np.testing.assert_allclose(got, expected, rtol=tol, atol=0 if isinstance(name, str) else tol)


def test_solve_shape_inverts_log_minus_digamma(dtype):
    a = np.geomspace(0.02, 1e4, 40)
    spread = np.array([exact("log_minus_digamma", v) for v in a])
    tol = 1e-11 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(jax.jit(solve_shape)(spread.astype(dtype)), a, rtol=tol)


# Collapse.


def collapsed(x, dtype, structure, k=2, **options):
    bank = jaxem.Normal(structure)
    with pytest.warns(jaxem.FitWarning, match="DEGENERATE"):
        result = jaxem.fit(jaxem.Mixture(bank, k=k), x.astype(dtype), key=0, **options)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
    assert np.isfinite(result.log_likelihood)
    return result


@pytest.mark.parametrize("structure", STRUCTURES)
def test_identical_rows_and_constant_columns(structure, dtype):
    x = np.tile([3.0, -1e4, 0.0], (24, 1))
    result = collapsed(x, dtype, structure)
    np.testing.assert_allclose(result.params.components.mean, x[:2], rtol=1e-6)
    x[:, :2] = np.random.default_rng(0).normal(size=(24, 2))
    if structure == "spherical":  # whose one variance is the mean over columns, and sound
        return
    with pytest.warns(jaxem.FitWarning, match="column 2 is the same in all 24 units"):
        result = jaxem.fit(jaxem.Mixture(jaxem.Normal(structure), k=1), x.astype(dtype), key=0)
    assert result.converged


@pytest.mark.parametrize("structure, d", [("full", 2), ("tied", 10)])
def test_collinear_columns_are_always_noticed(structure, d, dtype):
    x = np.random.default_rng(0).normal(size=(2000, d))
    x[:, -1] = x[:, :-1] @ np.arange(1, d) + 3
    collapsed(x, dtype, structure, k=1)


def test_no_restart_on_tied_values_is_nonfinite(dtype):
    x = np.random.default_rng(0).integers(0, 3, size=(60, 2))
    model = jaxem.Mixture(jaxem.Normal("full"), k=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)
        result = jaxem.fit(model, x.astype(dtype), key=0, restarts=64, init="random")
    assert np.isin(result.restarts.status, [Status.DEGENERATE, Status.CONVERGED]).all()
    assert (result.restarts.status == Status.DEGENERATE).any()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_floor_is_in_the_units_of_the_data_and_flagged_where_it_acts(structure):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * ([1, 1] if structure == "spherical" else [1e-3, 1e3])
    x = (x - x.mean(0)) / x.std(0) * ([1, 1] if structure == "spherical" else [1e-3, 1e3])
    least = x.var(0).min()
    off = jaxem.fit(jaxem.Mixture(jaxem.Normal(structure, floor=0.7 * least), k=1), x, key=0)
    free = jaxem.fit(jaxem.Mixture(jaxem.Normal(structure), k=1), x, key=0)
    got, expected = off.params.components.covariance, free.params.components.covariance
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    with pytest.warns(jaxem.FitWarning, match="DEGENERATE"):
        on = jaxem.fit(jaxem.Mixture(jaxem.Normal(structure, floor=2 * least), k=1), x, key=0)
    raised = np.asarray(on.params.components.covariance)
    raised = np.diagonal(raised, axis1=-2, axis2=-1) if structure in ("full", "tied") else raised
    np.testing.assert_allclose(np.unique(raised)[0], 2 * least, rtol=1e-6)
    if structure != "spherical":
        np.testing.assert_allclose(raised.max(), 1e6, rtol=1e-6)


def test_no_call_of_lapack_on_a_cpu():
    """Two batched calls at a time can wait for each other for ever."""
    model, x = jaxem.Mixture(jaxem.Normal(), k=3), np.zeros((60, 20), np.float32)
    text = jax.jit(lambda x: jaxem.fit(model, x, key=0).params).lower(x).as_text()
    assert "while" in text and "lapack" not in text


def test_a_factor_outside_of_jit_is_compiled_once():
    matrices = np.broadcast_to(np.eye(20, dtype=np.float32), (3, 20, 20))
    Factor(matrices).mahalanobis(matrices)
    with compilations() as names:
        Factor(matrices + matrices).mahalanobis(matrices)
    assert not names
