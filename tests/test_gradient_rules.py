"""What the gradient of a fit is worth: three ways that agree, transformations, honesty, memory."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slopes import (
    MODEL,
    OTHER,
    TIGHT,
    X,
    difference,
    dotted,
    fast,
    first,
    fitted,
    groups,
    loss,
)

import jaxem

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")


@pytest.fixture(scope="module")
def slope():
    """The implicit gradient of `loss` at X."""
    return fast(jax.grad(loss))(X)


def test_implicit_unrolled_and_differences_agree(slope):
    """Forward and reverse, pairwise."""
    unrolled = fast(jax.grad(lambda x: loss(x, gradient="unrolled", max_iter=400)))(X)
    push = fast(lambda x: jax.jvp(loss, (x,), (OTHER,))[1])(X)
    slow = fast(lambda x: loss(x, tol=0, max_iter=2000))
    expected = difference(slow, X, OTHER)
    np.testing.assert_allclose(unrolled, slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(push, np.vdot(slope, OTHER), rtol=1e-9)
    np.testing.assert_allclose(np.vdot(slope, OTHER), expected, rtol=1e-6)
    np.testing.assert_allclose(np.vdot(unrolled, OTHER), expected, rtol=1e-6)


def test_a_second_derivative_is_the_difference_of_first_ones():
    def along(x):
        return jax.jvp(loss, (x,), (OTHER,))[1]

    second = fast(jax.grad(along))(X)
    expected = difference(fast(along), X, OTHER)
    np.testing.assert_allclose(np.vdot(second, OTHER), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_hessian():
    """Forward over reverse, along two directions."""
    ways = np.stack([OTHER, np.ones_like(X) * X[:, :1]])

    def at(t):
        return loss(X + jnp.tensordot(t, ways, 1))

    hessian = fast(jax.hessian(at))(np.zeros(2))
    slope = fast(jax.grad(at))
    expected = [difference(slope, np.zeros(2), e) for e in np.eye(2)]
    np.testing.assert_allclose(hessian, np.stack(expected), rtol=1e-6)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-8)


def test_the_start_has_gradient_zero():
    r = np.full((60, 2), 0.3)
    r[:20, 0], r[20:, 1] = 0.7, 0.7

    def from_params(init):
        return loss(X, init=init)

    def from_shares(shares):
        return loss(X, init=jaxem.Responsibilities(shares))

    for gradient in (jax.grad(from_params)(first()), jax.grad(from_shares)(r)):
        assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_eager_jit_vmap_and_batch_agree(slope):
    stack = np.stack([X, groups(1), X[::-1]])
    many = jax.tree.map(lambda a: jnp.stack([a] * 3), first())
    one = jax.grad(loss)(jnp.asarray(X))
    np.testing.assert_allclose(one, slope, rtol=1e-8, atol=1e-10)
    mapped = fast(jax.vmap(jax.grad(loss)))(stack)
    outside = fast(jax.grad(lambda xs: jax.vmap(loss)(xs).sum()))(stack)

    def of_batch(xs):
        return sum(dotted(jax.tree.map(lambda a: a[i], _batch(xs).params)) for i in range(3))  # noqa: B023

    def _batch(xs):
        return jaxem.fit(MODEL, jaxem.Batch(xs), init=many, **TIGHT)

    batch = fast(jax.grad(of_batch))(stack)
    np.testing.assert_allclose(mapped[0], slope, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(outside, mapped, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(batch, mapped, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "restarts",
    [pytest.param(5, marks=pytest.mark.slow), jaxem.Restarts(6, screen_iters=20, keep=2)],
)
def test_the_winner_of_restarts_is_differentiated(restarts):
    def best(x, how):
        return jaxem.fit(MODEL, x, key=1, restarts=restarts, gradient=how, **TIGHT)

    winner = best(X, "implicit").params
    found = jax.grad(lambda x: dotted(best(x, "implicit").params))(X)
    alone = jax.grad(lambda x: dotted(fitted(x, init=winner).params))(X)
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-9)
    every = jax.grad(lambda x: best(x, "implicit").restarts.objective.sum())(X)
    assert np.all(np.isnan(every))


def test_one_restart_is_the_fit_itself(slope):
    def through(x):
        return dotted(jax.tree.map(lambda a: a[0], fitted(x).restarts.params))

    np.testing.assert_allclose(jax.grad(through)(X), slope, rtol=1e-8, atol=1e-10)


def test_one_step_is_the_last_map_alone():
    params = fitted(X).params

    def step(x):
        return dotted(jaxem.EM().evaluate(MODEL, params, x, jnp.ones(60)).proposal)

    found = jax.grad(lambda x: loss(x, gradient="one_step"))(X)
    np.testing.assert_allclose(found, jax.grad(step)(X), rtol=1e-6, atol=1e-9)


def test_an_absent_unit_has_the_one_sided_gradient_of_its_weight():
    weights = np.ones(60)
    weights[7] = 0
    found = jax.grad(lambda w: loss(X, weights=w))(weights)[7]
    value = jax.grad(lambda w: fitted(X, weights=w).objective)(weights)[7]

    def at(w):
        r = fitted(X, weights=np.where(np.arange(60) == 7, w, 1.0), tol=0, max_iter=2000)
        return np.array([dotted(r.params), r.objective])

    h = 1e-3
    ahead = (-11 * at(0) + 18 * at(h) - 9 * at(2 * h) + 2 * at(3 * h)) / (6 * h)
    np.testing.assert_allclose([found, value], ahead, rtol=1e-6)


def test_an_absent_unit_may_hold_anything():
    x = np.concatenate([X, [[np.nan, np.inf]]])
    weights = np.append(np.ones(60), 0.0)
    dx, dw = jax.grad(lambda x, w: loss(x, weights=w), (0, 1))(x, weights)
    assert np.all(dx[-1] == 0) and dw[-1] == 0
    np.testing.assert_allclose(dx[:-1], jax.grad(loss)(X), rtol=1e-8, atol=1e-10)


def flagged(model, x, **options):
    """(gradient_ok, the gradient of the params) under differentiation."""

    def outcome(x):
        r = jaxem.fit(model, x, **options)
        return dotted(r.params), r.gradient_ok

    gradient, ok = jax.grad(outcome, has_aux=True)(jnp.asarray(x))
    return bool(ok), np.asarray(gradient)


def test_an_unconverged_fit_is_flagged_and_its_gradient_nan():
    ok, gradient = flagged(MODEL, X, key=0, max_iter=5)
    assert not ok and np.all(np.isnan(gradient))
    result = jaxem.fit(MODEL, X, key=0, max_iter=5)
    assert not result.gradient_ok
    assert np.all(np.isnan(jax.grad(lambda x: fitted(x, tol=0, max_iter=5).objective)(X)))


def test_a_loose_tolerance_is_flagged_although_it_converged():
    """Stopped far from the fixed point by a rule that cannot know; the gradient does."""
    x = groups(gap=1.0, n=60, seed=4)
    options = {"key": 0, "tol": 0.05, "criterion": "change"}
    assert jaxem.fit(MODEL, x, **options).converged
    ok, gradient = flagged(MODEL, x, **options)
    assert not ok and np.all(np.isnan(gradient))


def test_a_degenerate_fit_is_flagged():
    x = np.concatenate([X, np.full((4, 2), 9.0)])
    labels = jaxem.Labels((np.arange(64) >= 60).astype(int))
    assert jaxem.fit(MODEL, x, init=labels).status == jaxem.Status.DEGENERATE
    ok, gradient = flagged(MODEL, x, init=labels)
    assert not ok and np.all(np.isnan(gradient))


def test_singular_fits_are_flagged():
    """Identical components, and latent classes that three answers do not identify."""
    mean, variance = X.mean(0), X.var(0)
    same = jaxem.MixtureParams(
        jnp.array([0.4, 0.6]), jaxem.NormalParams(jnp.stack([mean] * 2), jnp.stack([variance] * 2))
    )
    ok, gradient = flagged(MODEL, X, init=same)
    assert not ok and np.all(np.isnan(gradient))

    answers = (np.random.default_rng(1).random((80, 3)) < X.mean()).astype(float)
    model = jaxem.Mixture(jaxem.Bernoulli(), k=3)

    def weighted(w):
        r = jaxem.fit(model, answers, key=0, weights=w, restarts=4)
        return dotted(r.params), (r.gradient_ok, r.converged)

    gradient, (ok, converged) = jax.grad(weighted, has_aux=True)(np.ones(80))
    assert converged and not ok and np.all(np.isnan(gradient))


def test_a_fit_that_is_masked_out_leaves_the_others_alone(slope):
    """A batch with a fit that did not converge, under a sum over those that did."""
    stack = np.stack([X, X])
    start = jax.tree.map(lambda a: jnp.stack([a, a]), first())
    start = dataclasses.replace(start, weights=start.weights.at[1].set(jnp.array([0.5, 0.5])))

    def total(xs, masked):
        r = jaxem.fit(MODEL, jaxem.Batch(xs), init=start, tol=1e-7, max_iter=8)
        each = jax.vmap(dotted)(r.params)
        return jnp.where(r.gradient_ok | (not masked), each, 0).sum(), r.gradient_ok

    gradient, ok = jax.grad(total, has_aux=True)(stack, True)
    assert list(ok) == [True, False]
    np.testing.assert_allclose(gradient[0], slope, rtol=1e-5, atol=1e-7)
    assert np.all(gradient[1] == 0)
    gradient, _ = jax.grad(total, has_aux=True)(stack, False)
    assert np.all(np.isfinite(gradient[0])) and np.all(np.isnan(gradient[1]))


@pytest.mark.parametrize("accelerator", [jaxem.SQUAREM(), jaxem.Anderson()])
def test_accelerated_fits_have_it(slope, accelerator):
    method = jaxem.EM(accelerator=accelerator)
    found = fast(jax.grad(lambda x: loss(x, method=method)))(X)
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-9)


def test_other_rules_refuse():
    steps = (jaxem.Hard(), jaxem.Constrained.sizes([0.5, 0.5]), jaxem.Stochastic())
    for method in (*(jaxem.EM(e_step=step) for step in steps), jaxem.OnlineEM()):
        for how in ("implicit", "one_step"):
            with pytest.raises(TypeError, match="not known for Hard"):
                jax.eval_shape(jax.grad(partial(loss, method=method, gradient=how)), X)


@pytest.mark.parametrize(
    "options",
    [pytest.param({"gradient": "one_step"}, marks=pytest.mark.slow), {"gradient": "unrolled"}],
)
def test_other_ways_under_vmap_and_on_a_batch(options):
    """As alone; the unrolled one counts its start too."""
    options = options | {"max_iter": 8, "tol": 1e-2}
    stack, many = np.stack([X, groups(1)]), jax.tree.map(lambda a: jnp.stack([a] * 2), first())
    alone = fast(jax.grad(lambda x: loss(x, **options)))
    expected = np.stack([alone(x) for x in stack])
    assert np.all(np.isfinite(expected))

    def of_batch(xs):
        r = jaxem.fit(MODEL, jaxem.Batch(xs), **TIGHT | options | {"init": many})
        return jax.vmap(dotted)(r.params).sum()

    mapped = jax.vmap(jax.grad(lambda x: loss(x, **options)))
    for way in (mapped, jax.grad(of_batch)):
        np.testing.assert_allclose(fast(way)(stack), expected, rtol=1e-8, atol=1e-10)


def test_none_says_what_to_do():
    assert np.isfinite(jax.jit(lambda x: loss(x, gradient="none"))(X))
    with pytest.raises(TypeError, match='gradient="implicit"'):
        jax.grad(lambda x: loss(x, gradient="none"))(X)
    with pytest.raises(ValueError, match="did you mean 'implicit'"):
        loss(X, gradient="implict")
    with pytest.raises(TypeError, match="Python int"):
        jax.jit(lambda n: loss(X, gradient="unrolled", max_iter=n))(3)


@pytest.mark.slow  # the way by products has shorter tests in test_gradient_joint.py
def test_more_than_two_hundred_params():
    """Solves by products alone: 273 params, and two identical components."""
    x = groups(d=9, n=240, gap=2.0)
    model = jaxem.Mixture(jaxem.Normal(), k=3)
    first = jaxem.fit(model, x, key=0, restarts=4, **TIGHT)
    init = first.params
    direction = np.random.default_rng(0).normal(size=x.shape)

    def f(x, **options):
        r = jaxem.fit(model, x, init=init, **options)
        return dotted(r.params), r.gradient_ok

    found, ok = fast(jax.grad(lambda x: f(x, **TIGHT), has_aux=True))(x)
    expected = difference(
        fast(lambda x: f(x, tol=0, max_iter=3 * int(first.n_iter) + 500)[0]), x, direction
    )
    assert ok
    np.testing.assert_allclose(np.vdot(found, direction), expected, rtol=1e-6)
    twins = jax.tree.map(lambda a: a.at[1].set(a[0]), init)
    twins = dataclasses.replace(twins, weights=twins.weights / twins.weights.sum())
    ok, gradient = flagged(model, x, init=twins)
    assert not ok and np.all(np.isnan(gradient))


def test_memory_does_not_grow_with_iterations():
    def temporary(how, steps):
        program = jax.jit(jax.grad(lambda x: loss(x, gradient=how, max_iter=steps)))
        return program.lower(X).compile().memory_analysis().temp_size_in_bytes

    implicit = [temporary("implicit", n) for n in (10, 1000)]
    unrolled = [temporary("unrolled", n) for n in (10, 1000)]
    assert len(set(implicit)) == 1
    params = 2 + 4 + 4
    assert unrolled[1] - unrolled[0] >= 990 * params * 8
