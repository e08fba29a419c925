"""Rules for q: what each climbs, that it climbs, and that it runs under every transform."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import same_ends
from internals import normalize, parted, sampled, standardized
from oracles import published
from zoo import BANKS, MODELS, SELDOM

import jaxem

EVEN = jaxem.Constrained.sizes(np.full(3, 1 / 3))
RULES = {
    "hard": jaxem.Hard(),
    "tempered": jaxem.Tempered(schedule=(0.5, 0.8), steps=3),
    "stochastic": jaxem.Stochastic(steps=4),
    "incremental": jaxem.Incremental(4, 2),
    "constrained": EVEN,
    "variational": jaxem.Variational(steps=3),
    "gradient": None,
    "blocks": None,
}


def method(rule):
    if rule == "gradient":
        return jaxem.EM(m_step=jaxem.Gradient())
    if rule == "blocks":
        return jaxem.EM(m_step=jaxem.Blocks(["weights", "components"]))
    return jaxem.EM(e_step=RULES[rule])


def climbed(method, model, x, steps=15):
    """(the sum of what was climbed, its rounding, fresh, collapsed) at every evaluation."""
    weights = jnp.ones(jax.tree.leaves(x)[0].shape[0])
    view = standardized(model, x, weights)

    def body(carry, _):
        params, memory = carry
        seen = method.evaluate(view.model, params, view.data, weights, memory)
        collapsed = jnp.any(jnp.asarray(view.model.degenerate(params)))
        restarted = seen.signal.restarted
        fresh = False if restarted is None else restarted
        return (seen.proposal, seen.memory), (seen.objective, seen.noise, fresh, collapsed)

    @jax.jit
    def climb():
        params = view.model.init(jax.random.key(2), view.data, weights)
        start = (params, method.start(view.model, params, view.data, weights))
        return jax.lax.scan(body, start, None, length=steps)[1]

    return map(np.asarray, climb())


def grid(models):
    """Every rule with every model. One rule a model runs always, in turn; the others are slow."""
    turns = itertools.cycle(RULES)
    usual = {model: next(turns) for model in models if model not in SELDOM}
    return [
        pytest.param(
            rule,
            model,
            marks=() if usual.get(model) == rule else pytest.mark.slow,
            id=f"{rule}-{model}",
        )
        for rule in RULES
        for model in models
    ]


@pytest.mark.parametrize(("rule", "model"), grid(MODELS))
def test_what_is_promised_never_falls(rule, model):
    model, x = MODELS[model]
    objective, noise, fresh, collapsed = climbed(method(rule), model, x)
    end = np.argmax(collapsed) if collapsed.any() else len(objective)
    gains = np.diff(objective)[: end - 1]
    assert np.isfinite(objective).all()
    checked = ~fresh[1:end]
    assert checked.any() or rule in ("tempered", "stochastic") or end < 2
    assert (gains >= -noise[1:end])[checked].all()
    assert gains[checked].sum() > 0 or collapsed.any()


def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 60, 2)) + 3.0 * rng.integers(3, size=(3, 60, 1))


@pytest.mark.parametrize(
    "rule",
    ["stochastic", "incremental", "constrained", "variational", "gradient"]
    + [pytest.param(rule, marks=pytest.mark.slow) for rule in ("hard", "tempered", "blocks")],
)
def test_batches_restarts_and_vmap_give_the_single_fits(rule):
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=3)
    fit = functools.partial(jaxem.fit, model, method=method(rule), tol=1e-5)
    x = sets()
    # L-BFGS amplifies rounding: only from near an optimum do its ways have the same end.
    steps = 50 if rule == "variational" else 0
    starts = [jaxem.fit(model, a, key=i, max_iter=steps, tol=0).params for i, a in enumerate(x)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    alone = [fit(a, init=p) for a, p in zip(x, starts, strict=True)]
    assert all(one.converged for one in alone)
    batch = fit(jaxem.Batch(x), init=stacked)
    mapped = jax.jit(jax.vmap(lambda a, p: fit(a, init=p)))(x, stacked)
    for many in (batch, mapped):
        if rule == "variational":
            assert np.allclose(many.objective, [one.objective for one in alone], atol=60 * 1e-5)
            continue
        same_ends(many, alone, 60, 1e-5, params=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "bank"), grid([b for b in BANKS if not b.endswith("-map")]))
def test_every_rule_with_every_family_in_a_batch(rule, bank):
    """A jitted Batch of two: no fall, and the log-likelihood is the model's at the params."""
    model, x = MODELS[bank]
    fit = functools.partial(jaxem.fit, model, method=method(rule), tol=1e-3, max_iter=40)
    many = jax.jit(lambda x: fit(jaxem.Batch(x), key=0))(np.stack([x, x[::-1]]))
    assert (np.asarray(many.status) <= jaxem.Status.DEGENERATE).all()
    assert not np.isin(many.status, [jaxem.Status.DECREASED, jaxem.Status.NONFINITE]).any()
    first = jax.tree.map(lambda a: a[0], many.params)
    assert np.allclose(many.log_likelihood[0], model.log_prob(first, x).sum(), rtol=1e-9)


def test_hard_reports_the_classification_likelihood():
    x = sets()[0]
    model = jaxem.Mixture(jaxem.Normal(), k=3)
    r = jaxem.fit(model, x, key=0, method=method("hard"))

    @jax.jit
    def at(params):
        joint = model.log_joint(params, x)
        hard = jnp.eye(3)[joint.argmax(1)]
        free = jaxem.free_energy(model, params, x, hard)
        return joint, free, model.log_prob(params, x).sum()

    joint, free, likelihood = map(np.asarray, at(r.params))
    assert np.allclose(r.objective, joint.max(1).sum(), rtol=1e-12)
    assert np.allclose(r.objective, free, rtol=1e-12)
    assert np.allclose(r.log_likelihood, likelihood, rtol=1e-12)
    assert r.objective < r.log_likelihood


@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_annealing_climbs_its_own_free_energy_at_a_fixed_temperature(beta):
    """F_β(q_β, θ) = Σ log Σ_k p(x, k | θ)^β / β, with the log-likelihood as negative control."""
    x = sets()[1]
    model = jaxem.Mixture(jaxem.Normal(), k=3)
    rule = jaxem.EM(e_step=jaxem.Tempered((beta,), steps=200))
    weights = jnp.ones(60)

    def step(carry, _):
        params, memory = carry
        tempered = normalize(beta * model.log_joint(params, x))[1].sum() / beta
        seen = rule.evaluate(model, params, x, weights, memory)
        return (seen.proposal, seen.memory), (tempered, seen.objective)

    @jax.jit
    def climb():
        params = model.init(jax.random.key(0), x, weights)
        return jax.lax.scan(step, (params, rule.start(model, params)), None, length=30)[1]

    tempered, plain = map(np.asarray, climb())
    assert (np.diff(tempered) > -1e-9).all()
    assert (np.diff(plain) < -1e-3).any()


def test_annealing_leaves_bad_starts_behind():
    """Four clear groups; both starts lay one component over two groups, from which EM does not
    return. Without the temperature (a schedule of 1) it stays there too: the negative control."""
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0], [6, 0], [0, 6], [6, 6.0]])
    group = np.repeat(np.arange(4), 100)
    x = rng.normal(size=(400, 2)) + centres[group]
    model = jaxem.Mixture(jaxem.Normal("spherical"), k=4)
    best = jaxem.fit(model, x, init=jaxem.Labels(group))
    bad = np.where(group < 2, 0, group)
    bad[:100:2] = 1  # two components share a group, one lies over... the pair
    bad[100:200] = 2
    found = {}
    for name, rule in {
        "em": jaxem.Exact(),
        "hot only by name": jaxem.Tempered((1.0,)),
        "annealed": jaxem.Tempered(),
    }.items():
        found[name] = jaxem.fit(
            model, x, init=jaxem.Labels(bad), method=jaxem.EM(e_step=rule)
        ).log_likelihood
    assert found["em"] < best.log_likelihood - 20
    assert found["hot only by name"] < best.log_likelihood - 20
    assert abs(found["annealed"] - best.log_likelihood) < 1e-2


def test_incremental_blocks_hold_every_unit_once():
    x, weights = jnp.arange(10.0)[:, None], jnp.arange(10.0) + 1
    data, w = parted((x, weights), 10, 4)
    assert data.shape == (4, 3, 1) and float(w.sum()) == 55
    assert sorted(np.asarray(data[..., 0])[np.asarray(w) > 0]) == list(range(10))
    assert (np.asarray(data[..., 0])[np.asarray(w) > 0] + 1 == np.asarray(w)[w > 0]).all()


def test_incremental_ends_where_em_does_in_fewer_passes():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(600, 2)) + 1.6 * rng.integers(3, size=(600, 1))
    model = jaxem.Mixture(jaxem.Normal("spherical"), k=3)
    fit = functools.partial(jaxem.fit, model, x, tol=1e-9, max_iter=20_000)
    start = jaxem.fit(model, x, key=1, max_iter=0, tol=0).params
    plain = fit(init=start, method=jaxem.EM(accelerator=None))
    partial = fit(init=start, method=jaxem.EM(e_step=jaxem.Incremental(10, sweeps=4)))
    assert partial.converged and plain.converged
    assert abs(partial.log_likelihood - plain.log_likelihood) < 1e-5
    assert 5 * partial.n_iter < 0.8 * plain.n_iter


def test_stochastic_draws_what_the_posterior_says():
    r = jnp.asarray([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.7, 0.0, 0.3]])
    mean = np.asarray(sampled(jax.random.key(0), r, 20_000))
    assert np.allclose(mean, r, atol=0.02) and (mean[np.asarray(r) == 0] == 0).all()
    one = np.asarray(sampled(jax.random.key(1), r, 1))
    assert set(one.ravel()) == {0.0, 1.0} and (one.sum(1) == 1).all()


def test_stochastic_never_calls_itself_converged():
    model = jaxem.Mixture(jaxem.Normal(), k=3)
    with pytest.warns(jaxem.FitWarning, match="MAX_ITER"):
        r = jaxem.fit(
            model, sets()[0], key=0, tol=1.0, max_iter=300, method=jaxem.EM(jaxem.Stochastic(5))
        )
    assert r.status == jaxem.Status.MAX_ITER and r.n_iter == 300


def test_constrained_posterior_as_published():
    case = published("constrained-posterior")
    p = np.array(case["inline"]["p"])
    joint = jnp.log(jnp.stack([1 - p, p], axis=1))
    rule = jaxem.Constrained(np.array([[0.0], [1.0]]), np.array([case["inline"]["bound"] / 3]))
    q, value, multipliers = rule.project(joint, jnp.ones(3))
    assert np.allclose(q[:, 1], case["q"], rtol=0, atol=case["tolerance"])
    assert np.allclose(-value.sum(), case["kl"], rtol=0, atol=case["tolerance"])
    assert np.allclose(multipliers, case["multiplier"], rtol=0, atol=case["tolerance"])
    slack = jaxem.Constrained(rule.features, np.array([0.9]))
    q, value, multipliers = slack.project(joint, jnp.ones(3))
    assert np.allclose(q[:, 1], p) and float(multipliers[0]) == 0
    assert np.allclose(value.sum(), 0, atol=1e-12)


def test_balanced_sizes():
    """Groups of 60 and 240, and components of one size: F is below the evidence by the KL."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0, 1, (60, 1)), rng.normal(3, 1, (240, 1))])
    model = jaxem.Mixture(jaxem.Normal(), k=2)
    free = jaxem.fit(model, x, key=0)
    assert abs(free.params.weights - 0.5).max() > 0.2
    rule = jaxem.Constrained.sizes([0.5, 0.5])
    r = jaxem.fit(model, x, key=0, method=jaxem.EM(e_step=rule))
    assert r.converged and np.allclose(r.params.weights, 0.5, atol=1e-8)

    @jax.jit
    def projected(params):
        q, _, _ = rule.project(model.log_joint(params, x), jnp.ones(300))
        return q, jaxem.free_energy(model, params, x, q)

    q, free = map(np.asarray, projected(r.params))
    assert np.allclose(q.mean(0), 0.5, atol=1e-10)
    assert np.allclose(r.objective, free, rtol=1e-10)
    assert r.objective < r.log_likelihood - 0.01


def test_rules_that_do_not_go_together_are_refused():
    for rule in (jaxem.Tempered(), jaxem.Stochastic()):
        with pytest.raises(TypeError, match="accelerator"):
            jaxem.EM(e_step=rule, accelerator=jaxem.SQUAREM())
    with pytest.raises(TypeError, match="exact M-step"):
        jaxem.EM(e_step=jaxem.Incremental(), m_step=jaxem.Gradient())
    with pytest.raises(TypeError, match="e_step must be a rule"):
        jaxem.EM(e_step=jaxem.Hard)
    with pytest.raises(ValueError, match="above 0"):
        jaxem.Tempered((0.0, 1.0))


def test_a_product_in_a_batch():
    model, x = MODELS["product"]
    many = jaxem.fit(model, jaxem.Batch(np.stack([x, x])), key=0, max_iter=3, tol=0)
    assert many.n_iter.tolist() == [3, 3] and np.isfinite(many.log_likelihood).all()
