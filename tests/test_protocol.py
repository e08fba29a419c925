"""The protocol is small, asked in one way, and open to classes that inherit from nothing."""

import ast
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import capabilities, compilations, has
from internals import names as names_of

import jaxem

pytestmark = pytest.mark.smoke

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxem"
ASKING = {"wrapper.py", "capabilities.py"}
"""Where a model is asked for functions by their names."""

MODELS = {"model", "bank", "family", "components", "inner", "wrapped", "mixture", "normal"}
CAPABILITIES = [
    value
    for value in vars(capabilities).values()
    if isinstance(value, type) and value.__module__ == capabilities.__name__
]


def test_a_model_and_a_bank_declare_few_names():
    declared = {
        name
        for base in (jaxem.Model, jaxem.Bank)
        for name in vars(base)
        if not name.startswith("_")
    }
    assert len(declared) <= 15, sorted(declared)
    assert {"init", "posterior", "statistics", "maximize", "log_prior", "domain"} <= declared


def test_capabilities_are_few_and_small():
    assert 0 < len(CAPABILITIES) <= 13
    assert all(1 <= len(names_of(capability)) <= 3 for capability in CAPABILITIES)


def asked_by_name(path):
    """Lines of a file that look for an attribute of a model by its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        handled = node.type if isinstance(node, ast.ExceptHandler) else None
        if handled is not None and "AttributeError" in ast.unparse(handled):
            yield node.lineno
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id in ("getattr", "hasattr"):
            subject = ast.unparse(node.args[0]).split(".")[-1]
            if subject.strip("_") in MODELS:
                yield node.lineno


def test_models_are_asked_for_capabilities_alone(tmp_path):
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if path.name not in ASKING and (lines := list(asked_by_name(path)))
    }
    assert not found
    example = tmp_path / "example.py"
    example.write_text("getattr(model, 'k', 1)\nhasattr(self.bank, 'linear')\n")
    assert list(asked_by_name(example)) == [1, 2]  # the test can fail


class Shifted:
    """Two normals of unit variance at m − 1 and m + 1, m ~ N(0, 1/precision)."""

    def __init__(self, precision):
        self.precision = precision

    def init(self, key, x, weights):
        return {"m": weights @ x / weights.sum()}

    def log_joint(self, params, x):
        centres = jnp.stack([params["m"] - 1, params["m"] + 1])
        return -0.5 * jnp.square(x[:, None] - centres).sum(-1) - jnp.log(2.0)

    def statistics(self, params, x, q, weights):
        signs = jnp.asarray([-1.0, 1.0], x.dtype)
        return {"count": weights.sum(), "total": weights @ x - weights @ (q @ signs)}

    def maximize(self, params, stats):
        return {"m": stats["total"] / (stats["count"] + self.precision)}

    def log_prior(self, params):
        return -0.5 * self.precision * jnp.square(params["m"]).sum()


@dataclasses.dataclass(frozen=True)
class Frozen(Shifted):
    precision: object


class Called(Shifted):
    def __call__(self, x):
        """A model may be a function too."""
        return x


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["precision", "states"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Registered(Shifted):
    """A pytree, all of whose fields are leaves, as those of an `equinox.Module` are."""

    precision: object
    states: int = 2

    def log_joint(self, params, x):
        return super().log_joint(params, x)[:, : self.states]


X = np.random.default_rng(0).normal(2.0, 1.0, (60, 1))
CLASSES = pytest.mark.parametrize("kind", [Shifted, Frozen, Called, Registered])


@CLASSES
def test_arrays_of_a_users_class_are_differentiated(kind):
    def mean(precision):
        return jaxem.fit(kind(precision), X, key=0, tol=1e-12).params["m"][0]

    precision, step = jnp.asarray(30.0), 1e-3
    slope = jax.grad(mean)(precision)
    ahead, behind = (float(mean(precision + s)) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5)
    batch = jax.vmap(mean)(jnp.asarray([0.0, 30.0]))
    np.testing.assert_allclose(batch, [mean(jnp.asarray(0.0)), mean(precision)], rtol=1e-6)


@CLASSES
def test_equal_models_compile_once_and_other_values_are_seen(kind):
    first = jaxem.fit(kind(jnp.asarray(0.0)), X, key=0)
    with compilations() as compiled:
        again = jaxem.fit(kind(jnp.asarray(0.0)), X, key=0)
        other = jaxem.fit(kind(jnp.asarray(30.0)), X, key=0)
    assert not compiled
    np.testing.assert_array_equal(again.params["m"], first.params["m"])
    assert other.params["m"] < first.params["m"] - 0.1


def test_a_model_that_was_changed_is_another_model():
    model = Shifted(0.0)
    before = jaxem.fit(model, X, key=0).params["m"]
    model.precision = 30.0
    after = jaxem.fit(model, X, key=0)
    assert after.params["m"] < before - 0.1
    expected = jaxem.fit(Shifted(30.0), X, key=0)
    np.testing.assert_array_equal(after.params["m"], expected.params["m"])
    np.testing.assert_allclose(after.score_samples(X).sum(), after.log_likelihood, rtol=1e-9)


class Geometric:
    """log p(x) = log p + x log(1 − p), by its density alone."""

    def init(self, key, x, weights):
        return {"p": weights.sum() / (weights.sum() + weights @ x)}

    def posterior(self, params, x):
        p = params["p"]
        return None, (jnp.log(p) + jax.scipy.special.xlog1py(x, -p)).sum(-1)

    def spaces(self, params):
        return {"p": jaxem.spaces.UNIT}

    def colour(self):
        """A function that no protocol knows."""


class WithMStep(Geometric):
    def statistics(self, params, x, q, weights):
        return {"count": weights.sum(), "total": weights @ x}

    def maximize(self, params, stats):
        return {"p": stats["count"] / (stats["count"] + stats["total"])}


def test_each_and_mixtures_take_any_class():
    rng = np.random.default_rng(0)
    counts = np.concatenate([rng.geometric(p, (100, 1)) - 1.0 for p in (0.1, 0.6)])
    exact, gradient = (
        jaxem.fit(jaxem.Mixture(jaxem.Each(kind()), k=2), counts, key=0, tol=1e-10)
        for kind in (WithMStep, Geometric)
    )
    assert exact.converged and gradient.converged
    np.testing.assert_allclose(gradient.log_likelihood, exact.log_likelihood, rtol=1e-8)
    assert exact.n_parameters == 3  # a weight and two probabilities, by their spaces
    assert np.isfinite(exact.bic(counts))
    assert jaxem.check_model(jaxem.Mixture(jaxem.Each(WithMStep()), k=2), counts[::4]).ok


def test_wrappers_answer_for_what_they_wrap():
    finite, restrictable = capabilities.FiniteLatents, capabilities.Restrictable
    mixture = jaxem.Mixture(jaxem.Normal(), 2)
    held = jaxem.Restricted(mixture, {"weights": [0.5, 0.5]})
    assert has(mixture, finite) and has(held, finite)
    assert has(mixture, restrictable) and not has(held, restrictable)
    assert has(jaxem.LDA(2), capabilities.LocalPosterior)
    assert has(jaxem.Restricted(jaxem.LDA(2), {"alpha": 0.3}), capabilities.LocalPosterior)
    assert has(Shifted(0.0), finite) and not has(Geometric(), finite)
    with pytest.raises(ValueError, match="weights must be 0 or more and sum to 1"):
        inner = jaxem.Each(jaxem.Mixture(jaxem.Normal(), 2))
        start = jaxem.MixtureParams(
            np.full(2, 0.5),
            jaxem.MixtureParams(
                np.full((2, 2), 0.9),
                jaxem.NormalParams(np.zeros((2, 2, 1)), np.ones((2, 2, 1, 1))),
            ),
        )
        jaxem.fit(jaxem.Mixture(inner, 2), X, init=start)


def test_topics_with_a_given_concentration():
    documents = jaxem.Documents(np.random.default_rng(0).poisson(0.5, (30, 12)))
    held = jaxem.fit(jaxem.Restricted(jaxem.LDA(2), {"alpha": 0.3}), documents, key=0, tol=1e-8)
    given = jaxem.fit(jaxem.LDA(2, alpha=0.3), documents, key=0, tol=1e-8)
    np.testing.assert_array_equal(held.params.alpha, 0.3)
    np.testing.assert_allclose(held.log_likelihood, given.log_likelihood, rtol=1e-6)
    with pytest.raises(ValueError, match="alpha is given twice"):
        jaxem.fit(jaxem.Restricted(jaxem.LDA(2, alpha=0.5), {"alpha": 0.3}), documents, key=0)


def test_what_topics_cannot_take_is_said():
    documents = jaxem.Documents(np.ones((4, 5), int))
    with pytest.raises(TypeError, match="LDA has its own start"):
        jaxem.fit(jaxem.LDA(2), documents, key=0, init="random")
    with pytest.raises(TypeError, match="LDA keeps its q from step to step"):
        method = jaxem.EM(accelerator=jaxem.SQUAREM())
        jaxem.fit(jaxem.LDA(2), documents, key=0, method=method)


@dataclasses.dataclass(frozen=True)
class Posterior(jaxem.Exact):
    """A rule of a user's own, which happens to be the exact one."""


@dataclasses.dataclass(frozen=True)
class Known(Posterior):
    def stationary(self, model, closed):
        return jaxem.Exact().stationary(model, closed)


jax.tree_util.register_static(Posterior)
jax.tree_util.register_static(Known)


def test_a_users_rule_has_a_gradient_where_it_names_its_map():
    def score(scale, rule):
        method = jaxem.EM(e_step=rule)
        model = jaxem.Mixture(jaxem.Normal("spherical"), 2)
        return jaxem.fit(model, scale * X, key=0, method=method).params.components.mean.sum()

    expected = jax.grad(score)(1.0, jaxem.Exact())
    np.testing.assert_allclose(jax.grad(score)(1.0, Known()), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="rules without `stationary`"):
        jax.grad(score)(1.0, Posterior())
