"""Programs for a GPU and a TPU, lowered without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import collect

import jaxem

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


class Line(jaxem.Model):
    """y = features · slope + noise of variance 1, by gradient steps; its product is a plain `@`."""

    def init(self, key, x, weights):
        return {"slope": jnp.zeros(2, x.dtype)}

    def posterior(self, params, x):
        return None, -jnp.square(x[:, 0] - x[:, 1:] @ params["slope"]) / 2


def loss(x, method=jaxem.EM(), model=Line()):  # noqa: B008 - frozen
    result = jaxem.fit(model, x, key=0, method=method)
    return result.log_likelihood + result.score_samples(x).sum()


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_all_products_are_at_full_precision(gradient):
    function = jax.grad(loss) if gradient else loss
    products(function)


def test_those_of_accelerators_too():
    model, method = jaxem.Mixture(jaxem.Normal(), 2), jaxem.EM(accelerator=jaxem.Anderson())
    products(lambda x: loss(x, method, model))


def products(function):
    exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(X)
    lines = [
        line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line
    ]
    low = [line for line in lines if "HIGHEST" not in line]
    assert len(lines) > 2 and not low, "\n".join(low)


def primitives(jaxpr, inside=False):
    """The names of all primitives inside the loops over chunks."""
    for equation in jaxpr.eqns:
        is_loop = equation.primitive.name == "scan"
        if inside:
            yield equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from primitives(part, inside or is_loop)


def test_no_factorisation_in_the_loop_over_chunks():
    """Compilers for a GPU leave it there."""
    model, x = jaxem.Mixture(jaxem.Normal(), 2), np.zeros((40_000, 16), np.float32)
    params = jax.eval_shape(lambda x: jaxem.fit(model, x, key=0, max_iter=0, tol=0).params, x)
    sums = jax.make_jaxpr(lambda p, x, w: collect(model, p, x, w))(params, x, x[:, 0])
    names = set(primitives(sums.jaxpr))
    assert "dot_general" in names and not names & {"cholesky", "triangular_solve"}
