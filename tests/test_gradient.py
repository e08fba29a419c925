"""The gradient through a fit against central differences of fits run to the end, in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import merge, split
from slopes import FAST, TIGHT, difference, dotted, inner
from zoo import MODELS, N

import jaxem

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
RNG = np.random.default_rng(3)
UNIDENTIFIED = {"bernoulli": 6, "bernoulli-map": 6}
"""Models that three columns do not identify: how many columns they get here."""
EXTRA = (
    *("bernoulli", "bernoulli-map", "multinomial", "multinomial-map"),
    *("exponential-map", "each", "student-map"),
)
"""Models to whose data three components are one too many: some end identical, empty or normal."""


def problem(name):
    """A model that its data identify, the data, and weights."""
    model, data = MODELS[name]
    if name in EXTRA:
        model = dataclasses.replace(model, k=2)
    if name in UNIDENTIFIED:
        group = np.arange(N)[:, None] % 2
        data = (RNG.random((N, 6)) < 0.2 + 0.6 * group).astype(float)
    return model, data, np.random.default_rng(1).uniform(0.5, 1.5, N)


def is_real(name):
    continuous = ("normal", "student", "exponential", "gamma", "each-mixture", "labelled")
    continuous += ("log-normal", "weibull", "beta")
    return name.startswith(continuous)


def rare(name):
    """Variants of a family that is tested without them."""
    variants = ("-map", "-df", "each-mixture", "-tied", "-diagonal", "-spherical", "labelled")
    variants += ("log-normal", "weibull", "beta", "negative-binomial")
    variants += ("restricted", "product", "gamma")  # in test_restricted, test_gradient_slope too
    return name != "weights-map" and name.endswith(variants)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if rare(n) else ()) for n in MODELS]
)
def test_every_model_against_differences(name):
    """params, objective and log-likelihood, to data, weights and hyperparameters at once; to the
    start exactly 0."""
    model, data, weights = problem(name)
    hyper, structure = split(model)
    hyper = [np.asarray(h, float) for h in hyper]
    start = jaxem.fit(model, data, key=0, weights=weights, restarts=4, **TIGHT)
    assert start.converged, start
    to_the_end = {"tol": 0, "max_iter": 3 * int(start.n_iter) + 500}
    parts = {"weights": weights, "hyper": hyper}
    if is_real(name):
        parts["data"] = data.x if isinstance(data, jaxem.Data) else data

    def fitted(parts, start, options):
        x = parts.get("data", data)
        x = jaxem.Labelled(x, data.labels) if isinstance(data, jaxem.Data) else x
        made = merge(parts["hyper"], structure)
        r = jaxem.fit(made, x, weights=parts["weights"], init=start, **options)
        return jnp.stack([dotted(r.params), r.objective, r.log_likelihood]), r

    def gradients(parts, start):
        def outcome(*at):
            values, r = fitted(*at, TIGHT)
            return values, r.gradient_ok

        _, back, ok = jax.vjp(outcome, parts, start, has_aux=True)
        return *jax.vmap(back)(jnp.eye(3)), ok

    rng = np.random.default_rng(2)
    direction = {
        "weights": rng.normal(size=N),
        "hyper": [0.1 * rng.normal(size=h.shape) for h in hyper],
    }
    if "data" in parts:
        noise = rng.normal(size=parts["data"].shape)
        direction["data"] = 0.1 * np.nan_to_num(parts["data"]) * noise  # 0 where a cell is missing

    @partial(jax.jit, compiler_options=FAST)
    def ended(parts, start):
        values, r = fitted(parts, start, to_the_end)
        return values, r.params

    end = ended(parts, start.params)[1]
    expected = difference(lambda parts: ended(parts, end)[0], parts, direction)
    found, of_start, ok = jax.jit(gradients, compiler_options=FAST)(parts, end)
    assert ok and all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(of_start))
    for i, value in enumerate(expected):
        mine = inner(jax.tree.map(lambda a: a[i], found), direction)  # noqa: B023
        np.testing.assert_allclose(mine, value, rtol=1e-6)
