"""Mean field over several latent variables: exact updates, a complete F that never falls."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import POSITIVE, REAL, SIMPLEX, Factored, suited
from scipy.special import logsumexp
from zoo import Graph, graph

import jaxem

STATES, N, D = (2, 3, 2), 60, 4


@dataclasses.dataclass(frozen=True)
class Factorial:
    """x = Σ_m means[m][z_m] + noise: every unit is in one state of each of three mixtures."""

    states: tuple = STATES

    def latents(self, x):
        return self.states

    def init(self, key, x, weights):
        centre = weights @ x / weights.sum()
        scale = jnp.sqrt(weights @ (x - centre) ** 2 / weights.sum())
        keys = jax.random.split(key, len(self.states))
        share = centre / len(self.states)
        pairs = zip(keys, self.states, strict=True)
        drawn = [jax.random.normal(k, (s, x.shape[1]), x.dtype) for k, s in pairs]
        return {
            "shares": tuple(jnp.full(k, 1 / k, x.dtype) for k in self.states),
            "means": tuple(share + scale * d for d in drawn),
            "variance": jnp.mean(scale**2),
        }

    def spaces(self, params):
        each = len(self.states)
        return {"shares": (SIMPLEX,) * each, "means": (REAL,) * each, "variance": POSITIVE}

    def log_joint(self, params, x, z):
        mean, prior = 0, 0
        for m, k in enumerate(self.states):
            mean = mean + z[:, m, :k] @ params["means"][m]
            prior = prior + z[:, m, :k] @ jnp.log(params["shares"][m])
        far = jnp.square(x - mean).sum(1)
        v = params["variance"]
        return prior - 0.5 * (far / v + x.shape[1] * jnp.log(2 * jnp.pi * v))

    def n_parameters(self, params):
        d = params["means"][0].shape[1]
        return sum((k - 1) * (1 + d) for k in self.states) + d + 1


class Solved(Factorial):
    """The same with the M-step in closed form: Ghahramani & Jordan 1997, equations A.6 and A.7."""

    def statistics(self, params, x, q, weights):
        flat = jnp.concatenate([q[:, m, :k] for m, k in enumerate(self.states)], axis=1)
        of = np.repeat(np.arange(len(self.states)), self.states)
        held = weights[:, None] * flat
        pairs = jnp.where(of[:, None] == of, jnp.diag(held.sum(0)), held.T @ flat)
        square = (weights[:, None] * jnp.square(x)).sum()
        return {"count": weights.sum(), "zz": pairs, "zx": held.T @ x, "xx": square}

    def maximize(self, params, stats):
        count, zz, zx = stats["count"], stats["zz"], stats["zx"]
        means = jnp.linalg.pinv(zz, hermitian=True) @ zx
        rest = stats["xx"] - 2 * (means * zx).sum() + (means * (zz @ means)).sum()
        cuts = list(np.cumsum(self.states)[:-1])
        return {
            "shares": tuple(jnp.split(jnp.diagonal(zz) / count, cuts)),
            "means": tuple(jnp.split(means, cuts)),
            "variance": rest / (count * zx.shape[1]),
        }


def planted(n=N, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    z = np.stack([rng.integers(k, size=n) for k in STATES], 1)
    means = [4 * rng.normal(size=(k, D)) for k in STATES]
    mean = sum(m[z[:, i]] for i, m in enumerate(means))
    return mean + noise * rng.normal(size=(n, D)), z


def corners(states):
    """Every joint state, one-hot: (s, m, k)."""
    eye = np.eye(max(states))
    return np.stack([eye[list(z)] for z in itertools.product(*map(range, states))])


def enumerated(model, params, x, states):
    """log p(x, z) at every joint state z, (n, s)."""
    every = corners(states)

    def at(z):
        return model.log_joint(params, x, jnp.broadcast_to(z, (len(x), *z.shape)))

    return every, np.asarray(jax.jit(jax.vmap(at, out_axes=1))(every))


def drawn(seed, n, states):
    """Random q (n, m, k), 0 where a variable has no such state."""
    q = np.random.default_rng(seed).exponential(size=(n, len(states), max(states)))
    q *= np.arange(max(states)) < np.array(states)[:, None]
    return q / q.sum(-1, keepdims=True)


def free_energies(every, joint, q):
    """F (n,) by summing over all joint states."""
    chance = np.stack([(q * z).sum(-1).prod(-1) for z in every], 1)
    logs = np.log(np.where(chance > 0, chance, 1))
    return (chance * (joint - logs)).sum(1)


X, Z = planted(noise=1.5)
SMALL = np.concatenate([graph(6, 2, seed)[0] for seed in range(3)])
CASES = {
    "factorial": (Solved(), X, STATES),
    "graph": (Graph(), SMALL, (2,) * 6),
}


@pytest.mark.parametrize("name", CASES)
def test_the_free_energy_and_every_update_are_those_of_enumeration(name):
    """At any q: F, E_q[log p | z_m = k] for every m and k, and the bound on the evidence."""
    model, x, states = CASES[name]
    params = jax.jit(model.init)(jax.random.key(1), x, np.ones(len(x)))
    q = drawn(0, len(x), states)
    every, joint = enumerated(model, params, x, states)
    exact = free_energies(every, joint, q)
    of = Factored(model)
    assert np.allclose(jax.jit(of.free_energy)(params, x, q), exact, rtol=1e-11)
    assert np.isclose(jaxem.free_energy(model, params, x, q), exact.sum(), rtol=1e-11)
    evidence = logsumexp(joint, axis=1)
    assert (exact < evidence).all()
    given = jax.jit(of.given)
    for m, k in enumerate(states):
        found = np.asarray(given(params, x, q, m))[:, :k]
        others = q.copy()
        chances = []
        for state in range(k):
            others[:, m] = np.eye(max(states))[state]
            chance = np.stack([(others * z).sum(-1).prod(-1) for z in every], 1)
            chances.append((chance * joint).sum(1))
        away = found - np.stack(chances, 1)
        assert np.allclose(away, away[:, :1], atol=1e-9)  # up to a constant of the unit


@pytest.mark.parametrize("name", CASES)
def test_at_rest_every_change_of_q_lowers_f(name):
    model, x, states = CASES[name]
    params = jax.jit(model.init)(jax.random.key(1), x, np.ones(len(x)))
    rule = jaxem.MeanField()
    q, value = jax.jit(functools.partial(rule.infer, model))(params, x)
    every, joint = enumerated(model, params, x, states)
    assert np.allclose(value, free_energies(every, joint, np.asarray(q)), rtol=1e-10)
    assert (value <= logsumexp(joint, axis=1) + 1e-9).all()
    for seed, size in itertools.product(range(20), (1e-3, 1e-2, 0.05)):
        other = (1 - size) * np.asarray(q) + size * drawn(seed, len(x), states)
        assert (free_energies(every, joint, other) < value + 1e-9 * abs(value)).all()
    early = drawn(1, len(x), states)  # and where q is not at rest some change raises it
    before = free_energies(every, joint, early)
    some = (0.9 * early + 0.1 * drawn(seed, len(x), states) for seed in range(2, 22))
    raised = np.max([free_energies(every, joint, q) for q in some], axis=0) > before
    assert raised.mean() > 0.9


CLIMBS = {"exact": (Solved(), 20), "newton": (Factorial(), 1), "graph": (Graph(), 1)}


@pytest.mark.parametrize(("model", "sweeps"), CLIMBS.values(), ids=CLIMBS)
def test_no_step_lowers_f_and_none_exceeds_the_evidence(model, sweeps):
    x, states = (SMALL, (2,) * 6) if isinstance(model, Graph) else (X, STATES)
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, len(x)))
    method = suited(jaxem.EM(jaxem.MeanField(sweeps)), Factored(model), x)
    params = model.init(jax.random.key(3), x, weights)
    every = jnp.asarray(corners(states))
    of = Factored(model)

    def body(carry, _):
        params, memory = carry
        seen = method.evaluate(of, params, x, weights, memory)
        spread = jnp.broadcast_to(every[:, None], (len(every), len(x), *every.shape[1:]))
        joint = jax.vmap(lambda z: model.log_joint(params, x, z))(spread)
        evidence = weights @ jax.nn.logsumexp(joint, axis=0)
        f = weights @ of.free_energy(params, x, seen.memory.e_step.q)
        return (seen.proposal, seen.memory), (seen.objective, f, evidence, seen.noise)

    start = (params, method.start(of, params, x, weights))
    climb = jax.jit(lambda: jax.lax.scan(body, start, None, length=40)[1])
    objective, f, evidence, noise = map(np.asarray, climb())
    assert np.allclose(objective, f, rtol=1e-11)
    assert (np.diff(objective) >= -noise[1:]).all() and objective[-1] > objective[0] + 0.1
    assert (objective <= evidence + noise).all() and objective[0] < evidence[0] - 1e-3


@pytest.mark.parametrize(
    "dtype",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)
def test_a_factorial_mixture_is_found(dtype):
    x, z = planted()
    r = jaxem.fit(Solved(), x.astype(dtype), key=0, restarts=40)
    assert r.converged and r.objective.dtype == dtype and r.log_likelihood == r.objective
    q = np.asarray(r.predict_proba(x.astype(dtype)))
    assert q.shape == (N, 3, 3) and (q[:, [0, 2], 2] == 0).all()
    found = q.argmax(-1)

    def agree(a, b):
        """How many units have one state, up to the names of states."""
        table = np.zeros((3, 3))
        np.add.at(table, (a, b), 1)
        return max(table[np.arange(3), p].sum() for p in itertools.permutations(range(3))) / N

    pairs = [agree(found[:, a], z[:, b]) for a in (0, 2) for b in (0, 2)]
    assert agree(found[:, 1], z[:, 1]) > 0.95 and agree(found[:, 1], z[:, 0]) < 0.9
    assert max(min(pairs[0], pairs[3]), min(pairs[1], pairs[2])) > 0.95  # in one order or the other
    joint = enumerated(Solved(), r.params, x.astype(dtype), STATES)[1]
    assert logsumexp(joint, axis=1).sum() >= float(r.objective) * (1 + 1e-6)
    if dtype == np.float64:
        assert np.isclose(
            r.entropy(x, weights=np.ones(N)), -(q * np.log(np.maximum(q, 1e-300))).sum()
        )
        assert r.n_parameters == 25
        assert np.isclose(r.bic(x), -2 * r.objective + 25 * np.log(N), rtol=1e-8)


def test_the_blocks_of_a_graph_are_found(tmp_path):
    x, z = graph(30, 3)
    r = jaxem.fit(Graph(3), x, key=0)
    assert r.converged
    found = np.asarray(r.predict(x))[0]
    same = found[:, None] == found
    assert (same == (z[:, None] == z)).mean() > 0.95
    assert np.isclose(r.score_samples(x)[0], r.objective, rtol=1e-6)
    r.save(tmp_path / "graph.npz")
    again = jaxem.load(tmp_path / "graph.npz", Graph(3)).predict(x)[0]
    assert np.array_equal(again, found)
    links = np.asarray(r.params["links"])
    assert (np.diag(links) > 0.35).all() and (links[~np.eye(3, dtype=bool)] < 0.15).all()


def test_restarts_batches_vmap_and_absent_units_are_as_everywhere():
    fit = functools.partial(jaxem.fit, Solved(), tol=1e-7)
    weights = np.stack([np.ones(N), np.arange(N) < 50])
    keys = jax.random.split(jax.random.key(0))
    starts = jax.jit(jax.vmap(lambda k: Solved().init(k, X, jnp.ones(N))))(keys)
    parts = [jax.tree.map(lambda a: a[i], starts) for i in range(2)]  # noqa: B023
    alone = [fit(X, init=p, weights=w) for p, w in zip(parts, weights, strict=True)]
    fleet = fit(jaxem.Batch([X, X[:50]]), init=starts)
    several = fit(X, init=starts, restarts=2)
    mapped = jax.jit(jax.vmap(lambda w, p: fit(X, weights=w, init=p)))(weights, starts)
    for i, one in enumerate(alone):
        assert one.converged and fleet.converged[i] and mapped.converged[i]
        assert np.allclose(fleet.objective[i], one.objective, atol=1e-5)
        assert np.allclose(mapped.objective[i], one.objective, atol=1e-5)
    assert np.allclose(several.restarts.objective[0], alone[0].objective, atol=1e-5)
    assert several.objective == several.restarts.objective.max()


def test_restrictions_go_with_it():
    even = tuple(np.full(k, 1 / k) for k in STATES)
    held = jaxem.Restricted(Solved(), fixed={"variance": 2.25, "shares": even})
    r = jaxem.fit(held, X, key=0, tol=1e-5)
    assert r.converged and r.params["variance"] == 2.25
    assert np.array_equal(r.params["shares"][1], even[1])


@pytest.mark.slow
def test_blocks_go_with_it():
    """F has many optima: from next to one of them both M-steps end there."""
    near = jaxem.fit(Factorial(), X, key=0).params
    near = near | {"variance": 1.1 * near["variance"]}
    fit = functools.partial(jaxem.fit, Factorial(), X, init=near, tol=1e-7)
    plain = fit()
    blocks = fit(method=jaxem.EM(m_step=jaxem.Blocks(["means", ("variance", "shares")])))
    assert plain.converged and blocks.converged
    assert abs(float(blocks.objective - plain.objective)) < 1e-4


class Exponential(Factorial):
    """Interactions that are no products of z: a rate exp(Σ_m …)."""

    def log_joint(self, params, x, z):
        return super().log_joint(params, x, z) - jnp.exp(z[:, 0, 0] + z[:, 1, 0])


class Summed(Factorial):
    def log_joint(self, params, x, z):
        return super().log_joint(params, x, z).sum()


class Alone(Factorial):
    """A function of one variable alone may be any."""

    def log_joint(self, params, x, z):
        return super().log_joint(params, x, z) - jnp.exp(z[:, 0, 0] - 3 * z[:, 0, 1])


def test_what_cannot_be_done_is_said():
    with pytest.raises(TypeError, match=r"is not linear in every z\[:, m\]"):
        jaxem.fit(Exponential(), X, key=0)
    traced = jax.jit(lambda x: jaxem.fit(Exponential(), x, key=0).status)(X)
    assert traced == jaxem.Status.NONFINITE
    with pytest.raises(TypeError, match=r"log_joint must return shape \(n,\), a number"):
        jaxem.fit(Summed(), X, key=0)
    with pytest.raises(TypeError, match="this one has latents"):
        jaxem.fit(Factorial(), X, key=0, method=jaxem.EM(jaxem.Hard()))
    with pytest.raises(TypeError, match="has one latent variable"):
        method = jaxem.EM(jaxem.MeanField())
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=2), X, key=0, method=method)
    with pytest.raises(ValueError, match="how many states each latent variable has"):
        jaxem.fit(Factorial(()), X, key=0)
    with pytest.raises(TypeError, match="an accelerator needs one "):
        jaxem.fit(Solved(), X, key=0, method=jaxem.EM(accelerator=jaxem.SQUAREM()))
    with pytest.raises(TypeError, match="Solved has no gradient"):
        jaxem.fit(Solved(), X, key=0, gradient="unrolled", max_iter=2)
    with pytest.raises(ValueError, match="sweeps must be an int of 1 or more"):
        jaxem.MeanField(sweeps=0)


def test_check_model_knows_them():
    findings = jaxem.check_model(Solved(), X[:20])
    assert findings.ok and "statistics add over units" in findings.passed, str(findings)
    assert "not linear in every" in str(jaxem.check_model(Exponential(), X[:20]))
    params = Solved().init(jax.random.key(0), X, jnp.ones(N))
    assert Factored(Alone()).exact(params, X) and not Factored(Exponential()).exact(params, X)
