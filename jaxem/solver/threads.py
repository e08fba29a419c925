"""Threads: an interrupt stops them, and they have the thread-local options of their caller.

Python raises KeyboardInterrupt in the main thread alone. XLA leaves a compilation that is
interrupted there to a thread of its own; if the interpreter ends before that thread, the process
dies of SIGSEGV (jaxlib 0.10.2). So compilations run in threads of Python's, for which the
interpreter waits before it ends.
"""

import contextlib
import contextvars
import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import jax

from jaxem.numerics.tree import is_traced

OPTIONS = tuple(
    option
    for name, option in vars(jax).items()
    if isinstance(option, type(jax.debug_nans)) and name != "thread_guard"
)
"""The options of JAX that can differ between threads, each with its context manager. `thread_guard`
says in which thread work is allowed, so it is no option of another thread."""

MOST_SECONDS_BETWEEN_CHECKS = 0.02
"""The longest pause between two checks whether an array is ready."""

_is_stopped = contextvars.ContextVar("is_stopped", default=None)
"""The event that tells the threads of `in_threads` to stop."""


class Stopped(BaseException):
    """Raised in a thread of `in_threads` whose result nobody waits for any more."""


def in_threads(function, jobs) -> list:
    """`function(job)` of every job, in parallel on the host's cores.

    An exception in one of them, or an interrupt of this thread, is raised at once. The other
    threads then end at their next `check`.
    """
    if len(jobs) == 1:
        return [function(jobs[0])]
    stop, options = threading.Event(), _options()

    def run(job):
        _is_stopped.set(stop)
        with _with(options):
            check()
            return function(job)

    pool = ThreadPoolExecutor(min(len(jobs), cores()))
    try:
        futures = [pool.submit(contextvars.copy_context().run, run, job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()  # raises its exception
        return [future.result() for future in futures]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def is_inside() -> bool:
    """Whether this is a thread of `in_threads`."""
    return _is_stopped.get() is not None


def cores() -> int:
    """The cores of the CPU that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check() -> None:
    """Raises `Stopped` in a thread of `in_threads` that is to stop."""
    stop = _is_stopped.get()
    if stop is not None and stop.is_set():
        raise Stopped


def can_abandon() -> bool:
    """Whether this thread would abandon a compilation: the main thread, outside of `jit`."""
    return threading.current_thread() is threading.main_thread() and current_mesh() is not None


def not_abandoned(function):
    """`function()`, in a thread of its own.

    An interrupt is raised at once, and `function` runs on to its end.
    """
    future, options = Future(), _options()

    def run():
        try:
            with _with(options):
                future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,)).start()
    return future.result()


def until_ready(tree) -> None:
    """Waits until the arrays of a tree are computed. An interrupt is raised at once, where a wait
    inside JAX would put it off to the end."""
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not is_traced(leaf)]
    started = time.perf_counter()
    while not all(array.is_ready() for array in arrays):
        check()
        elapsed = time.perf_counter() - started
        time.sleep(min(MOST_SECONDS_BETWEEN_CHECKS, elapsed / 16))


def _options() -> list:
    """The options of JAX in this thread, and its mesh, as pairs of a context manager and a
    value."""
    pairs = [(option, option.value) for option in OPTIONS]
    mesh = current_mesh()
    if mesh is not None and not mesh.empty:
        pairs.append((jax.set_mesh, mesh))
    return pairs


def current_mesh():
    """The mesh of this thread; None inside of `jit` and the like."""
    try:
        return jax.sharding.get_mesh()
    except ValueError:
        return None


@contextlib.contextmanager
def _with(options):
    """The block with options that another thread has."""
    with contextlib.ExitStack() as stack:
        for option, value in options:
            if option is jax.set_mesh or option.value != value:
                stack.enter_context(option(value))
        yield
