"""q by ascent, models that give a free energy alone, the M-step in blocks, accelerated rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import Aitken, loop

import jaxem

ADAM = optax.adam(0.05)
N, D, Q = 120, 5, 2


def factors(n=N):
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(D, Q))
    return 1.5 * rng.normal(size=(n, Q)) @ loadings.T + 0.7 * rng.normal(size=(n, D)) + 3


@dataclasses.dataclass(frozen=True)
class PPCA:
    """x = mean + loadings z + noise with z normal: q(z) is normal with a full covariance a unit,
    or the same one of all units with a linear encoder."""

    amortised: bool = False

    def init(self, key, x, weights):
        mean = weights @ x / weights.sum()
        loadings = jax.random.normal(key, (D, Q), x.dtype)
        return {"mean": mean, "loadings": loadings, "noise": jnp.ones((), x.dtype)}

    def spaces(self, params):
        real, positive = jaxem.spaces.REAL, jaxem.spaces.POSITIVE
        return {"mean": real, "loadings": real, "noise": positive}

    def init_q(self, params, x):
        eye = jnp.eye(Q, dtype=x.dtype)
        if self.amortised:
            return {"encoder": jnp.zeros((D, Q), x.dtype), "bias": jnp.zeros(Q), "root": eye}
        return {"mean": jnp.zeros((len(x), Q), x.dtype), "root": eye + jnp.zeros((len(x), 1, 1))}

    def free_energy(self, params, x, q):
        loadings, noise = params["loadings"], params["noise"]
        mean = x @ q["encoder"] + q["bias"] if self.amortised else q["mean"]
        root = jnp.tril(q["root"])
        spread = jnp.square(jnp.matmul(loadings, root)).sum((-2, -1))
        far = jnp.square(x - params["mean"] - mean @ loadings.T).sum(1)
        likelihood = -0.5 * ((far + spread) / noise + D * jnp.log(2 * jnp.pi * noise))
        log_det = jnp.log(jnp.abs(jnp.diagonal(root, axis1=-2, axis2=-1))).sum(-1)
        distance = jnp.square(mean).sum(1) + jnp.square(root).sum((-2, -1))
        return likelihood + 0.5 * (Q - distance) + log_det


def exact(x):
    """The maximum of the likelihood, and the noise there (Tipping & Bishop 1999, equation 8)."""
    spread = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    noise = spread[Q:].mean()
    log_det = np.log(spread[:Q]).sum() + (D - Q) * np.log(noise)
    return -len(x) / 2 * (D * np.log(2 * np.pi) + log_det + D), noise


@pytest.mark.parametrize("model", [PPCA(), PPCA(amortised=True)], ids=["per-unit", "amortised"])
def test_a_free_energy_alone_reaches_the_exact_optimum(model):
    x = factors()
    best, noise = exact(x)
    r = jaxem.fit(model, x, key=0, tol=1e-7, max_iter=5000)
    assert r.converged
    assert best - 1e-3 < r.objective < best + 1e-9  # q can be the posterior: the bound is tight
    assert r.log_likelihood == r.objective
    assert np.isclose(r.params["noise"], noise, rtol=1e-2)
    assert np.allclose(r.params["mean"], x.mean(0), atol=1e-2)
    q, bound = jaxem.Variational(steps=200).infer(model, r.params, x)
    assert abs(float(bound.sum()) - float(r.objective)) < 1e-3
    assert jax.tree.structure(q) == jax.tree.structure(model.init_q(r.params, x))


class OneMean:
    """One q for all units: the best one is the weighted mean."""

    def init(self, key, x, weights):
        return jnp.zeros((), x.dtype)

    def init_q(self, params, x):
        return jnp.zeros((), x.dtype)

    def free_energy(self, params, x, q):
        return -jnp.square(x[:, 0] - q) - params


def test_a_q_that_units_share_takes_weights():
    x, infer = np.array([[0.0], [4.0]]), jaxem.Variational(steps=20).infer
    q, value = infer(OneMean(), np.zeros(()), x, weights=[1, 3])
    assert np.allclose(q, 3) and np.allclose(value, [-9, -1])
    with pytest.raises(ValueError, match="weights must have shape"):
        infer(OneMean(), np.zeros(()), x, weights=np.ones(3))


def test_it_goes_through_restarts_batches_and_vmap():
    x = np.stack([factors(), factors()[::-1] * 2])
    model = PPCA(amortised=True)
    fit = functools.partial(jaxem.fit, model, tol=1e-4)
    starts = [jaxem.fit(model, a, key=i, max_iter=0, tol=0).params for i, a in enumerate(x)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    alone = fit(x[1], init=starts[1])
    many = fit(jaxem.Batch(x), init=stacked)
    mapped = jax.jit(jax.vmap(lambda a, p: fit(a, init=p)))(x, stacked)
    for r in (many, mapped):
        assert (np.asarray(r.status) == jaxem.Status.CONVERGED).all()
        assert np.allclose(r.objective[1], alone.objective, atol=1e-4 * N)
    several = fit(x[0], key=1, restarts=3)
    assert several.objective >= several.restarts.objective.max()
    low = fit(x[0].astype(np.float32), key=0)
    assert low.converged and abs(float(low.objective) - exact(x[0])[0]) < 0.1
    with pytest.raises(TypeError, match="init_q"):
        jaxem.fit(
            type("Half", (), {"init": PPCA.init, "free_energy": PPCA.free_energy})(), x[0], key=0
        )


class EncoderInParams(PPCA):
    """An encoder that is to be kept is part of params, and q is empty."""

    def init(self, key, x, weights):
        params = super().init(key, x, weights)
        return params | {"q": PPCA(amortised=True).init_q(params, x)}

    def spaces(self, params):
        return jax.tree.map(lambda _: jaxem.spaces.REAL, params) | {"noise": jaxem.spaces.POSITIVE}

    def init_q(self, params, x):
        return ()

    def free_energy(self, params, x, q):
        return PPCA(amortised=True).free_energy(params, x, params["q"])


def test_an_encoder_in_params_and_what_check_model_says():
    x = factors()
    r = jaxem.fit(EncoderInParams(), x, key=0, tol=1e-7, max_iter=5000)
    assert r.converged and exact(x)[0] - 1e-2 < r.objective < exact(x)[0] + 1e-9
    findings = jaxem.check_model(PPCA(), x[:20])
    assert findings.ok and len(findings.passed) >= 5, str(findings)

    class Summed(PPCA):
        def free_energy(self, params, x, q):
            return super().free_energy(params, x, q).sum()

    assert "must return shape (n,)" in str(jaxem.check_model(Summed(), x[:20]))


def groups():
    rng = np.random.default_rng(3)
    return rng.normal(size=(100, 2)) + 2.5 * rng.integers(2, size=(100, 1))


@pytest.mark.parametrize("transform", [None, ADAM], ids=["lbfgs", "adam"])
def test_logits_reach_the_optimum_of_em_and_f_never_falls(transform):
    """Few steps an E-step, so that q is behind the posterior: F is then below the evidence."""
    x, weights = groups(), jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, 100))
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=2)
    method = jaxem.EM(e_step=jaxem.Variational(transform, steps=2))
    params = jaxem.fit(model, x, key=1, max_iter=0, tol=0).params
    memory = method.start(model, params, x, weights)

    def body(carry, _):
        params, memory = carry
        seen = method.evaluate(model, params, x, weights, memory)
        evidence = weights @ model.log_prob(params, x)
        q = jax.nn.softmax(seen.memory.e_step.q)
        f = jaxem.free_energy(model, params, x, q, weights)
        return (seen.proposal, seen.memory), (seen.objective, f, evidence, seen.noise)

    start = (params, memory)
    objective, f, evidence, noise = jax.jit(lambda: jax.lax.scan(body, start, None, length=40)[1])()
    assert np.allclose(objective, f, rtol=1e-12)
    assert (np.diff(objective) >= -noise[1:]).all() and objective[-1] > objective[0] + 0.1
    assert (objective <= evidence + noise).all() and (objective[1:4] < evidence[1:4] - 1e-6).all()
    r = jaxem.fit(model, x, weights=weights, init=params, method=method, tol=1e-7)
    plain = jaxem.fit(model, x, weights=weights, init=params, tol=1e-9)
    assert r.converged and abs(float(r.log_likelihood - plain.log_likelihood)) < 1e-3


def test_blocks_climb_to_the_same_optimum():
    """Exact blocks, and one without a closed form: the shape of a gamma given its rate."""
    x = groups()
    model = jaxem.Mixture(jaxem.Normal(), k=2)
    start = jaxem.fit(model, x, key=1, max_iter=0, tol=0).params
    blocks = jaxem.Blocks([("weights", "components.mean"), "components.covariance"])
    plain = jaxem.fit(model, x, init=start, tol=1e-9)
    r = jaxem.fit(model, x, init=start, tol=1e-9, method=jaxem.EM(m_step=blocks))
    assert r.converged and abs(float(r.log_likelihood - plain.log_likelihood)) < 1e-6

    y = np.exp(x / 2)
    model = jaxem.Mixture(jaxem.Gamma(), k=2)
    start = jaxem.fit(model, y, key=1, max_iter=0, tol=0).params
    method = jaxem.EM(m_step=jaxem.Blocks(["weights", "components.shape", "components.rate"]))
    weights = jnp.ones(100)

    def body(params, _):
        seen = method.evaluate(model, params, y, weights)
        return seen.proposal, (seen.objective, seen.noise)

    objective, noise = jax.jit(lambda: jax.lax.scan(body, start, None, length=300)[1])()
    assert (np.diff(objective) >= -noise[1:]).all()
    plain = jaxem.fit(model, y, init=start, tol=1e-9, max_iter=20_000)
    assert objective[1] < jaxem.fit(model, y, init=start, max_iter=1, tol=0).objective
    assert abs(float(plain.objective - objective[-1])) < 1e-5


def test_blocks_hold_every_leaf_once():
    model, x = jaxem.Mixture(jaxem.Poisson(), k=2), np.arange(10.0)[:, None]
    for blocks in (["weights"], ["weights", "weights", "components"], ["weights", "rate"]):
        with pytest.raises(ValueError, match="every leaf of params once"):
            jaxem.fit(model, x, key=0, method=jaxem.EM(m_step=jaxem.Blocks(blocks)))
    with pytest.raises(TypeError, match="otherwise"):
        jaxem.Blocks(["weights"], otherwise=1)


ACCELERATORS = {"squarem": jaxem.SQUAREM(), "anderson": jaxem.Anderson()}
RULES = {
    "hard": (jaxem.Hard(), jaxem.Exact()),
    "constrained": (jaxem.Constrained.sizes([0.5, 0.5]), jaxem.Exact()),
    "newton": (jaxem.Exact(), jaxem.Gradient()),
    "blocks": (jaxem.Exact(), jaxem.Blocks(["weights", "components"])),
}


OFTEN = [("hard", "squarem"), ("constrained", "anderson"), ("newton", "squarem")]
PAIRS = [
    pytest.param(rule, name, marks=[pytest.mark.slow] * ((rule, name) not in OFTEN))
    for rule in RULES
    for name in ACCELERATORS
]


@pytest.mark.parametrize(("rule", "name"), PAIRS)
def test_accelerated_rules_are_monotone_and_end_where_plain_ones_do(rule, name):
    """What is kept never falls, and the end is that of the rule without the accelerator."""
    x = groups()
    model, (e_step, m_step) = jaxem.Mixture(jaxem.Normal("diagonal"), k=2), RULES[rule]
    start = jaxem.fit(model, x, key=1, max_iter=0, tol=0).params
    fit = functools.partial(jaxem.fit, model, x, init=start, tol=1e-8, max_iter=5000)
    plain = fit(method=jaxem.EM(e_step, m_step, accelerator=None))
    fast = fit(method=jaxem.EM(e_step, m_step, ACCELERATORS[name]))
    assert plain.converged and fast.converged
    assert fast.objective > plain.objective - 1e-7 * len(x)
    if rule != "hard":  # classification likelihoods have many maxima: a better one may be met
        assert abs(float(fast.objective - plain.objective)) < 1e-7 * len(x)
        assert fast.n_iter < plain.n_iter
    method = jaxem.EM(e_step, m_step, ACCELERATORS[name])
    weights = jnp.ones(len(x))
    state = loop.initial_state(start, weights.dtype, 0, method.start(model, start, x, weights))

    def body(state, _):
        seen = method.evaluate(model, state.proposal, x, weights, state.method)
        state = loop.step(state, seen, 0.0, 10**6, Aitken())
        return state, (state.objective, seen.noise)

    objective, noise = jax.jit(lambda: jax.lax.scan(body, state, None, length=60)[1])()
    assert (np.diff(objective) >= -np.where(np.isfinite(noise), noise, 0)[1:]).all()


def test_rules_that_remember_are_refused_an_accelerator():
    for parts in ({"m_step": jaxem.Gradient(ADAM)}, {"e_step": jaxem.Variational()}):
        with pytest.raises(TypeError, match="an accelerator needs one "):
            jaxem.EM(accelerator=jaxem.SQUAREM(), **parts)
    with pytest.raises(ValueError, match="steps must be an int of 1 or more"):
        jaxem.Variational(steps=0)
