"""A long run goes in slices: the same answer, watched and stopped; and screened restarts."""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from internals import slices, tuning
from zoo import REAL, K

import jaxem

MODEL = jaxem.Mixture(jaxem.Normal(), k=K)


@pytest.fixture
def short_slices(monkeypatch):
    """Every fit counts as long, and a slice is a few rounds of steps."""

    seen = []

    class Bar(slices._Silent):
        def update(self, count, steps=None, objective=None):
            seen.append(count + (seen or [0])[-1])

    monkeypatch.setattr(tuning, "STEP_SECONDS", 1e-4)
    monkeypatch.setattr(slices, "bar", lambda total, unit, is_wanted: Bar(unit))
    return seen


def calls():
    return {
        "one": lambda: jaxem.fit(MODEL, REAL, key=0),
        "restarts": lambda: jaxem.fit(MODEL, REAL, key=0, restarts=5),
        "weights": lambda: jaxem.fit(MODEL, REAL, key=0, weights=np.arange(len(REAL)) % 3),
        "batch": lambda: jaxem.fit(MODEL, jaxem.Batch(np.stack([REAL, REAL[::-1]])), key=0),
        "ragged": lambda: jaxem.fit(MODEL, jaxem.Batch([REAL, REAL[:40]]), key=0, restarts=3),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "ragged")) for n in calls()]
)
def test_slices_change_nothing(name, short_slices):
    sliced = calls()[name]()
    assert len(short_slices) > 1
    assert short_slices == sorted(short_slices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "STEP_SECONDS", 1e-12)
        whole = calls()[name]()
    assert (sliced.n_iter == whole.n_iter).all()
    assert (sliced.restarts.status == whole.restarts.status).all()
    for a, b in zip(jax.tree.leaves(sliced.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


LONG = """
import signal
import numpy as np, jaxem
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start jobs with it ignored
x = np.random.default_rng(0).normal(size=(20000, 4))
print("fitting", flush=True)
jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=6), x, key=0, restarts=50, tol=0, max_iter=100_000)
"""


def test_a_long_fit_can_be_stopped():
    root = pathlib.Path(__file__).parents[1]
    run = subprocess.Popen([sys.executable, "-c", LONG], stdout=-1, stderr=-1, cwd=root, text=True)
    try:
        assert run.stdout.readline().strip() == "fitting"
        time.sleep(12)  # compiled by now, and running
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        begun = time.perf_counter()
        error = run.communicate(timeout=60)[1]
        assert time.perf_counter() - begun < 2
        assert "KeyboardInterrupt" in error
        # It was climbing, not importing; with several cores in threads.
        assert "host.py" in error or "in_threads" in error
    finally:
        run.kill()


def test_nobody_looks_on_and_nothing_is_printed(capsys):
    with slices.bar(10, slices.FITS, True) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def a_terminal(monkeypatch):
    """A bar is shown at once, as to a user at a terminal."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(slices, "_can_be_seen", lambda: True)
    monkeypatch.setattr(slices, "SECONDS_BEFORE_BAR", 0)


def test_a_bar_says_fits_steps_and_objective(a_terminal, short_slices, monkeypatch, capsys):
    monkeypatch.setattr(slices, "bar", lambda total, unit, wanted: slices._Bar(total, unit, "fit"))
    monkeypatch.setattr(slices._Bar, "__init__", quick(slices._Bar.__init__))
    result = jaxem.fit(MODEL, REAL, key=0, restarts=5)
    shown = capsys.readouterr().err
    assert "5/5" in shown and f"{result.restarts.n_iter.max()} steps" in shown
    assert f"objective {float(result.objective):.7g}" in shown


def quick(init):
    """A bar that is drawn at every update."""

    def changed(self, *args):
        init(self, *args)
        self.bar.mininterval = self.bar.miniters = 0

    return changed


def test_select_has_one_bar_of_its_models(a_terminal, monkeypatch, capsys):
    monkeypatch.setattr(slices._Bar, "__init__", quick(slices._Bar.__init__))
    jaxem.select(REAL, [MODEL], key=0, restarts=5)
    shown = capsys.readouterr().err
    assert "jaxem.select" in shown and "1/1" in shown and "jaxem.fit" not in shown


@pytest.mark.parametrize("batched", [False, True])
def test_screened_restarts_are_two_fits(batched):
    """Short runs from every start, then full ones from the best."""
    data = jaxem.Batch(np.stack([REAL, REAL + 1])) if batched else REAL
    plan = jaxem.Restarts(8, screen_iters=5, keep=2)
    result = jaxem.fit(MODEL, data, key=1, restarts=plan)
    screened = jaxem.fit(MODEL, data, key=1, restarts=8, max_iter=5, tol=0)
    assert result.restarts.status.shape == screened.restarts.status.shape
    kept = result.restarts.n_iter > 5
    assert (kept.sum(-1) == 2).all()
    np.testing.assert_allclose(
        result.restarts.objective[~kept], screened.restarts.objective[~kept], rtol=1e-12
    )
    order = np.argsort(-screened.restarts.objective, axis=-1)[..., :2]
    assert np.take_along_axis(kept, order, -1).all()
    assert np.all(result.objective == result.restarts.objective.max(-1))
    full = jaxem.fit(MODEL, data, key=1, restarts=8)
    later = np.where(kept, full.restarts.objective, result.restarts.objective)
    np.testing.assert_allclose(result.restarts.objective, later, rtol=1e-6)


def test_screened_restarts_under_jit():
    plan = jaxem.Restarts(6, screen_iters=4)
    plain = jaxem.fit(MODEL, REAL, key=0, restarts=plan)
    traced = jax.jit(lambda x: jaxem.fit(MODEL, x, key=0, restarts=plan).objective)(REAL)
    np.testing.assert_allclose(traced, plain.objective, rtol=1e-9)


@pytest.mark.parametrize(
    "args", [(0,), (4, 0), (4, 5, 0), (4, 5, 5), (2.5,), (True,)], ids=repr
)  # fmt: skip
def test_a_plan_that_cannot_be(args):
    with pytest.raises((TypeError, ValueError), match=r"count|screen_iters|keep"):
        jaxem.Restarts(*args)
