"""How the suite is run: x64 on, two sets of compiler flags, a cache of programs, longest first.

Most of the suite's time is compilation. So most tests are compiled with little optimisation. The
tests marked `shipped` or `slow` are compiled with the flags that users have. A process has one set
of flags. So one call of pytest runs two sessions, one after the other: the second one runs the
shipped tests, with the same arguments. Each prints its own closing line. The second session starts
only if the first one has left tests to it, and the exit status is that of both.

What x64 off changes is tested in a subprocess (test_x64_off.py).
"""

import gc
import importlib.metadata
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

SHIPPED = os.environ.get("JAXEM_TEST_FLAGS") == "shipped"
USERS_FLAGS = os.environ.get("XLA_FLAGS", "")
FAST_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
JAXLIB = importlib.metadata.version("jaxlib")
if JAXLIB.startswith("0.10."):  # later versions lack the flag, and an unknown flag ends the process
    FAST_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if not SHIPPED:  # before JAX is imported; workers of xdist inherit it
    os.environ["XLA_FLAGS"] = " ".join([USERS_FLAGS, *FAST_FLAGS])

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tests.seldom import is_seldom  # noqa: E402

gc.set_threshold(50_000, 20, 20)  # the garbage collector takes 7% of the time of the suite
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # tracebacks cost 5% of the time to lower
cache = pathlib.Path(__file__).parents[1] / ".jax_cache" / f"jaxlib-{JAXLIB}"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

LONGEST = ["test_readme.py", "test_notebooks.py", "test_gradient_joint.py", "test_acceleration.py"]
"""Files whose tests take long: they run first, so that no worker ends with a long one."""

SHARING = ["test_families.py", "test_free_energy.py", "test_laws.py", "test_priors.py"]
"""Files whose tests share a program a case: the tests of a case run one after the other, so that a
worker that takes over a part of them compiles few programs again."""

left = 0
"""Tests that this session has left to the second one."""


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Sessions(), "jaxem-sessions")


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    """Seldom cases (`tests/seldom.py`) are slow tests."""
    if is_seldom(item):
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep the tests of this session's flags, those of long files first."""
    global left
    kinds = {False: [], True: []}
    for item in items:
        shipped = any(item.get_closest_marker(name) for name in ("shipped", "slow"))
        kinds[shipped].append(item)
    others = kinds[not SHIPPED]
    left = len(others)
    if others:
        config.hook.pytest_deselected(items=others)
    items[:] = sorted(kinds[SHIPPED], key=order)


def order(item):
    """Long files first, then by file; in the files that share programs by case."""
    file, case = item.path.name, ""
    if file in SHARING and hasattr(item, "callspec"):
        params = item.callspec.params
        case = params.get("name", params.get("case", ""))
        case = getattr(case, "name", case)
    file = file.replace("free_energy", "laws")  # of the same programs
    return LONGEST.index(file) if file in LONGEST else len(LONGEST), file, case


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The controller hears from a worker how many tests are left."""
    global left
    left = max(left, getattr(node, "workeroutput", {}).get("left", 0))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left


class Sessions:
    """Of the controller alone: the second session, after the first one's closing line."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session):
        result = yield
        none = pytest.ExitCode.NO_TESTS_COLLECTED
        failed = session.exitstatus not in (pytest.ExitCode.OK, none)
        stopped = failed and (session.shouldstop or session.shouldfail)
        interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        options = session.config.option
        if SHIPPED or not left or options.collectonly or stopped or interrupted:
            return result
        print("\nshipped compiler flags:", flush=True)
        command = [sys.executable, "-m", "pytest", *session.config.invocation_params.args]
        environment = {"JAXEM_TEST_FLAGS": "shipped", "XLA_FLAGS": USERS_FLAGS}
        second = subprocess.run(command, env=os.environ | environment, check=False).returncode
        if session.exitstatus == none or (not failed and second != none):
            session.exitstatus = second
        return result


MAPS = pathlib.Path("/proc/self/maps")
MOST = 20_000
"""Memory maps of a process: Linux allows 65,530, every compiled program holds some for good, and a
compiler that gets no more of them aborts."""

tests = itertools.count(1)


@pytest.fixture(autouse=True)
def programs_freed():
    """Compiled programs are dropped between tests when a worker holds too many."""
    yield
    if next(tests) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST:
        jax.clear_caches()


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param
