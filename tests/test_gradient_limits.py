"""The gradient at its limits: slow climbs, loose tolerances, saddles, float32, ragged batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import krylov
from jax.flatten_util import ravel_pytree
from slopes import MODEL, OTHER, TIGHT, X, difference, dotted, fast, first, groups, loss

import jaxem

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")


@functools.cache
def off():
    """Params off the end of the fit."""
    end = first()
    return dataclasses.replace(
        end, components=dataclasses.replace(end.components, mean=end.components.mean + 0.2)
    )


def along(x, direction, init, **options):
    """Σ coefficient · param, its derivative along a direction, and whether that is trusted."""

    def value(x):
        r = jaxem.fit(MODEL, x, init=init, **options)
        return dotted(r.params), r.gradient_ok

    return jax.jvp(value, (x,), (direction,), has_aux=True)


def test_a_nearly_singular_fit_against_differences():
    """Two groups that overlap: the error falls by a thousandth a step."""
    x = groups(seed=2, gap=0.9)
    labels = jaxem.Labels((np.arange(60) < 20).astype(int))
    end = jaxem.fit(MODEL, x, init=labels, **TIGHT).params
    flat, back = ravel_pytree(end)

    def step(flat):
        new = jaxem.EM().evaluate(MODEL, back(flat), x, jnp.ones(60)).proposal
        return ravel_pytree(new)[0]

    rate = np.abs(np.linalg.eigvals(jax.jacfwd(step)(flat))).max()
    assert 0.998 < rate < 1
    ended = fast(lambda x: along(x, OTHER, end, tol=0, max_iter=40_000)[0])
    expected = difference(ended, x, OTHER, h=1e-5)
    push = fast(lambda x, tol: along(x, OTHER, end, tol=tol, max_iter=20_000)[1:])
    slope, ok = push(x, 1e-13)
    assert ok
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_a_loose_fit_has_the_gradient_of_the_optimum():
    """The params are off in the third digit; what they answer to the data is not."""
    near = fast(lambda x, tol: along(x, OTHER, off(), tol=tol))
    loose, slope, ok = near(X, 1e-4)
    tight, expected, _ = near(X, 1e-13)
    assert ok and abs(loose / tight - 1) > 1e-4
    np.testing.assert_allclose(slope, expected, rtol=1e-8)


@pytest.mark.parametrize("d", [1, 9])
def test_a_saddle_is_not_trusted(d):
    """Three groups and two components, which share the one in the middle: EM stands still there by
    symmetry, with 6 params and with 38, but a hair beside it the fit ends elsewhere."""
    rng = np.random.default_rng(0)
    far, middle = rng.normal(size=(20 * d, d)), rng.normal(size=(8 * d, d))
    far[:, 0] -= 6
    x = np.concatenate([far, -far, middle, -middle])
    shares = np.full((len(x), 2), 0.5)
    shares[: len(far)], shares[len(far) : 2 * len(far)] = [0.999, 0.001], [0.001, 0.999]
    init = jaxem.fit(MODEL, x, init=jaxem.Responsibilities(shares), max_iter=0, tol=0).params

    def value(x):
        r = jaxem.fit(MODEL, x, init=init)
        return dotted(r.params), (r.converged, r.gradient_ok)

    gradient, (converged, ok) = fast(jax.grad(value, has_aux=True))(x)
    assert converged and not ok and np.all(np.isnan(gradient))


def test_float32():
    x = X.astype(np.float32)
    init = jax.tree.map(lambda a: np.asarray(a, np.float32), off())

    def value(x):
        r = jaxem.fit(MODEL, x, init=init)
        return dotted(r.params), r.gradient_ok

    slope, ok = fast(jax.grad(value, has_aux=True))(x)
    assert ok and slope.dtype == np.float32
    exact = fast(jax.grad(loss))(X)
    assert np.linalg.norm(slope - exact) < 1e-4 * np.linalg.norm(exact)


def test_a_ragged_batch_of_traced_arrays():
    """As alone, data and weights; and in their order where lengths fall on several grids."""
    sets = [X, X[:57]]
    weights = [np.linspace(0.5, 1.5, len(x)) for x in sets]

    def total(sets, weights):
        init = jax.tree.map(lambda a: jnp.stack([a] * len(sets)), first())
        r = jaxem.fit(MODEL, jaxem.Batch(sets), init=init, weights=weights, **TIGHT)
        return jax.vmap(dotted)(r.params).sum()

    def alone(x, w):
        return dotted(jaxem.fit(MODEL, x, init=first(), weights=w, **TIGHT).params)

    of_sets, of_weights = fast(jax.grad(total, (0, 1)))(sets, weights)
    dx, dw = fast(jax.grad(alone, (0, 1)))(sets[1], weights[1])
    np.testing.assert_allclose(of_sets[1], dx, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(of_weights[1], dw, rtol=1e-7, atol=1e-10)
    sets, weights = [X[:20], X, X[:40]], [np.ones(20), np.ones(60), np.ones(40)]
    shapes = jax.eval_shape(jax.grad(total), sets, weights)
    assert [a.shape for a in shapes] == [x.shape for x in sets]


@pytest.mark.parametrize("size", [7, 60])
def test_krylov_against_a_direct_solve(size):
    rng = np.random.default_rng(size)
    matrix = np.eye(size) - 0.7 * rng.normal(size=(size, size)) / np.sqrt(size)
    b = rng.normal(size=size)
    solve = jax.jit(lambda m, b: krylov(lambda v: m @ v, b, 1e-12, 400))
    x, reached, _ = solve(matrix, b)
    assert reached
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-9, atol=1e-10)
    assert np.all(solve(matrix, 0 * b)[0] == 0)
    matrix[:, 0] = matrix[:, 1]
    x, reached, _ = solve(matrix, b)
    assert not reached or np.abs(x).max() > 1e11
