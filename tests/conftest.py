"""Every test runs with x64 on, and most of them in both precisions: jaxem follows the data's dtype.

What x64 off changes is tested in subprocesses (test_x64_off.py).
"""

import itertools
import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
