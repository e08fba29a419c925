"""All quantities that the laws of a model compare, by one compiled program a model.

An eager operation is a program of its own, so the laws themselves are checked in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from internals import ascent, decompose, evaluate
from zoo import MODELS, REGRESSIONS, K, N

import jaxem

STEPS = 12
ORDER = np.array([2, 0, 1])
WEIGHTS = np.random.default_rng(1).uniform(0.2, 2.0, N)
OTHER = np.random.default_rng(2).uniform(0.0, 1.0, N)
COUNTS = np.ones(N)
COUNTS[[0, 1]], COUNTS[[5, 6]] = 0, 2
COPIED = np.concatenate([np.arange(2, N), [5, 6]])
"""The rows that COUNTS stands for: two are absent, two are there twice."""


def rows(data, index):
    return jax.tree.map(lambda leaf: leaf[index], data)


def stacked(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unknown(data):
    """Which units have no label: their responsibilities are free."""
    labels = getattr(data, "labels", None)
    return np.ones(N, bool) if labels is None else labels < 0


def separate(name):
    """Whether every leaf of the params has an axis of components."""
    return "tied" not in name and name != "components"


def reordered(params):
    """Params with the components in ORDER; noise stays last."""
    size = {K: ORDER, K + 1: np.append(ORDER, K)}
    return jax.tree.map(lambda leaf: leaf[size[len(leaf)]], params)


def relabelled(data):
    """The data after the components were put into ORDER."""
    if getattr(data, "labels", None) is None:
        return data
    places = jnp.asarray(np.argsort(ORDER))
    return jaxem.Labelled(data.x, jnp.where(data.labels < 0, -1, places[data.labels]))


def statistics(model, params, data, weights):
    q, _ = model.posterior(params, data)
    return model.statistics(params, data, q, weights)


def climb(model, params, data):
    """STEPS evaluations: what was seen at each, the first proposal among it."""

    def step(params, _):
        seen = evaluate(model, params, data, WEIGHTS)
        return seen.proposal, (seen.objective, seen.magnitude, seen.proposal)

    return jax.lax.scan(step, params, length=STEPS)[1]


def gradients(model, params, data):
    """∇ evidence, and ∇ of the expected log joint at the posterior held fixed."""
    q = jax.lax.stop_gradient(model.posterior(params, data)[0].responsibilities)
    here = q > 0

    def evidence(p):
        return (WEIGHTS * model.log_prob(p, data)).sum()

    def expected(p):
        joint = model.log_joint(p, data)
        return (WEIGHTS[:, None] * jnp.where(here, q * jnp.where(here, joint, 0), 0)).sum()

    return jax.grad(evidence)(params), jax.grad(expected)(params)


def near(q, data, seed):
    """Responsibilities a little off the posterior."""
    other = np.random.default_rng(seed).dirichlet(np.ones(q.shape[1]), N)
    return jnp.where(unknown(data)[:, None], 0.9 * q + 0.1 * other, q)


@functools.partial(jax.jit, static_argnums=(0, 1))
def everything(model, permutes, data):
    params = model.init(jax.random.key(3), data, WEIGHTS)
    halves = stacked(rows(data, np.s_[: N // 2]), rows(data, np.s_[N // 2 :]))
    cases = [(data, WEIGHTS), (data, OTHER), (data, 2 * WEIGHTS + 0.5 * OTHER), (data, COUNTS)]
    cases = stacked(*cases, (rows(data, COPIED), np.ones(N)))

    def added(case):
        return statistics(model, params, *case)

    permuted = (reordered(params), relabelled(data)) if permutes else (params, data)
    both = stacked((params, data), permuted)
    objective, magnitude, proposals = jax.lax.map(lambda case: climb(model, *case), both)
    after = jax.tree.map(lambda leaf: leaf[0, 0], proposals)

    posterior, evidence = model.posterior(params, data)
    q = posterior.responsibilities
    far = np.random.default_rng(0).dirichlet(np.ones(q.shape[1]), N)
    far = jnp.where(unknown(data)[:, None], 0.5 * q + 0.5 * far, q)

    def energy(q):
        return jaxem.free_energy(model, params, data, q, WEIGHTS)

    def rise(pair):
        return ascent(model, *pair, data, WEIGHTS)

    return {
        "params": params,
        "statistics": jax.lax.map(added, cases),
        "halves": jax.lax.map(added, (halves, WEIGHTS.reshape(2, -1))),
        "objective": objective,
        "magnitude": magnitude,
        "proposal": jax.tree.map(lambda leaf: leaf[:, 0], proposals),
        "evidence": evidence,
        "responsibilities": q,
        "energy at the posterior": energy(posterior),
        "energies": jax.lax.map(energy, jnp.stack([near(q, data, seed) for seed in range(5)])),
        "gradients": gradients(model, params, data),
        "far": far,
        "parts": decompose(model, params, data, far, WEIGHTS),
        "log prior": jnp.stack([jnp.asarray(model.log_prior(p), float) for p in (params, after)]),
        "ascents": jax.lax.map(rise, (stacked(params, after), stacked(after, params))),
        "divergence": decompose(model, after, data, posterior, WEIGHTS).divergence,
    }


@functools.cache
def quantities(name):
    """The quantities of a model of the zoo, as NumPy arrays."""
    model, data = (MODELS | REGRESSIONS)[name]
    return jax.tree.map(np.asarray, everything(model, separate(name), data))
