"""`check_model` says what is wrong, in one sentence each; and nothing about sound models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import normalize
from zoo import MODELS

import jaxem

X = np.concatenate([np.random.default_rng(0).exponential(s, (20, 1)) for s in (1.0, 8.0)])


@dataclasses.dataclass(frozen=True)
class TwoExponentials:
    """weights (2,) and rates (2,): correct, and the parent of the broken ones."""

    def init(self, key, x, weights):
        return {"weights": jnp.array([0.4, 0.6], x.dtype), "rates": jnp.array([2.0, 0.3], x.dtype)}

    def log_joint(self, params, x):
        return jnp.log(params["weights"]) + jnp.log(params["rates"]) - x * params["rates"]

    def statistics(self, params, x, q, weights):
        r = q * weights[:, None]
        return {"count": r.sum(0), "total": (r * x).sum(0)}

    def maximize(self, params, stats):
        count = stats["count"]
        return {"weights": count / count.sum(), "rates": count / stats["total"]}

    def spaces(self, params):
        return {"weights": jaxem.spaces.SIMPLEX, "rates": jaxem.spaces.POSITIVE}


class Mean(TwoExponentials):
    def statistics(self, params, x, q, weights):
        return jax.tree.map(lambda a: a / len(x), super().statistics(params, x, q, weights))


class Unweighted(TwoExponentials):
    def statistics(self, params, x, q, weights):
        return super().statistics(params, x, q, jnp.ones_like(weights))


class WrongStep(TwoExponentials):
    def maximize(self, params, stats):
        new = super().maximize(params, stats)
        return new | {"rates": 1 / new["rates"]}


class LonelyPrior(TwoExponentials):
    def log_prior(self, params):
        return -200 * jnp.square(params["rates"] - 2).sum()


class Transposed(TwoExponentials):
    def log_joint(self, params, x):
        return super().log_joint(params, x).T


class ForgottenWeights(TwoExponentials):
    def posterior(self, params, x):
        joint = self.log_joint(params, x)
        r, evidence = normalize(joint)
        return r, evidence - jnp.log(2)


class UnsafeLog(TwoExponentials):
    def log_joint(self, params, x):
        extra = jnp.where(x > 1e9, jnp.sqrt(params["rates"] - params["rates"]), 0)
        return super().log_joint(params, x) + extra


class CutOff(TwoExponentials):
    def posterior(self, params, x):
        held = jax.lax.stop_gradient(params)
        return normalize(self.log_joint(held, x))


class WrongDtype(TwoExponentials):
    def maximize(self, params, stats):
        new = super().maximize(params, stats)
        return new | {"rates": new["rates"].astype(jnp.float16)}


class Branching(TwoExponentials):
    def init(self, key, x, weights):
        return super().init(key, x, weights) if x.sum() > 0 else None


class Undeclared(TwoExponentials):
    def spaces(self, params):
        return jax.tree.map(lambda _: jaxem.spaces.REAL, params)


class MeanOfAll(TwoExponentials):
    def init(self, key, x, weights):
        start = super().init(key, x, weights)
        return start | {"rates": start["rates"] / x.mean()}


class ZeroLogZero(TwoExponentials):
    def log_joint(self, params, x):
        return super().log_joint(params, x) + 0 * jnp.log(params["weights"])


class Constant(TwoExponentials):
    def maximize(self, params, stats):
        return super().init(None, stats["total"], None)


@dataclasses.dataclass(frozen=True)
class ByIdentity(TwoExponentials):
    marker: object = dataclasses.field(default_factory=object)


class Incomplete:
    def init(self, key, x, weights):
        return {}


BROKEN = {
    Mean: "must be a sum over units, not a mean",
    Unweighted: "must be linear in weights",
    WrongStep: "lowered the objective",
    LonelyPrior: "a prior must stand in log_prior and in maximize",
    Transposed: r"must return shape \(n, k\)",
    ForgottenWeights: "exceeds the evidence",
    UnsafeLog: "guard the argument of log",
    CutOff: "Fisher's identity",
    WrongDtype: "keep shape and dtype",
    Branching: "init must be pure JAX",
    Undeclared: "spaces says REAL",
    MeanOfAll: "every mean over units needs the weights",
    ZeroLogZero: "0 · log 0 is NaN",
    Constant: "still has a slope",
    ByIdentity: "compiles its own programs",
    Incomplete: "lacks log_joint",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.__name__)
def test_what_is_wrong_is_named(broken):
    findings = jaxem.check_model(broken(), X)
    assert not findings.ok
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        raise AssertionError("\n".join(findings.problems))
    assert len(findings.problems) <= 2, str(findings)
    assert all(p in str(findings) for p in findings.problems)


@pytest.mark.parametrize(
    "name",
    [
        "normal-full",
        "poisson-map",
        "labelled",
        pytest.param("each-mixture", marks=pytest.mark.slow),
    ],
)
def test_sound_models_pass(name):
    findings = jaxem.check_model(*MODELS[name])
    assert findings.ok, str(findings)
    assert len(findings.passed) == 14


def test_a_sound_model_of_a_user_passes_with_and_without_an_m_step():
    class Bare:
        init, log_joint = TwoExponentials.init, TwoExponentials.log_joint
        spaces = TwoExponentials.spaces

    assert jaxem.check_model(TwoExponentials(), X).ok
    findings = jaxem.check_model(Bare(), X)
    assert findings.ok and len(findings.passed) == 12
    fitted = [jaxem.fit(m, X, key=0, tol=1e-9) for m in (TwoExponentials(), Bare())]
    assert all(r.converged for r in fitted)
    assert np.allclose(fitted[0].params["rates"], fitted[1].params["rates"], rtol=1e-3)
    assert abs(fitted[0].log_likelihood - fitted[1].log_likelihood) < 1e-6


class Geometric:
    """One geometric distribution: `init` and `posterior` alone, with no base class."""

    def init(self, key, x, weights):
        return {"p": jnp.full(x.shape[1], 0.5, x.dtype)}

    def posterior(self, params, x):
        return None, (jnp.log(params["p"]) + x * jnp.log1p(-params["p"])).sum(1)

    def spaces(self, params):
        return {"p": jaxem.spaces.UNIT}


def test_posterior_alone_is_enough():
    counts = np.floor(X)
    fitted = jaxem.fit(Geometric(), counts, key=0, tol=1e-9)
    assert fitted.converged
    np.testing.assert_allclose(fitted.params["p"], 1 / (1 + counts.mean()), rtol=1e-4)
    mixture = jaxem.Mixture(jaxem.Each(Geometric()), 1)
    inside = jaxem.fit(mixture, counts, key=0, tol=1e-9)
    np.testing.assert_allclose(inside.log_likelihood, fitted.log_likelihood, rtol=1e-9)
    assert fitted.n_parameters == 1
