"""The climb of a fit, recorded step by step."""

import jax
import numpy as np
import pytest
from zoo import REAL, K

import jaxem

MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
PLAIN = jaxem.EM(accelerator=None)


@pytest.fixture(scope="module")
def traced():
    return jaxem.fit(MODEL, REAL, key=0, restarts=3, method=PLAIN, trace=True)


def test_the_trace_is_that_of_the_best_restart(traced):
    trace = traced.trace
    assert len(trace) == traced.n_iter + 1
    assert trace.objective[-1] == traced.objective
    assert trace.log_likelihood[-1] == traced.log_likelihood
    plain = jaxem.fit(MODEL, REAL, key=0, restarts=3, method=PLAIN)
    assert plain.trace is None
    assert (plain.n_iter, plain.restarts.n_iter.tolist()) == (
        traced.n_iter,
        traced.restarts.n_iter.tolist(),
    )
    np.testing.assert_allclose(plain.restarts.objective, traced.restarts.objective, rtol=1e-12)
    rounding = 16 * np.finfo(trace.objective.dtype).eps * np.abs(trace.objective).max()
    assert np.diff(trace.objective).min() > -rounding


def test_every_entry_is_the_fit_that_stops_there(traced):
    trace = traced.trace
    for steps in (0, 1, 4):
        short = jaxem.fit(
            MODEL, REAL, key=0, restarts=3, method=PLAIN, max_iter=steps, tol=0
        ).restarts
        best = int(np.argmax(traced.restarts.objective))
        np.testing.assert_allclose(trace.objective[steps], short.objective[best], rtol=1e-10)
        np.testing.assert_allclose(
            trace.log_likelihood[steps], short.log_likelihood[best], rtol=1e-10
        )


def test_steps_and_their_rate(traced):
    """The end of a climb by plain EM is a geometric series of steps, whose gains have the ratio
    rate²."""
    trace = traced.trace
    assert np.isnan(trace.step[0]) and (trace.step[1:] > 0).all()
    assert np.isnan(trace.rate[:2]).all()
    np.testing.assert_allclose(trace.rate[2:], trace.step[2:] / trace.step[1:-1])
    gain = np.diff(trace.objective)
    np.testing.assert_allclose(trace.rate[-3] ** 2, gain[-3] / gain[-4], rtol=0.05)


def test_screened_restarts_are_one_climb():
    plan = jaxem.Restarts(4, screen_iters=3, keep=1)
    result = jaxem.fit(MODEL, REAL, key=0, restarts=plan, method=PLAIN, trace=True)
    assert len(result.trace) == result.n_iter + 1
    assert (np.diff(result.trace.objective) > -1e-9).all()
    assert result.trace.objective[-1] == result.objective


def test_a_free_energy_is_below_the_log_likelihood():
    method = jaxem.EM(e_step=jaxem.Hard())
    result = jaxem.fit(MODEL, REAL, key=0, restarts=3, method=method, trace=True)
    assert (result.trace.objective < result.trace.log_likelihood).all()
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = jaxem.plot.trace(result)
    likelihood, objective = ax.lines[:2]
    np.testing.assert_array_equal(objective.get_ydata(), result.trace.objective)
    np.testing.assert_array_equal(likelihood.get_ydata(), result.trace.log_likelihood)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["log-likelihood", "objective"]
    assert ax.get_title() == f"CONVERGED after {result.n_iter} steps"
    pyplot.close("all")


def test_a_trace_is_saved_and_passes_through_transformations(traced, tmp_path):
    traced.save(tmp_path / "fit.npz")
    loaded = jaxem.load(tmp_path / "fit.npz").trace
    np.testing.assert_array_equal(loaded.step, traced.trace.step)
    through = jax.jit(lambda result: result)(traced).trace
    np.testing.assert_array_equal(through.objective, traced.trace.objective)
    assert "objective" in repr(loaded) and len(repr(loaded).splitlines()) == 1


def refused():
    x = np.asarray(REAL)
    return {
        "jit": lambda: jax.jit(lambda x: jaxem.fit(MODEL, x, key=0, trace=True).objective)(x),
        "batch": lambda: jaxem.fit(MODEL, jaxem.Batch([x, x]), key=0, trace=True),
        "unrolled": lambda: jaxem.fit(MODEL, x, key=0, trace=True, gradient="unrolled", max_iter=3),
    }


@pytest.mark.parametrize("name", refused())
def test_where_there_is_no_trace(name):
    with pytest.raises(TypeError, match="trace=True"):
        refused()[name]()
