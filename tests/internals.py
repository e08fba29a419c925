"""Uses of what jaxem does not make public, in one place, and the listener for compilations."""

import contextlib

import jax.monitoring

import jaxem
from jaxem.analysis.free_energy import ascent, decompose

__all__ = ["ascent", "compilations", "decompose", "evaluate"]

_COMPILED = "/jax/core/compile/backend_compile_duration"
_durations = []


@jax.monitoring.register_event_duration_secs_listener
def _listen(event, duration, **_):
    if event == _COMPILED:
        _durations.append(duration)


@contextlib.contextmanager
def compilations():
    """Counts the programs that JAX compiles, or loads from its cache, inside the block."""
    counted, before = [], len(_durations)
    yield counted
    counted.append(len(_durations) - before)


def evaluate(model, params, data, weights):
    """One evaluation by exact EM: the objective at params and the proposal of the M-step."""
    return jaxem.EM().evaluate(model, params, data, weights)
