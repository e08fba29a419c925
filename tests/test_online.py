"""Online EM: minibatches without replacement, averaged statistics, an honest last word."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

ROWS = 100_000


def mixture(n=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    means = np.array([[0, 0, 0], [4.0, 0, 0], [0, 3, 0], [0, 0, -3.0]])
    return means[z] + rng.normal(size=(n, 3)) * [1, 0.7, 0.5]


MODEL = jaxem.Mixture(jaxem.Normal(), k=4)


def far(x):
    """Params to start from: two of the means within one component, spherical and wide."""
    mean = x.mean(0) + np.array([[-1, 0, 0], [-1.5, 0, 0], [0, 2, 0], [2, 0, -1]], x.dtype)
    covariance = np.tile(2 * np.eye(3, dtype=x.dtype), (4, 1, 1))
    return jaxem.MixtureParams(np.full(4, 0.25, x.dtype), jaxem.NormalParams(mean, covariance))


def score(model, params, x):
    """The log-likelihood in float64, whatever the fit ran in."""
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    return float(jax.jit(model.log_prob)(wide, np.asarray(x, np.float64)).sum())


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(np.float32, marks=pytest.mark.slow), np.float64],
    ids=["float32", "float64"],
)
def test_one_pass_nearly_reaches_the_batch_answer(dtype):
    """From a start 0.4 nats a row short: to 1e-3 a row, where ten EM steps are 0.05 short."""
    x = (mixture() + 50).astype(dtype)
    start = far(x)
    batch = jaxem.fit(MODEL, x, init=start)
    assert batch.converged
    best = score(MODEL, batch.params, x)
    assert best - score(MODEL, start, x) > 0.3 * ROWS

    online = jaxem.OnlineEM()
    one = jaxem.fit(MODEL, x, init=start, method=online, max_iter=1, tol=0)
    assert one.n_iter == 1 and one.status == jaxem.Status.MAX_ITER
    gap = best - score(MODEL, one.params, x)
    assert 0 < gap < 1e-3 * ROWS
    ten = jaxem.fit(MODEL, x, init=start, max_iter=10, tol=0)
    assert best - score(MODEL, ten.params, x) > 20 * gap
    three = jaxem.fit(MODEL, x, init=start, method=online, max_iter=3, tol=0)
    assert best - score(MODEL, three.params, x) < gap / 2
    for found in (one, three):  # the value AT the params returned
        np.testing.assert_allclose(
            found.objective,
            score(MODEL, found.params, x),
            rtol=1e-6 if dtype == np.float32 else 1e-12,
        )
        assert found.objective == found.log_likelihood and found.objective.dtype == dtype


def test_a_pass_by_hand():
    """One pass equals NumPy's, for rates of exponentials: seeds, steps, averages and M-steps."""
    rng = np.random.default_rng(1)
    n, batch, k = 50, 8, 2
    x = np.concatenate([rng.poisson(2.0, (25, 1)), rng.poisson(9.0, (25, 1))]).astype(float)
    w = rng.uniform(0.5, 2, n)
    model = jaxem.Mixture(jaxem.Poisson(), k=k)
    start = jaxem.MixtureParams(np.array([0.5, 0.5]), jaxem.PoissonParams(np.array([[1.0], [5.0]])))
    method = jaxem.OnlineEM(jaxem.Decay(offset=3.0, power=0.7), batch=batch, seed=4)
    ours = jaxem.fit(model, x, weights=w, init=start, method=method, max_iter=2, tol=0)

    def sums(rows, weights, rate):
        logs = np.log(weights) + x[rows] * np.log(rate) - rate
        r = np.exp(logs - logs.max(1, keepdims=True))
        r = w[rows, None] * r / r.sum(1, keepdims=True)
        return np.concatenate([r.sum(0), (r * x[rows]).sum(0), [w[rows].sum()]])

    def estimate(s):
        return s[:k] / s[:k].sum(), s[k : 2 * k] / s[:k]

    at, count = (np.array([0.5, 0.5]), np.array([1.0, 5.0])), -(-n // batch)
    average, mean, t = np.zeros(2 * k + 1), np.zeros(2 * k + 1), 0
    for number in (0, 1):
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(4), number), n)
        blocks = np.array_split(np.asarray(order), range(batch, n, batch))
        assert sorted(np.concatenate(blocks)) == list(range(n)) and len(blocks) == count
        for block in blocks:  # without replacement
            average = average + (t + 3.0) ** -0.7 * (sums(block, *at) - average)
            mean = mean + 8 / (t + 8) * (average - mean)
            at, t = estimate(average), t + 1
    at = estimate(mean)
    np.testing.assert_allclose(ours.params.weights, at[0], rtol=1e-10)
    np.testing.assert_allclose(ours.params.components.rate[:, 0], at[1], rtol=1e-10)


def test_after_its_passes_it_converges_as_em_does():
    x = mixture(3000, seed=2)
    start = far(x)
    method = jaxem.OnlineEM(batch=100, passes=2)
    found = jaxem.fit(MODEL, x, init=start, method=method)
    plain = jaxem.fit(MODEL, x, init=start, method=jaxem.EM(accelerator=None))
    assert found.converged and plain.converged and found.n_iter < plain.n_iter
    np.testing.assert_allclose(found.objective, plain.objective, atol=3000 * 1e-6)
    short = jaxem.fit(MODEL, x, init=start, method=method, max_iter=1, tol=0)
    np.testing.assert_allclose(short.objective, short.score_samples(x).sum(), rtol=1e-12)
    still = jaxem.fit(MODEL, x, init=start, method=method, max_iter=0, tol=0)
    np.testing.assert_allclose(still.params.components.mean, start.components.mean, rtol=1e-12)
    np.testing.assert_allclose(still.objective, still.score_samples(x).sum(), rtol=1e-12)


def test_restarts_batches_and_absent_units_go_the_same_way():
    x = np.random.default_rng(5).poisson(np.arange(600) % 3 * 6.0 + 1, (1, 600)).T.astype(float)
    model = jaxem.Mixture(jaxem.Poisson(), k=3)
    method = jaxem.OnlineEM(batch=50)
    options = {"method": method, "max_iter": 2, "tol": 0}
    # ragged, so that the shorter one is padded with absent rows
    fleet = jaxem.fit(model, jaxem.Batch([x, x[:450]]), key=0, restarts=2, **options)
    assert np.all(fleet.objective == fleet.restarts.objective.max(1))
    for i, data in enumerate((x, x[:450])):
        score = fleet[i].score_samples(data).sum()
        np.testing.assert_allclose(fleet.objective[i], score, rtol=1e-10)


@dataclasses.dataclass(frozen=True)
class Coins(jaxem.Model):
    """Units of two leaves: tosses of one of two coins, and whether a witness calls it fair."""

    def init(self, key, x, weights):
        return {
            "share": jnp.asarray(0.5),
            "heads": jnp.asarray([0.4, 0.7]),
            "said": 0.5 * jnp.ones(2),
        }

    def log_joint(self, p, x):
        heads, n = x["heads"][:, None], x["tosses"][:, None]
        said = jnp.where(x["said"][:, None] > 0, p["said"], 1 - p["said"])
        prior = jnp.stack([p["share"], 1 - p["share"]])
        return (
            heads * jnp.log(p["heads"])
            + (n - heads) * jnp.log1p(-p["heads"])
            + jnp.log(prior * said)
        )

    def statistics(self, p, x, q, weights):
        r = q * weights[:, None]
        return {
            "n": r.sum(0),
            "heads": x["heads"] @ r,
            "of": x["tosses"] @ r,
            "said": x["said"] @ r,
        }

    def maximize(self, p, s):
        share = s["n"][0] / s["n"].sum()
        return {"share": share, "heads": s["heads"] / s["of"], "said": s["said"] / s["n"]}


def test_units_may_be_trees():
    rng = np.random.default_rng(0)
    z = rng.integers(2, size=4000)
    tosses = rng.integers(5, 30, size=4000).astype(float)
    x = {
        "heads": rng.binomial(tosses.astype(int), np.array([0.25, 0.6])[z]).astype(float),
        "tosses": tosses,
        "said": (rng.uniform(size=4000) < np.array([0.9, 0.2])[z]).astype(float),
    }
    found = jaxem.fit(Coins(), x, key=0, method=jaxem.OnlineEM(batch=100), max_iter=1, tol=0)
    exact = jaxem.fit(Coins(), x, key=0)
    two = jaxem.fit(Coins(), x, key=0, max_iter=2, tol=0)  # as many looks at the data
    assert exact.converged
    lacks = exact.objective - found.objective
    assert 0 <= lacks < (exact.objective - two.objective) / 5
    np.testing.assert_allclose(found.params["heads"], exact.params["heads"], atol=0.02)


def test_variational_posteriors_take_it_too():
    x = mixture(3000, seed=7)
    model = jaxem.BayesianMixture(jaxem.Normal("diagonal"), k=4)
    r = np.eye(4)[np.argmin(((x[:, None] - far(x).components.mean) ** 2).sum(-1), 1)]
    start = jaxem.Responsibilities(0.5 * r + 0.125)
    exact = jaxem.fit(model, x, init=start, method=jaxem.EM(accelerator=None))
    method = jaxem.OnlineEM(batch=100, passes=2)
    found = jaxem.fit(model, x, init=start, method=method)
    assert exact.converged and found.converged and found.n_iter < exact.n_iter - 2
    np.testing.assert_allclose(found.objective, exact.objective, atol=3000 * 1e-6)
    one = jaxem.fit(model, x, init=start, method=method, max_iter=1, tol=0)
    value = jax.jit(one.model.elbo)(one.params, x).value
    np.testing.assert_allclose(value, one.objective, rtol=1e-9)


def test_what_it_refuses():
    x = mixture(50)
    for bad in ({"batch": 0}, {"batch": 2.5}, {"passes": 0}):
        with pytest.raises((TypeError, ValueError), match="must be an int of 1 or more"):
            jaxem.OnlineEM(**bad)
    with pytest.raises(TypeError, match="step_size must be a function"):
        jaxem.OnlineEM(0.6)
    with pytest.raises(ValueError, match="power"):
        jaxem.Decay(power=0.5)
    with pytest.raises(TypeError, match="method must be"):
        jaxem.fit(MODEL, x, key=0, method=jaxem.OnlineEM)
    with pytest.raises(TypeError, match="walks back"):
        jaxem.fit(MODEL, x, key=0, method=jaxem.OnlineEM(), gradient="unrolled", max_iter=3)
    with pytest.raises(TypeError, match="gradient through a fit"):
        options = {"key": 0, "method": jaxem.OnlineEM(batch=10), "max_iter": 1, "tol": 0}
        jax.grad(lambda c: jaxem.fit(MODEL, c * x, **options).params.weights[0])(1.0)


def test_few_units_of_a_minibatch_are_named():
    method = jaxem.OnlineEM(batch=2)
    with pytest.raises(
        jaxem.FitWarning, match=r"batch=2.*too few units.*3 components.*raise batch"
    ):
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=3), np.eye(9, 2), key=0, method=method)
