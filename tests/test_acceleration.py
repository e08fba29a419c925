"""Accelerators: far fewer evaluations, the same optimum, never a fall."""

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import Aitken, Chart, float_dtype, loop, standardized
from oracles import covariances, published
from scipy import special
from zoo import MODELS, SELDOM

import jaxem

PLAIN = jaxem.EM(accelerator=None)
ACCELERATORS = {"squarem": jaxem.SQUAREM(), "anderson": jaxem.Anderson()}
USUAL = dict(zip([m for m in MODELS if m not in SELDOM], itertools.cycle(ACCELERATORS)))
"""The accelerator that runs always with a model: they take turns. The other one is slow."""
MOST = {"squarem": (60, 84), "anderson": (40, 66)}


def accelerated(name):
    return jaxem.EM(accelerator=ACCELERATORS.get(name))


def climbed(method, model, params, x, weights):
    """After each of 120 evaluations: the objective kept, the length of the map's step there, the
    rounding of the objective, and whether a component has collapsed."""
    start = loop.initial_state(params, weights.dtype, 0, method.start(model, params))

    def body(state, _):
        seen = method.evaluate(model, state.proposal, x, weights, state.method)
        state = loop.step(state, seen, 0.0, 10**6, Aitken())
        image = method.map(model, state.params, x, weights).proposal
        change = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), image, state.params)
        length = jnp.sqrt(sum(jax.tree.leaves(change)))
        collapsed = jnp.any(jnp.asarray(model.degenerate(state.params)))
        return state, (state.objective, length, seen.noise, collapsed)

    return jax.jit(lambda: jax.lax.scan(body, start, None, length=120)[1])()


def death_notices():
    case = published("accelerate-deaths")
    table = case["inline"]
    x = np.array(table["value"], float)[:, None]
    return case, x, np.array(table["count"], float), table["starts"]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_death_notices(name):
    """Evaluations until the map moves the parameters by less than 1e-7, from published starts."""
    case, x, weights, starts = death_notices()
    model = jaxem.Mixture(jaxem.Poisson(), k=2)
    for (share, *rates), most in zip(starts, MOST[name], strict=True):
        params = jaxem.MixtureParams(
            np.array([share, 1 - share]), jaxem.PoissonParams(np.array(rates, float)[:, None])
        )
        objective, change, *_ = climbed(accelerated(name), model, params, x, weights)
        evaluations = int(np.argmax(np.asarray(change) < 1e-7)) + 1
        assert change[evaluations - 1] < 1e-7 and evaluations <= most
        reached = float(objective[evaluations - 1])
        assert abs(reached - case["log_likelihood"]) < case["tolerance"]


def slow_problems():
    """Overlapping groups, on which EM crawls."""
    rng = np.random.default_rng(5)
    group = rng.integers(3, size=(500, 1))
    real = rng.normal(size=(500, 2)) + 1.2 * group
    codes = (rng.random((500, 6)) < 0.35 + 0.15 * group).astype(float)
    counts = rng.poisson(3.0 + group, size=(500, 1)).astype(float)
    return {
        "full": (jaxem.Normal("full"), real),
        "diagonal": (jaxem.Normal("diagonal"), real),
        "one-dimension": (jaxem.Normal(), real[:, :1]),
        "latent-class": (jaxem.Bernoulli(), codes),
        "flat-poisson": (jaxem.Poisson(), counts),
        "gamma": (jaxem.Gamma(), np.exp(real / 2)),
        "student": (jaxem.StudentT(df=4.0), real),
    }


@pytest.mark.parametrize("name", ACCELERATORS)
@pytest.mark.parametrize("problem", slow_problems())
def test_a_fifth_of_the_evaluations_and_no_lower_end(name, problem):
    bank, x = slow_problems()[problem]
    model = jaxem.Mixture(bank, k=3)
    start = jaxem.fit(model, x, key=3, max_iter=0, tol=0).params
    fit = functools.partial(jaxem.fit, model, x, init=start, tol=1e-8, max_iter=100_000)
    plain, fast = fit(method=PLAIN), fit(method=accelerated(name))
    assert plain.converged and fast.converged
    assert fast.n_iter <= plain.n_iter / 5
    assert fast.log_likelihood >= plain.log_likelihood - 1e-7 * len(x)  # ten tolerances


@dataclasses.dataclass(frozen=True)
class Survival:
    """A user's model: probabilities of an event at 1, ..., `times`, of which intervals (low, high]
    are known (Turnbull 1976)."""

    times: int

    def init(self, key, x, weights):
        return {"p": jnp.full(self.times, 1 / self.times, x.dtype)}

    def spaces(self, params):
        return {"p": jaxem.spaces.SIMPLEX}

    def log_joint(self, params, x):
        t = jnp.arange(1, self.times + 1)
        return jnp.where((x[:, :1] < t) & (t <= x[:, 1:]), jnp.log(params["p"]), -jnp.inf)

    def statistics(self, params, x, q, weights):
        return weights @ q

    def maximize(self, params, stats):
        return {"p": stats / stats.sum()}


def test_a_users_model_in_a_batch():
    """Interval-censored samples. A likelihood that is concave in p is highest where no derivative
    exceeds n; as many steps of plain EM are the negative control."""
    rng = np.random.default_rng(1)
    low = rng.integers(0, 11, size=(3, 80))
    x = np.stack([low, np.minimum(low + rng.integers(2, 10, size=(3, 80)), 12)], -1).astype(float)
    fit = functools.partial(jaxem.fit, Survival(12), jaxem.Batch(x), key=0)
    plain = fit(method=PLAIN, max_iter=50_000, tol=1e-8)
    t = np.arange(1, 13)
    inside = (x[..., :1] < t) & (t <= x[..., 1:])

    def excess(p):
        """The highest derivative over n, less 1, of every sample."""
        return (inside / (inside * p[:, None]).sum(-1, keepdims=True)).mean(1).max(1) - 1

    for name in ACCELERATORS:
        fast = fit(method=accelerated(name), max_iter=50_000, tol=1e-8)
        assert plain.converged.all() and fast.converged.all()
        assert (fast.log_likelihood >= plain.log_likelihood - 1e-7 * 80).all()
        assert fast.n_iter.sum() <= plain.n_iter.sum() / 5
        assert (excess(fast.params["p"]) < 1e-5).all()
        half = fit(method=PLAIN, max_iter=int(fast.n_iter.max()), tol=0)
        assert (excess(half.params["p"]) > 1e-4).any()


def divergence(p, q):
    """KL of complete data, a unit: of the classes, and of the component of each."""
    (a, u), (b, v) = ((np.asarray(r.weights), r.components) for r in (p, q))
    if isinstance(u, jaxem.GammaParams):
        each = (u.shape - v.shape) * special.digamma(u.shape) - special.gammaln(u.shape)
        each = each + special.gammaln(v.shape) + v.shape * np.log(u.rate / v.rate)
        each = (each + u.shape * (v.rate / u.rate - 1)).sum(1)
    else:
        first, second = (covariances(np.asarray(c.covariance), 3, 2) for c in (u, v))
        ratio, away = np.linalg.solve(second, first), np.asarray(u.mean - v.mean)[..., None]
        each = np.trace(ratio, axis1=1, axis2=2) - 2 - np.log(np.linalg.det(ratio))
        each = 0.5 * (each + (away * np.linalg.solve(second, away)).sum((1, 2)))
    return a @ (np.log(a / b) + each)


BANKS = {c: jaxem.Normal(c) for c in ("full", "tied", "diagonal", "spherical")}


@pytest.mark.parametrize("bank", [*BANKS, "gamma"])
def test_steps_are_measured_by_the_information_of_the_complete_data(bank):
    """To second order the divergence is half the square of a white step, in any direction."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(60, 2)) @ [[0.5, 0.45], [0, 0.1]])
    model = jaxem.Mixture(BANKS.get(bank, jaxem.Gamma()), k=3)
    params = jaxem.fit(model, x, key=0, max_iter=2, tol=0).params
    chart = Chart(model, params)
    for _ in range(3):
        there = chart.params(chart.origin * (1 + 1e-4 * rng.normal(size=chart.origin.shape)))
        length = chart.white(chart.vector(there) - chart.origin)
        assert np.isclose(jnp.sum(length**2), 2 * divergence(params, there), rtol=5e-3)


def fleet(fits, n, k=3, d=2):
    """Groups at random places, and starts as wide as the data: paths that bend, and many optima."""
    rng = np.random.default_rng(101)
    centres = 3 * rng.normal(size=(fits, k, d))
    group, every = rng.integers(k, size=(fits, n)), np.arange(fits)[:, None]
    x = centres[every, group] + rng.normal(size=(fits, n, d))
    mean = x[every, rng.integers(n, size=(fits, k))]
    covariance = np.broadcast_to(x.var(1)[:, None, :, None] * np.eye(d), (fits, k, d, d))
    components = jaxem.NormalParams(mean, covariance)
    return x, jaxem.MixtureParams(np.full((fits, k), 1 / k), components)


def test_squarem_ends_where_em_does_and_without_a_reach_elsewhere():
    """96 fits of three normals. The negative control has no reach: some of its fits end lower."""
    x, start = fleet(96, 200)
    model = jaxem.Mixture(jaxem.Normal(), k=3)
    fit = functools.partial(jaxem.fit, model, jaxem.Batch(x), init=start, max_iter=20_000)
    reaches = (jaxem.SQUAREM(), jaxem.SQUAREM(reach=np.inf))
    methods = [PLAIN, *(jaxem.EM(accelerator=s) for s in reaches)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)  # a few lose a component
        plain, fast, far = (fit(method=method, tol=1e-7) for method in methods)
    sound = plain.converged & fast.converged & far.converged
    slack = 1e-6 * x.shape[1]
    assert sound.sum() > 80
    assert (fast.log_likelihood >= plain.log_likelihood - slack)[sound].all()
    assert (far.log_likelihood < plain.log_likelihood - slack)[sound].sum() > 2
    assert fast.n_iter[sound].sum() < plain.n_iter[sound].sum() / 3


@pytest.mark.parametrize("reach", [0, -1.0, float("nan"), (0.1, 0.2)])
def test_a_reach_is_above_zero(reach):
    for accelerator in (jaxem.SQUAREM, jaxem.Anderson):
        with pytest.raises(ValueError, match="reach must be a number above 0"):
            accelerator(reach=reach)


@pytest.mark.parametrize(
    "name, model",
    [
        pytest.param(n, m, marks=() if USUAL.get(m) == n else pytest.mark.slow)
        for m in MODELS
        for n in ACCELERATORS
    ],
)
def test_what_is_kept_never_falls(name, model):
    """Every model, from one start: the objective kept, evaluation by evaluation."""
    model, x = MODELS[model]
    weights = jnp.ones(jax.tree.leaves(x)[0].shape[0], float_dtype(x))
    view = standardized(model, x, weights)
    start = jax.jit(lambda: view.model.init(jax.random.key(2), view.data, weights))()
    objective, _, noise, collapsed = map(
        np.asarray, climbed(accelerated(name), view.model, start, view.data, weights)
    )
    end = np.argmax(collapsed) if collapsed.any() else len(objective)
    gains = np.diff(objective[:end])
    assert np.isfinite(objective).all()
    allowed = np.where(np.isfinite(noise), noise, 0)  # a trial that is refused may be NaN
    assert (gains >= -allowed[:end][1:]).all()


@pytest.mark.parametrize("name", ["squarem", pytest.param("anderson", marks=pytest.mark.slow)])
def test_batches_restarts_and_vmap_give_the_single_fits(name):
    rng = np.random.default_rng(0)
    sets = rng.normal(size=(3, 90, 2)) + 2.0 * rng.integers(2, size=(3, 90, 1))
    model = jaxem.Mixture(jaxem.Normal(), k=2)
    fit = functools.partial(jaxem.fit, model, method=accelerated(name))
    starts = [jaxem.fit(model, x, key=i, max_iter=0, tol=0).params for i, x in enumerate(sets)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    alone = [fit(x, init=p) for x, p in zip(sets, starts, strict=True)]
    batch = fit(jaxem.Batch(sets), init=stacked)
    mapped = jax.jit(jax.vmap(lambda x, p: fit(x, init=p)))(sets, stacked)
    for many in (batch, mapped):  # how far a step reaches is read from gains: rounding grows
        assert np.asarray(many.converged).all() and all(one.converged for one in alone)
        assert np.abs(many.n_iter - np.array([int(one.n_iter) for one in alone])).max() <= 2
        away = np.asarray(many.log_likelihood) - [float(one.log_likelihood) for one in alone]
        assert np.abs(away).max() < 0.01 * 1e-6 * sets.shape[1]  # of what tol promises
    several = fit(sets[0], key=4, restarts=5)
    assert several.converged and several.log_likelihood >= several.restarts.log_likelihood.max()


@pytest.mark.parametrize("name", ACCELERATORS)
def test_float32_ends_where_float64_does(name):
    bank, x = slow_problems()["full"]
    model = jaxem.Mixture(bank, k=3)
    start = jaxem.fit(model, x, key=2, max_iter=0, tol=0).params
    exact = jaxem.fit(model, x, init=start, tol=1e-9, max_iter=10_000, method=accelerated(name))
    low = jax.tree.map(lambda a: np.asarray(a, np.float32), start)
    fast = jaxem.fit(model, x.astype(np.float32), init=low, method=accelerated(name))
    assert fast.converged
    assert abs(float(fast.log_likelihood - exact.log_likelihood)) < 1e-5 * len(x)
