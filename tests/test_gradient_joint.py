"""The gradient through fits that climb by other rules than exact EM's, against differences."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import DocumentsDomain, merge, pytree, split
from slopes import FAST, MODEL, TIGHT, difference, dotted, first, groups, inner
from zoo import Graph, graph

import jaxem

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
DOCUMENTS, WORDS, TOPICS = 24, 7, 2


def fast(function):
    return jax.jit(function, compiler_options=FAST)


def compared(outcome, parts, start, direction, steps, rtol=1e-6, h=1e-4):
    """The gradients of outcome(parts, start, **options) -> (numbers, ok) against differences of
    fits run for so many steps, and 0 with respect to the start; NaN where a fit was stopped."""

    def gradients(parts, start, most):
        options = TIGHT | {"max_iter": most}
        _, back, ok = jax.vjp(lambda *at: outcome(*at, **options), parts, start, has_aux=True)
        return *jax.vmap(back)(jnp.eye(3)), ok

    gradients = fast(gradients)
    stopped, _, ok = gradients(parts, start, 2)
    assert not ok and all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(stopped))
    found, of_start, ok = gradients(parts, start, 20_000)
    assert ok and all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(of_start))
    ended = fast(lambda parts: outcome(parts, start, tol=0, max_iter=steps)[0])
    expected = difference(ended, parts, direction, h)
    mine = [inner(jax.tree.map(lambda a: a[i], found), direction) for i in range(3)]  # noqa: B023
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(mine, expected, rtol=rtol)


def numbers(r):
    return jnp.stack([dotted(r.params), r.objective, r.log_likelihood]), r.gradient_ok


class PartsDomain(DocumentsDomain):
    def whole(self, counts):
        return counts >= 0


@pytree(static=("topics", "inference"))
class Parts(jaxem.LDA):
    """Documents may hold parts of words, so that differences with respect to counts exist."""

    domain = PartsDomain()


VARIANTS = {
    "ml": Parts(TOPICS, alpha=0.4),
    "map": Parts(TOPICS, alpha="symmetric", eta=1.3),
    "bayes": Parts(TOPICS, alpha="symmetric", eta=0.2, inference="bayes"),
    "given": Parts(TOPICS, alpha=np.array([0.3, 0.7]), eta=0.2, inference="bayes"),
    "learnt": Parts(TOPICS, alpha="asymmetric", eta="symmetric", inference="bayes"),
    "asymmetric": Parts(TOPICS, eta="asymmetric", inference="bayes"),
}


def corpus(seed=5, documents=DOCUMENTS, words=WORDS, topics=TOPICS, length=40):
    rng = np.random.default_rng(seed)
    planted = rng.dirichlet(np.full(words, 0.6), topics)
    shares = rng.dirichlet(np.full(topics, 0.7), documents)
    return jaxem.Documents(np.array([rng.multinomial(length, p @ planted) for p in shares]))


X = corpus()
WEIGHTS = np.random.default_rng(1).uniform(0.5, 1.5, DOCUMENTS)


def recounted(counts, x=X):
    """The same words with other counts."""
    return jax.tree.unflatten(jax.tree.structure(x), [x.size, x.words, counts])


@pytest.mark.slow  # a batch below, by point estimates, and README's block are the usual tests
@pytest.mark.parametrize("name", VARIANTS)
def test_topics_against_differences(name):
    """params, bound and log-likelihood, to counts, weights and given concentrations at once."""
    hyper, structure = split(VARIANTS[name])
    hyper = [np.asarray(h, float) for h in hyper]
    start = jaxem.fit(VARIANTS[name], X, key=0, weights=WEIGHTS, restarts=4, **TIGHT)
    assert start.converged, start

    def outcome(parts, start, **options):
        model, x = merge(parts["hyper"], structure), recounted(parts["counts"])
        return numbers(jaxem.fit(model, x, weights=parts["weights"], init=start, **options))

    parts = {"counts": X.counts, "weights": WEIGHTS, "hyper": hyper}
    rng = np.random.default_rng(2)
    direction = {
        "counts": rng.normal(size=X.counts.shape) * (X.counts > 0),
        "weights": rng.normal(size=DOCUMENTS),
        "hyper": [0.1 * rng.normal(size=h.shape) for h in hyper],
    }
    compared(outcome, parts, start.params, direction, 3 * int(start.n_iter) + 500)


def test_topics_of_a_batch_with_restarts():
    """The winners against differences; NaN for all restarts, and for fits that were stopped."""
    sets, model = [X, corpus(6)], VARIANTS["ml"]
    starts = [[jaxem.fit(model, x, key=i, max_iter=0, tol=0).params for i in (1, 2)] for x in sets]
    rows = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair) for pair in starts]
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def together(counts, tol, most):
        batch = jaxem.Batch([recounted(c, x) for c, x in zip(counts, sets, strict=True)])
        r = jaxem.fit(model, batch, init=start, restarts=2, tol=tol, max_iter=most)
        every = jax.vmap(dotted)(r.restarts.params)
        return (jax.vmap(dotted)(r.params), r.objective, every), r.gradient_ok

    counts = [np.asarray(x.counts, float) for x in sets]
    rng = np.random.default_rng(0)
    ways = [rng.normal(size=c.shape) * (c > 0) for c in counts]

    @fast
    def push(tol, most):
        of = partial(together, tol=tol, most=most)
        return jax.jvp(of, (counts,), (ways,), has_aux=True)

    _, (params, objective, every), ok = push(1e-13, 20_000)
    ended = fast(lambda counts: together(counts, 0.0, 1500)[0][:2])
    of_params, of_objective = difference(ended, counts, ways)
    assert np.all(ok) and np.all(np.isnan(every))
    np.testing.assert_allclose(params, of_params, rtol=1e-6)
    np.testing.assert_allclose(objective, of_objective, rtol=1e-6)
    _, (params, objective, _), ok = push(1e-13, 3)
    assert not np.any(ok) and np.all(np.isnan(params)) and np.all(np.isnan(objective))


@pytree
class TwoGroups(jaxem.Model):
    """A user's model: a log joint, where params live, and a prior with a strength."""

    strength: float = 1.0

    def init(self, key, x, weights):
        mean = weights @ x[:, 0] / weights.sum() + jnp.array([-1.0, 1.0], x.dtype)
        return {"shares": jnp.full(2, 0.5, x.dtype), "mean": mean, "spread": jnp.ones(2, x.dtype)}

    def log_joint(self, params, x):
        far = (x - params["mean"]) / params["spread"]
        return jnp.log(params["shares"]) - 0.5 * jnp.square(far) - jnp.log(params["spread"])

    def log_prior(self, params):
        return self.strength * jnp.log(params["shares"]).sum()

    def spaces(self, params):
        real, positive = jaxem.spaces.REAL, jaxem.spaces.POSITIVE
        return {"shares": jaxem.spaces.SIMPLEX, "mean": real, "spread": positive}


@pytree
class SolvedGroups(TwoGroups):
    """The same with the M-step in closed form, to take differences of."""

    def statistics(self, params, x, q, weights):
        r = q * weights[:, None]
        return {"count": r.sum(0), "x": (r * x).sum(0), "square": (r * x**2).sum(0)}

    def maximize(self, params, stats):
        shares = stats["count"] + self.strength
        mean = stats["x"] / stats["count"]
        spread = jnp.sqrt(stats["square"] / stats["count"] - mean**2)
        return {"shares": shares / shares.sum(), "mean": mean, "spread": spread}


RULES = {
    "newton": jaxem.EM(),
    "adam": jaxem.EM(m_step=jaxem.Gradient(optax.adam(0.02), steps=5)),
    "accelerated": jaxem.EM(accelerator=jaxem.SQUAREM()),
}
Y = np.random.default_rng(3).normal(size=(50, 1)) + 3 * (np.arange(50)[:, None] < 20)
OF_Y = np.random.default_rng(4).uniform(0.5, 1.5, 50)
OFTEN = [pytest.param(n, marks=pytest.mark.slow) for n in ("adam", "accelerated")]


@pytest.mark.parametrize("rule", ["newton", *OFTEN])
def test_a_log_joint_alone_against_differences(rule):
    start = jaxem.fit(SolvedGroups(), Y, key=0, weights=OF_Y, **TIGHT)
    assert start.converged

    def outcome(parts, start, **options):
        model = SolvedGroups(parts["strength"])
        if options["tol"]:
            model, options["method"] = TwoGroups(parts["strength"]), RULES[rule]
        return numbers(jaxem.fit(model, parts["x"], weights=parts["w"], init=start, **options))

    rng = np.random.default_rng(0)
    parts = {"x": Y, "w": OF_Y, "strength": np.array(1.0)}
    direction = {"x": rng.normal(size=Y.shape), "w": rng.normal(size=50), "strength": np.array(0.5)}
    compared(outcome, parts, start.params, direction, 3 * int(start.n_iter) + 200)


SAME = {
    "blocks": jaxem.EM(
        m_step=jaxem.Blocks([("weights", "components.mean"), "components.covariance"])
    ),
    "gradient": jaxem.EM(m_step=jaxem.Gradient()),
    "variational": jaxem.EM(e_step=jaxem.Variational()),
    "incremental": jaxem.EM(e_step=jaxem.Incremental(4)),
    "tempered": jaxem.EM(e_step=jaxem.Tempered((0.5, 0.8))),
    "stochastic": jaxem.EM(e_step=jaxem.Stochastic(steps=5)),
    "online": jaxem.OnlineEM(batch=20, passes=2),
}
USUAL = ("blocks", "variational")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in SAME]
)
def test_rules_that_end_where_em_ends_have_its_gradient(name):
    model, x, options = MODEL, groups(), {"tol": 1e-10, "max_iter": 20_000}

    def loss(x, init, **how):
        r = jaxem.fit(model, x, init=init, **options, **how)
        return dotted(r.params), (r.params, r.gradient_ok)

    slope = fast(partial(jax.grad(loss, has_aux=True), method=SAME[name]))
    found, (end, ok) = slope(x, first())
    expected, (again, _) = fast(jax.grad(loss, has_aux=True))(x, end)
    assert ok and np.abs(expected).max() > 0.01
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3), end, again)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@dataclasses.dataclass(frozen=True)
class OneFactor:
    """x = mean + loadings z + noise, z normal; q normal, of every unit or by a linear encoder."""

    amortised: bool = False

    def init(self, key, x, weights):
        mean = weights @ x / weights.sum()
        return {"mean": mean, "loadings": jnp.ones(x.shape[1]), "noise": jnp.ones(())}

    def spaces(self, params):
        real = jaxem.spaces.REAL
        return {"mean": real, "loadings": real, "noise": jaxem.spaces.POSITIVE}

    def init_q(self, params, x):
        if self.amortised:
            zero = jnp.zeros(())
            return {"encoder": jnp.zeros(x.shape[1]), "bias": zero, "log_sd": zero}
        return {"mean": jnp.zeros(len(x)), "log_sd": jnp.zeros(len(x))}

    def free_energy(self, params, x, q):
        mean = x @ q["encoder"] + q["bias"] if self.amortised else q["mean"]
        loadings, noise, sd = params["loadings"], params["noise"], jnp.exp(q["log_sd"])
        far = jnp.square(x - params["mean"] - mean[:, None] * loadings).sum(1)
        spread = (loadings @ loadings) * jnp.square(sd)
        likelihood = -0.5 * ((far + spread) / noise + x.shape[1] * jnp.log(2 * jnp.pi * noise))
        return likelihood + 0.5 * (1 - jnp.square(mean) - jnp.square(sd)) + q["log_sd"]


def closed_form(x, w):
    """noise, |loadings|², a mean, and the likelihood at the optimum (Tipping & Bishop 1999)."""
    total, d = w.sum(), x.shape[1]
    mean = w @ x / total
    spread = np.sort(np.linalg.eigvalsh((x - mean).T * w @ (x - mean) / total))[::-1]
    noise = spread[1:].mean()
    log_det = np.log(spread[0]) + (d - 1) * np.log(noise)
    best = -total / 2 * (d * np.log(2 * np.pi) + log_det + d)
    return np.stack([noise, spread[0] - noise, mean[0], best])


@pytest.mark.parametrize(
    ("amortised", "n"),
    [pytest.param(False, 150, marks=pytest.mark.slow), (False, 40), (True, 40)],
)
def test_a_free_energy_alone_against_the_closed_form(amortised, n):
    """150 units: more numbers in q than a curvature is formed of."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1)) * np.array([1.5, -1.0, 0.7, 0.4]) + 0.6 * rng.normal(size=(n, 4))
    w = rng.uniform(0.5, 1.5, n)

    def outcome(x, w):
        r = jaxem.fit(OneFactor(amortised), x, weights=w, key=0, tol=1e-9, max_iter=5000)
        p = r.params
        size = p["loadings"] @ p["loadings"]
        return jnp.stack([p["noise"], size, p["mean"][0], r.objective]), r.gradient_ok

    def gradients(x, w):
        _, back, ok = jax.vjp(outcome, x, w, has_aux=True)
        return jax.vmap(back)(jnp.eye(4)), ok

    way = rng.normal(size=x.shape), rng.normal(size=n)
    expected = difference(lambda at: closed_form(*at), (x, w), way)
    found, ok = fast(gradients)(x, w)
    assert ok
    mine = [inner(jax.tree.map(lambda a: a[i], found), way) for i in range(4)]  # noqa: B023
    np.testing.assert_allclose(mine, expected, rtol=1e-6)


def test_latent_variables_by_mean_field_against_differences():
    """A stochastic block model of few nodes."""
    model, (x, _) = Graph(), graph(14, 2, inside=0.7, outside=0.2)
    start = jaxem.fit(model, x, key=0, **TIGHT)
    assert start.converged

    def outcome(parts, start, **options):
        return numbers(jaxem.fit(model, parts["x"], init=start, **options))

    rng = np.random.default_rng(0)
    way = rng.normal(size=x.shape)
    way = (way + way.swapaxes(1, 2)) * (1 - np.eye(14))
    compared(outcome, {"x": x}, start.params, {"x": way}, 3 * int(start.n_iter) + 200)
