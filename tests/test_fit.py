"""`fit` as a function: pairs, limits, restarts, weights, starts, labels, transformations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import lane
from internals import adopt, compilations
from zoo import COUNTS, GROUP, REAL, K, geometric

import jaxem

pytestmark = pytest.mark.smoke

MODEL = jaxem.Mixture(jaxem.Normal(), k=K)


def test_the_value_belongs_to_the_params_at_every_limit():
    for limit in (0, 1, 2, 7):
        result = jaxem.fit(MODEL, REAL, key=0, tol=0, max_iter=limit)
        assert result.n_iter == limit
        assert result.status == jaxem.Status.MAX_ITER
        score = MODEL.log_prob(result.params, REAL).sum()
        np.testing.assert_allclose(result.log_likelihood, score, rtol=1e-12)


def test_limits_chain():
    """Three steps and then four are the seven steps; the objective climbs along the way."""
    three = jaxem.fit(MODEL, REAL, key=0, tol=0, max_iter=3)
    seven = jaxem.fit(MODEL, REAL, key=0, tol=0, max_iter=7)
    again = jaxem.fit(MODEL, REAL, init=three.params, tol=0, max_iter=4)
    np.testing.assert_allclose(again.log_likelihood, seven.log_likelihood, rtol=1e-12)
    assert seven.objective > three.objective


def test_more_restarts_keep_the_first_ones():
    few = jaxem.fit(MODEL, REAL, key=5, restarts=4).restarts
    many = jaxem.fit(MODEL, REAL, key=5, restarts=8).restarts
    np.testing.assert_allclose(few.log_likelihood, many.log_likelihood[:4], rtol=1e-12)
    single = jaxem.fit(MODEL, REAL, key=5)
    np.testing.assert_allclose(single.log_likelihood, few.log_likelihood[0], rtol=1e-12)
    assert len(np.unique(many.log_likelihood.round(6))) > 1


def test_keys_of_every_kind_agree():
    fits = [
        jaxem.fit(MODEL, REAL, key=key).log_likelihood
        for key in (3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3))
    ]
    assert len(set(map(float, fits))) == 1
    assert fits[0] != jaxem.fit(MODEL, REAL, key=4, max_iter=1, tol=0).log_likelihood


def test_weights_are_copies():
    weights = np.ones(len(REAL))
    weights[3], weights[8] = 0, 3
    copies = np.concatenate([np.delete(REAL, 3, axis=0), REAL[[8, 8]]])
    start = jaxem.fit(MODEL, REAL, key=0, max_iter=0, tol=0).params
    a = jaxem.fit(MODEL, REAL, init=start, weights=weights)
    b = jaxem.fit(MODEL, copies, init=start)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(a.bic(REAL, weights), b.bic(copies), rtol=1e-10)
    np.testing.assert_allclose(a.icl(REAL, weights), b.icl(copies), rtol=1e-8)


def test_absent_units_may_hold_anything():
    padded = np.concatenate([REAL, np.full((7, REAL.shape[1]), np.nan)])
    zeros = np.concatenate([REAL, np.zeros((7, REAL.shape[1]))])
    weights = np.concatenate([np.ones(len(REAL)), np.zeros(7)])
    a = jaxem.fit(MODEL, padded, key=0, weights=weights)
    b = jaxem.fit(MODEL, zeros, key=0, weights=weights)
    chex.assert_trees_all_equal(a.params, b.params)
    plain = jaxem.fit(MODEL, REAL, init=jaxem.fit(MODEL, REAL, key=0, max_iter=0).params)
    assert plain.converged and a.converged


@pytest.mark.parametrize("init", ["kmeans++", "random_rows", "random"])
def test_named_starts(init):
    """On clear groups, rows of the data as starts lead to the optimum of the true labels.

    Random shares are known to be poor starts: they need only do better than two components.
    """
    clear = REAL + 6 * GROUP[:, None] * np.array([1, -1, 0.5])
    best = jaxem.fit(MODEL, clear, init=jaxem.Labels(GROUP)).log_likelihood
    result = jaxem.fit(MODEL, clear, key=0, restarts=16, init=init)
    begun = jaxem.fit(MODEL, clear, key=0, restarts=16, init=init, max_iter=0, tol=0)
    assert result.converged and begun.log_likelihood < best - 50
    if init == "random":
        two = jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=2), clear, key=1, restarts=16)
        assert two.log_likelihood + 10 < result.log_likelihood
    else:
        assert abs(result.log_likelihood - best) < 1e-6 * len(clear)


def test_given_responsibilities_and_labels_are_the_same_start():
    from_labels = jaxem.fit(MODEL, REAL, init=jaxem.Labels(GROUP))
    shares = np.eye(K)[GROUP]
    from_shares = jaxem.fit(MODEL, REAL, init=jaxem.Responsibilities(shares))
    assert from_labels.log_likelihood == from_shares.log_likelihood
    assert from_labels.n_iter < 60
    mean = jaxem.fit(MODEL, REAL, init=jaxem.Labels(GROUP), max_iter=0, tol=0).params
    wanted = [REAL[j == GROUP].mean(0) for j in range(K)]
    np.testing.assert_allclose(mean.components.mean, wanted, rtol=1e-10)


def test_known_labels_are_kept_and_help():
    labels = np.where(np.arange(len(REAL)) % 2 == 0, GROUP, -1)
    result = jaxem.fit(MODEL, jaxem.Labelled(REAL, labels), key=0, restarts=4)
    known = labels >= 0
    proba = np.asarray(result.predict_proba(jaxem.Labelled(REAL, labels)))
    assert (proba[known].argmax(1) == labels[known]).all()
    assert (proba[known].max(1) == 1).all()
    # The components carry the labels' numbers, so the rest can be predicted as well.
    rest = np.asarray(result.predict(REAL))[~known]
    assert (rest == GROUP[~known]).mean() > 0.8


RULES = {
    "kmeans++": jaxem.KMeansPlusPlus(),
    "random_rows": jaxem.RandomRows(),
    "random": jaxem.RandomResponsibilities(),
}


@pytest.mark.parametrize("name", RULES)
def test_known_labels_are_the_seeds_of_a_start(name):
    """One label a class: the components of 100 starts carry the labels' numbers."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 20)
    x = rng.normal(size=(60, 2)) + 9 * np.array([[0, 0], [1, 0], [0.3, 1]])[group]
    labels = np.full(60, -1)
    labels[[5, 25, 45]] = 0, 1, 2
    model = jaxem.Mixture(jaxem.Normal("spherical"), k=3)

    def right(key, labels):
        data = jaxem.Labelled(x, labels)
        params = RULES[name].params(model, key, data, jnp.ones(60))
        for _ in range(2):
            q, _ = model.posterior(params, data)
            params = model.maximize(params, model.statistics(params, data, q, jnp.ones(60)))
        return (model.posterior(params, x)[0].responsibilities.argmax(1) == group).mean()

    shares = jax.jit(jax.vmap(right, (0, None)))
    keys = jax.random.split(jax.random.key(0), 100)
    assert (shares(keys, labels) == 1).sum() >= 99
    # One class without a label: its seed is drawn, far from those of the others.
    labels[45] = -1
    assert np.median(shares(keys, labels)) == 1 or name != "kmeans++"


def test_known_labels_weigh_more_where_units_are_no_points():
    """A bank without points in space: known units outweigh the others in a start."""
    group = np.repeat([0, 1, 2], 20)
    labels = np.where(np.arange(60) % 20 == 0, group, -1)

    class Rates(jaxem.Poisson):
        def embed(self, x):
            return None

    model = jaxem.Mixture(Rates(), k=3)
    data = jaxem.Labelled(np.array([1.0, 20.0, 40.0])[group][:, None], labels)
    start = jax.jit(jax.vmap(lambda key: model.init(key, data, jnp.ones(60))))
    rates = start(jax.random.split(jax.random.key(0), 50)).components.rate[..., 0]
    assert (np.argsort(rates, axis=1) == [0, 1, 2]).all()


def test_all_labels_known_is_the_closed_form():
    result = jaxem.fit(MODEL, jaxem.Labelled(REAL, GROUP), key=0)
    for j in range(K):
        part = REAL[j == GROUP]
        np.testing.assert_allclose(result.params.components.mean[j], part.mean(0), rtol=1e-9)
        np.testing.assert_allclose(
            result.params.components.covariance[j], np.cov(part.T, bias=True), rtol=1e-8
        )
    assert result.n_iter <= 10


def test_a_second_fit_compiles_nothing():
    def with_prior(mean):
        prior = jaxem.NormalPrior(mean, 0.1, 5.0, 1.0)
        return jaxem.Mixture(jaxem.Normal(prior=prior), k=K)

    typed = jax.random.key(2), jax.random.key(3)  # another kind of argument than an int
    jaxem.fit(MODEL, REAL, key=0, restarts=2)
    jaxem.fit(MODEL, REAL, key=typed[0], restarts=2)
    jaxem.fit(with_prior(0.0), REAL, key=0)
    with compilations() as compiled:
        jaxem.fit(MODEL, REAL + 1, key=1, restarts=2, tol=1e-5, max_iter=77)
        jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=K), REAL, key=2, restarts=2)
        jaxem.fit(MODEL, REAL, key=typed[1], restarts=2)
        jaxem.fit(with_prior(0.5), REAL, key=0)
    assert not compiled
    with compilations() as compiled:  # the control: a class that no fit has seen
        jaxem.fit(jaxem.Mixture(geometric(), k=2), COUNTS, key=0, max_iter=2, tol=0)
    assert compiled


def test_jit_and_vmap_of_a_function_that_fits():
    def best(x, key):
        return jaxem.fit(MODEL, x, key=key, restarts=2)

    data = np.stack([REAL, REAL[::-1] * 2.0 + 1.0, REAL**2])
    keys = jax.random.split(jax.random.key(0), 3)
    batch = jax.jit(jax.vmap(best))(data, keys)
    assert batch.status.shape == batch.log_likelihood.shape == (3,)
    assert batch.params.components.covariance.shape == (3, K, 3, 3)
    assert batch.restarts.status.shape == (3, 2)
    for i in range(3):
        alone = best(data[i], keys[i])
        np.testing.assert_allclose(batch.log_likelihood[i], alone.log_likelihood, rtol=1e-9)
        jitted = jax.jit(best)(data[i], keys[i])
        np.testing.assert_allclose(jitted.log_likelihood, alone.log_likelihood, rtol=1e-9)
    assert "batch" in repr(batch)


def test_vmap_over_weights_is_a_bootstrap():
    """Every lane is the fit of the rows that its weights count."""
    n = len(REAL)
    weights = np.random.default_rng(0).multinomial(n, [1 / n] * n, 4) * 1.0
    start = jaxem.fit(MODEL, REAL, key=0).params
    fits = jax.jit(jax.vmap(lambda w: jaxem.fit(MODEL, REAL, init=start, weights=w)))(weights)
    means = np.asarray(fits.params.components.mean)
    assert means.shape == (4, K, 3)
    for i, w in enumerate(weights):
        copies = np.repeat(REAL, w.astype(int), axis=0)
        alone = jaxem.fit(MODEL, copies, init=start)
        np.testing.assert_allclose(fits.log_likelihood[i], alone.log_likelihood, rtol=1e-9)
        np.testing.assert_allclose(means[i], alone.params.components.mean, rtol=1e-6)
    assert np.ptp(means, axis=0).max() > 0.1


def test_a_bad_lane_disturbs_no_other():
    data = np.stack([REAL, np.full_like(REAL, np.nan), REAL * 3])
    fits = jax.vmap(lambda x: jaxem.fit(MODEL, x, key=0))(data)
    clean = jax.vmap(lambda x: jaxem.fit(MODEL, x, key=0))(np.stack([REAL, REAL, REAL * 3]))
    assert fits.status.tolist() == [1, int(jaxem.Status.BAD_INPUT), 1]
    others = np.array([0, 2])
    chex.assert_trees_all_equal(*(lane(f.params, others) for f in (fits, clean)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fits.params))


class ZeroInflated:
    """A user's model that inherits nothing: a Poisson count or a structural zero."""

    def init(self, key, x, weights):
        return {"zero": jnp.asarray(0.5, x.dtype), "rate": 1 + x.mean()}

    def log_joint(self, params, x):
        x = x[:, 0]
        poisson = x * jnp.log(params["rate"]) - params["rate"] - jax.lax.lgamma(x + 1)
        zero = jnp.where(x == 0, jnp.log(params["zero"]), -jnp.inf)
        return jnp.stack([zero, jnp.log1p(-params["zero"]) + poisson], axis=1)

    def statistics(self, params, x, q, weights):
        q = weights[:, None] * q
        return {"count": q.sum(0), "total": q[:, 1] @ x[:, 0]}

    def maximize(self, params, stats):
        zero, poisson = stats["count"]
        return {"zero": zero / (zero + poisson), "rate": stats["total"] / poisson}


def test_a_users_model_with_the_defaults():
    x = np.arange(7.0)[:, None]
    weights = np.array([3062, 587, 284, 103, 33, 4, 2.0])
    result = jaxem.fit(ZeroInflated(), x, key=0, weights=weights, tol=1e-13)
    # Thisted 1988: closed form, rate/(1 - exp(-rate)) = mean of the positive counts.
    np.testing.assert_allclose(result.params["zero"], 0.6150566976, atol=1e-6)
    np.testing.assert_allclose(result.params["rate"], 1.037839079, atol=1e-6)
    np.testing.assert_allclose(result.log_likelihood, -3351.652020149, atol=1e-6)


class Falling(ZeroInflated):
    def maximize(self, params, stats):
        new = super().maximize(params, stats)
        return {"zero": new["zero"] * 0.7, "rate": new["rate"]}


def test_a_faulty_m_step_is_reported_and_the_best_kept():
    model = Falling()
    best = jaxem.fit(ZeroInflated(), COUNTS[:, :1], key=0).params
    with pytest.warns(jaxem.FitWarning, match=r"DECREASED.*M-step"):
        result = jaxem.fit(model, COUNTS[:, :1], init=best)
    assert not result.converged
    score = adopt(model).log_prob(result.params, jnp.asarray(COUNTS[:, :1])).sum()
    np.testing.assert_allclose(result.log_likelihood, score, rtol=1e-12)
    with pytest.raises(jaxem.FitError, match="DECREASED"):
        result.raise_if_failed()


def test_a_step_of_another_shape_is_named():
    class Wrong(ZeroInflated):
        def maximize(self, params, stats):
            return super().maximize(params, stats) | {"rate": jnp.zeros(2)}

    with pytest.raises(TypeError, match=r"maximize.*'rate'.*\(2,\)"):
        jaxem.fit(Wrong(), COUNTS[:, :1], key=0)
