"""The gradient rule for θ, and models that have no M-step of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import adopt, coordinates, standardized
from jax.scipy.special import gammaln
from oracles import published
from zoo import MODELS

import jaxem

ADAM, DESCENT = optax.adam(0.1), optax.sgd(10.0)
RULES = {
    "newton": jaxem.Gradient(steps=12),
    "adam": jaxem.Gradient(ADAM, steps=600),
    "lbfgs": jaxem.Gradient(optax.lbfgs(1.0, linesearch=None), steps=80),
}


def largest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda u, v: float(jnp.abs(u - v).max()), a, b)))


@pytest.mark.parametrize(
    ("rule", "name"),
    [pytest.param("newton", "normal-full", marks=pytest.mark.slow)]
    + [("newton", n) for n in ("normal-spherical-map", "poisson", "gamma")]
    + [("adam", "normal-full"), ("lbfgs", "categorical-map")],
)
def test_enough_steps_are_the_exact_m_step(rule, name):
    model, x = MODELS[name]
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, len(x)))
    view = standardized(model, x, weights)
    params = view.model.init(jax.random.key(3), view.data, weights)
    exact = jaxem.EM().map(view.model, params, view.data, weights).proposal
    method = jaxem.EM(m_step=RULES[rule])
    near = jax.jit(lambda p: method.map(view.model, p, view.data, weights).proposal)(params)
    assert largest(params, exact) > 1e-2
    assert largest(near, exact) < 1e-5


def test_a_learning_rate_far_too_large_still_climbs():
    """Steps of size 10 overshoot by far: taken as they are F falls, which the rule must prevent."""
    x = jaxem.datasets.old_faithful()
    model, weights = jaxem.Mixture(jaxem.Normal(), k=2), jnp.ones(272)
    view = standardized(model, x, weights)
    params = view.model.init(jax.random.key(0), view.data, weights)
    method = jaxem.EM(m_step=jaxem.Gradient(DESCENT, steps=2))
    memory, objective = method.start(view.model, params), []
    step = jax.jit(lambda p, m: method.evaluate(view.model, p, view.data, weights, m))
    for _ in range(40):
        seen = step(params, memory)
        params, memory = seen.proposal, seen.memory
        objective.append(float(seen.objective))
    assert (np.diff(objective) > -1e-9).all() and objective[-1] > objective[0] + 1
    free = coordinates(view.model, params)

    def loss(v):
        return -view.model.log_prob(free.params(v), view.data).sum()

    # Without the search the same optimizer falls, a step from the optimum.
    slope = jax.grad(loss)(free.origin + 0.01)
    assert not loss(free.origin + 0.01 - 10.0 * slope) < loss(free.origin + 0.01)


@dataclasses.dataclass(frozen=True)
class ZeroInflated:
    """0 with probability `zero`, else Poisson: two functions, and where the parameters live."""

    def init(self, key, x, weights):
        return {"zero": jnp.asarray(0.5, x.dtype), "rate": 1 + weights @ x[:, 0] / weights.sum()}

    def log_joint(self, params, x):
        count, zero, rate = x[:, 0], params["zero"], params["rate"]
        always = jnp.where(count == 0, jnp.log(zero), -jnp.inf)
        poisson = jnp.log1p(-zero) + count * jnp.log(rate) - rate - gammaln(count + 1)
        return jnp.stack([always, poisson], axis=1)

    def spaces(self, params):
        return {"zero": jaxem.spaces.UNIT, "rate": jaxem.spaces.POSITIVE}


def widows():
    case = published("zero-inflated-widows")
    table = case["inline"]
    return case, np.array(table["value"], float)[:, None], np.array(table["count"], float)


def test_zero_inflated_as_published():
    case, x, weights = widows()
    r = jaxem.fit(ZeroInflated(), x, weights=weights, key=0, tol=1e-10)
    assert r.converged
    assert abs(r.log_likelihood - case["log_likelihood"]) < case["tolerance"]
    for name, value in case["params"].items():
        assert abs(float(r.params[name]) - value) < case["params_tolerance"]


def test_a_log_joint_is_enough_for_restarts_batches_and_vmap():
    _, x, weights = widows()
    model = ZeroInflated()
    alone = jaxem.fit(model, x, weights=weights, key=0)
    several = jaxem.fit(model, x, weights=weights, key=0, restarts=3)
    many = jaxem.fit(model, jaxem.Batch(np.stack([x, x])), weights=np.stack([weights] * 2), key=0)
    mapped = jax.vmap(lambda w: jaxem.fit(model, x, weights=w, key=0).log_likelihood)(
        jnp.stack([weights, weights])
    )
    for value in (several.log_likelihood, many.log_likelihood[1], mapped[1]):
        assert abs(float(value) - float(alone.log_likelihood)) < 1e-8
    assert alone.predict(x)[1] == 1 and alone.predict_proba(x).shape == (7, 2)


def test_converged_means_a_vanishing_gradient():
    case, x, weights = widows()
    for rule in (jaxem.Gradient(), jaxem.Gradient(ADAM, steps=5)):
        r = jaxem.fit(
            ZeroInflated(), x, weights=weights, key=0, tol=1e-9, method=jaxem.EM(m_step=rule)
        )
        assert r.converged
        slope = jax.grad(lambda p: weights @ adopt(ZeroInflated()).log_prob(p, x))(r.params)
        assert max(abs(float(s)) for s in slope.values()) < 1e-5 * weights.sum()
        assert abs(r.log_likelihood - case["log_likelihood"]) < 1e-4
