"""Ctrl-C: every long call stops at once, and the process ends cleanly; options of threads."""

import pathlib
import signal
import subprocess
import sys
import threading
import warnings

import jax
import pytest
from internals import select_module, threads
from zoo import REAL, K

import jaxem

SCRIPT = """
import os, signal, sys, threading, time
import numpy as np, jax, jaxem

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start jobs with it ignored
rng = np.random.default_rng(0)
x = rng.normal(size=(20_000, 4)).astype("f4")
words = rng.poisson(0.5, (2000, 50))
mixture = jaxem.Mixture(jaxem.Normal("diagonal"), k=6)
squarem = jaxem.EM(accelerator=jaxem.SQUAREM())
endless = {"key": 0, "tol": 0, "max_iter": 10**6}
VERBS = {
    "fit": lambda: jaxem.fit(mixture, x, **endless),
    "select": lambda: jaxem.select(x, [mixture, jaxem.Mixture(jaxem.Normal(), k=2)], **endless),
    "kmeans": lambda: jaxem.kmeans(np.tile(x, (10, 1)), 200, key=0, restarts=50, max_iter=10**6),
    "restarts": lambda: jaxem.fit(mixture, x, restarts=jaxem.Restarts(20, 10**5), **endless),
    "batch": lambda: jaxem.fit(mixture, jaxem.Batch(x.reshape(40, 500, 4)), **endless),
    "accelerator": lambda: jaxem.fit(mixture, x, method=squarem, **endless),
    "online": lambda: jaxem.fit(mixture, x, method=jaxem.OnlineEM(), **endless),
    "topics": lambda: jaxem.fit(jaxem.LDA(20), jaxem.Documents(words), **endless),
    "student": lambda: jaxem.fit(jaxem.Mixture(jaxem.StudentT(), 3), x, **endless),
    "wide": lambda: jaxem.fit(jaxem.Mixture(jaxem.Normal(), 3), np.tile(x, (20, 8)), **endless),
    "compiled": lambda: jaxem.fit(jaxem.Mixture(jaxem.Normal(), 5), x, **endless),
}
main = threading.main_thread().ident


def functions():
    frame, names = sys._current_frames()[main], set()
    while frame:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


def interrupt(function, seconds):
    while function not in functions():
        time.sleep(0.01)
    time.sleep(seconds)
    global sent
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])


def stop(verb, function, seconds):
    threading.Thread(target=interrupt, args=(function, seconds), daemon=True).start()
    try:
        VERBS[verb]()
    except KeyboardInterrupt:
        print(verb, function, round(time.perf_counter() - sent, 2), flush=True)
        return
    print(verb, "ended by itself", flush=True)


for verb in sys.argv[2:]:
    stop(verb, "in_threads" if verb == "select" else "until_ready", 0.3)
stop("compiled", "not_abandoned", 0.3)
sys.exit(130)  # while it is compiled, and threads of `select` end
"""


def run(*args):
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=root, check=False
    )


def assert_interrupted(*verbs):
    """Each of `verbs`, and a compilation, stops within a second, and the process ends cleanly."""
    process = run("SIGINT", *verbs)
    assert process.returncode == 130, process.stdout + process.stderr[-2000:]
    stops = [line.split() for line in process.stdout.splitlines()]
    assert [stop[0] for stop in stops] == [*verbs, "compiled"]
    assert all(float(seconds) < 1 for *_, seconds in stops), stops


def test_calls_stop_and_the_process_ends():
    assert_interrupted("fit", "select")


@pytest.mark.slow
def test_every_long_call_stops():
    verbs = ("kmeans", "restarts", "batch", "accelerator", "online", "topics", "student", "wide")
    assert_interrupted(*verbs)


@pytest.mark.slow
def test_a_terminated_process_ends():
    assert run("SIGTERM", "fit").returncode == -signal.SIGTERM


TWO = [jaxem.Mixture(jaxem.Normal(s), k=K) for s in ("diagonal", "spherical")]
"""Models that `select` fits in two threads."""


def test_select_has_the_options_of_its_thread(monkeypatch):
    """x64 is on in this process; a block turns it off."""
    seen = []

    def fit(*args, **options):
        seen.append((threading.get_ident(), jax.config.jax_enable_x64))
        return jaxem.fit(*args, **options)

    monkeypatch.setattr(select_module, "fit", fit)
    with jax.enable_x64(False):
        jaxem.select(REAL.astype("f4"), TWO, key=0, restarts=2)
    assert [is_wide for _, is_wide in seen] == [False, False]
    assert threading.get_ident() not in [thread for thread, _ in seen]


def test_options_in_threads():
    def options(_=None):
        c = jax.config
        return (
            c.jax_enable_x64, c.jax_default_matmul_precision, c.jax_debug_nans,
            c.jax_default_device, c.jax_numpy_rank_promotion, jax.sharding.get_mesh(),
        )  # fmt: skip

    device, mesh = jax.devices()[0], jax.make_mesh((1,), ("units",))
    with (
        jax.enable_x64(False),
        jax.default_matmul_precision("float32"),
        jax.debug_nans(True),
        jax.default_device(device),
        jax.numpy_rank_promotion("raise"),
        jax.set_mesh(mesh),
    ):
        expected = (False, "float32", True, device, "raise", mesh)
        assert options() == expected
        assert threads.in_threads(options, [1, 2]) == [expected] * 2
        assert threads.not_abandoned(options) == expected
    assert threads.in_threads(options, [1, 2]) == [options()] * 2


def test_filters_of_warnings_stay():
    """Two selections at once, whose fits warn, in threads of a user's."""
    with pytest.warns(jaxem.FitWarning, match="2 of 2 models"):
        before = list(warnings.filters)

        def choose():
            jaxem.select(REAL, TWO, key=0, restarts=2, max_iter=1)

        both = [threading.Thread(target=choose) for _ in range(2)]
        [thread.start() for thread in both]
        [thread.join() for thread in both]
        assert warnings.filters == before


def test_an_error_in_a_thread_stops_the_others():
    begun, ended = threading.Event(), threading.Event()

    def run(job):
        if job == 0:
            begun.wait()
            raise ValueError("of job 0")
        begun.set()
        try:
            while True:
                threads.check()
        except BaseException:
            ended.set()
            raise

    with pytest.raises(ValueError, match="of job 0"):
        threads.in_threads(run, [0, 1])
    assert ended.wait(10)
