"""What `gradient_ok` promises: on random fits, loose or tight, a trusted gradient is right.

The oracle forms I − J of the plain EM map densely, in float64, at the end of a far longer fit, and
shares no code with the rule beyond that map.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from slopes import FAST

import jaxem

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
SETS, N = 24, 100
BOUND = {np.float32: 1e-3, np.float64: 1e-6}


def codes(rng, gap, g):
    return np.minimum(rng.poisson(0.3 + 0.7 * gap * g, size=(N, 5)), 2)


def topics(rng, gap, g):
    """Rows of counts whose groups differ in shares: groups of one profile have no end but twins."""
    return rng.poisson(3 * np.exp(0.3 * gap * np.linspace(-1, 1, 5) * (2 * g - 1)))


def mixed(rng, gap, g):
    return np.concatenate([rng.normal(size=(N, 2)) + gap * g, rng.poisson(1 + gap * g)], axis=1)


def real(rng, gap, g):
    return rng.normal(size=(N, 2)) * np.where(g, 1.0, 1.5) + gap * g


def counts(rng, gap, g):
    return rng.poisson(1 + 2 * gap * g, size=(N, 2))


PRODUCT = jaxem.Product({"size": (jaxem.Normal(), [0, 1]), "count": (jaxem.Poisson(), 2)})
CASES = {
    "poisson": (jaxem.Poisson(), 2, counts),
    "normal-full": (jaxem.Normal(), 2, real),
    "normal-full-three": (jaxem.Normal(), 3, real),
    "normal-full-many": (jaxem.Normal(), 2, lambda r, gap, g: r.normal(size=(N, 5)) + gap * g),
    "normal-tied": (jaxem.Normal("tied"), 2, real),
    "normal-diagonal": (jaxem.Normal("diagonal"), 2, real),
    "normal-spherical": (jaxem.Normal("spherical"), 2, real),
    "normal-full-map": (jaxem.Normal(prior=jaxem.NormalPrior(0.5, 0.1, 6.0, 2.0)), 2, real),
    "student": (jaxem.StudentT(), 2, lambda r, gap, g: r.standard_t(4, (N, 2)) + 1.5 * gap * g),
    "exponential": (
        jaxem.Exponential(),
        2,
        lambda r, gap, g: r.exponential(1 + 4 * gap * g, (N, 3)),
    ),
    "gamma": (jaxem.Gamma(), 2, lambda r, gap, g: r.gamma(2, 1 + gap * g, (N, 2)) + 1e-3),
    "bernoulli": (
        jaxem.Bernoulli(prior=jaxem.BetaPrior(2.0, 3.0)),
        2,
        lambda r, gap, g: r.random((N, 6)) < 0.5 + 0.22 * gap * (g - 0.5),
    ),
    "categorical": (jaxem.Categorical(3), 2, codes),
    "multinomial": (jaxem.Multinomial(), 2, topics),
    "product": (PRODUCT, 2, mixed),
}


def problems(draw, dtype):
    """Data sets from groups that overlap much or little."""
    rng = np.random.default_rng(0)
    groups = [(rng.uniform(0.5, 4), rng.random((N, 1)) < 0.4) for _ in range(SETS)]
    return np.stack([draw(rng, gap, g.astype(int)) for gap, g in groups]).astype(dtype)


def ends(model, x, start):
    """Of every set: the params where EM ends, J and the derivative of the map to weights there, in
    float64; and whether there is an end, at which EM is stable."""
    long = jaxem.fit(model, jaxem.Batch(x), init=start, tol=0, max_iter=4000).params

    def one(params, x):
        first, back = ravel_pytree(params)

        def step(flat, weights):
            proposal = jaxem.EM().evaluate(model, back(flat), x, weights).proposal
            return ravel_pytree(proposal)[0]

        def slopes(flat):
            return jax.jacfwd(step, (0, 1))(flat, jnp.ones(N))

        def newton(flat, _):
            change = step(flat, jnp.ones(N)) - flat
            return flat + jnp.linalg.solve(jnp.eye(flat.size) - slopes(flat)[0], change), None

        last, _ = jax.lax.scan(newton, first, length=3)
        return first, last, *slopes(last)

    first, last, jacobian, slope = jax.jit(jax.vmap(one), compiler_options=FAST)(long, x)
    sound = np.isfinite(jacobian).all((1, 2))
    rate = np.abs(np.linalg.eigvals(np.where(sound[:, None, None], jacobian, 0))).max(1)
    near = np.linalg.norm(last - first, axis=1) < 1e-3 * np.linalg.norm(last, axis=1)
    return last, jacobian, slope, sound & near & (rate < 1 - 1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "poisson" else pytest.mark.slow) for n in CASES]
)
def test_a_trusted_gradient_is_right(name, dtype):
    bank, k, draw = CASES[name]
    model = jaxem.Mixture(bank, k=k)
    x = problems(draw, dtype)
    wide = x.astype(float)
    start = jaxem.fit(model, jaxem.Batch(wide), key=0, max_iter=3, tol=0).params
    last, jacobian, slope, known = (np.asarray(a) for a in ends(model, wide, start))
    cotangent = np.random.default_rng(1).normal(size=last.shape) / np.maximum(np.abs(last), 0.1)
    inverse = np.linalg.inv(np.eye(last.shape[1]) - np.where(known[:, None, None], jacobian, 0))
    expected = np.einsum("bp,bpq,bqn->bn", cotangent, inverse, slope)

    def loss(weights, start, tol, max_iter):
        r = jaxem.fit(
            model, jaxem.Batch(x), init=start, weights=weights, tol=tol, max_iter=max_iter
        )
        flat = jax.vmap(lambda p: ravel_pytree(p)[0])(r.params)
        return (cotangent.astype(dtype) * flat).sum(), (r.converged, r.gradient_ok)

    gradients = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)
    begin = jax.tree.map(lambda a: np.asarray(a, dtype), start)
    ones = np.ones((SETS, N), dtype)
    for tol in (1e-2, 1e-4, 1e-6):
        found, (converged, ok) = gradients(ones, begin, dtype(tol), 4000)
        assert np.array_equal(np.isfinite(found).all(1), ok) and not np.any(ok & ~converged)
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert np.max(error[ok & known]) < BOUND[dtype]
    assert ok.mean() > 0.25  # a Student's degrees of freedom are flat: the fewest in float32
    found, (_, ok) = gradients(ones, begin, dtype(0), 3)
    assert not ok.any() and np.isnan(found).all()
