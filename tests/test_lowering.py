"""Programs for a GPU and a TPU, lowered without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import collect, tuning

import jaxem
from benchmarks.hlo import Module, low_products
from benchmarks.workloads import workloads

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


@pytest.mark.parametrize("name", ["optax", "meanfield", "constrained", "restricted"])
def test_those_of_other_rules_too(name):
    function, *args = workloads()[name]
    products(function, *args)


def products(function, *args):
    exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(*(args or (X,)))
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


def test_no_factorisation_in_the_loop_over_chunks(monkeypatch):
    """Compilers for a GPU leave it there."""
    for name in ("ACCELERATOR_NUMBERS", "GPU_NUMBERS"):
        monkeypatch.setattr(tuning, name, 2**17)  # several chunks
    model, x = jaxem.Mixture(jaxem.Normal(), 2), np.zeros((40_000, 16), np.float32)
    params = jax.eval_shape(lambda x: jaxem.fit(model, x, key=0, max_iter=0, tol=0).params, x)
    with tuning.on_platform("gpu"):
        sums = jax.make_jaxpr(lambda p, x, w: collect(model, p, x, w))(params, x, x[:, 0])
    names = set(primitives(sums.jaxpr))
    assert "dot_general" in names and not names & {"cholesky", "triangular_solve"}


def climb(x):
    """Five turns with two products in one branch, then an unknown number with a factorisation."""

    def turn(_, y):
        return jax.lax.cond(y[0, 0] > 0, lambda y: jnp.tanh(x @ y) @ y, lambda y: y, y)

    def factored(y):
        square = jnp.matmul(y, y.T, precision="highest")
        return jnp.linalg.cholesky(square + jnp.eye(len(y), dtype=y.dtype))

    y = jax.lax.fori_loop(0, 5, turn, x)
    return jax.lax.while_loop(lambda y: y.sum() < 9, factored, y)


def test_the_reader_of_modules_counts_turns_branches_and_library_calls():
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 10)
    try:
        lowered = jax.jit(climb).lower(X[:3])
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    assert low_products(lowered.as_text()) == (2, 3)
    module = Module(lowered.compile().as_text())
    assert module.low_products == (2, 3) and not module.collectives
    counted, until = module.loops
    assert (counted.function, counted.trips) == ("climb", 5)
    assert (until.function, until.trips) == ("climb", None)
    ((most, least),) = counted.branches
    assert counted.launches["dot"] == 2 < most <= counted.launches.total() and least == 0
    assert not counted.calls and until.calls == {"lapack_spotrf_ffi": 1}
    launches = module.launches(module.entry)
    assert launches["dot"] == 5 * 2 + 1 and launches["lapack_spotrf_ffi"] == 1
