"""What a chain says about the states of given sequences, row by row.

Every function returns a list of NumPy arrays, one a sequence, or padded JAX arrays (n, t, ...)
where the sequences are traced.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.options import as_key, integer
from jaxem.data.sequences import Sequences
from jaxem.numerics.tree import is_traced, merge, split


class Forecast(NamedTuple):
    """states (n, steps, k): the probabilities of the states of the rows after each sequence."""

    states: Any


def filtered(model, params, x):
    """p(z_t | x_1 … x_t), (t_i, k) each."""
    return _by_row(model, x, _asked(model, params, x, "filtered"))


def smoothed(model, params, x):
    """p(z_t | all rows), (t_i, k) each."""
    return _by_row(model, x, _asked(model, params, x, "smoothed"))


def best(model, params, x):
    """The most probable path of states, integers (t_i,) each."""
    return _by_row(model, x, _asked(model, params, x, "best"))


def drawn(model, key, params, x):
    """Paths drawn from p(z | x), integers (t_i,) each."""
    key = as_key(key)
    key = jax.random.key(key) if isinstance(key, np.uint32) else key
    return _by_row(model, x, _asked(model, params, x, "drawn", key))


def forecast(model, params, x, steps, inputs=None):
    """The `Forecast` of so many rows after the end of every sequence. inputs (n, steps, g): those
    of the last row of each sequence and of the rows that follow, but for the last one."""
    steps = integer(steps, "steps", 1)
    last = _asked(model, params, x, "last")
    if (inputs is None) == bool(model.domain.inputs):
        raise ValueError(
            "forecasts need inputs (n, steps, g) where transitions depend on them, and only there"
        )
    rows = None
    if inputs is not None:
        rows = jnp.moveaxis(model.transitions.covariates(jnp.asarray(inputs)), 0, 2)
        if rows.shape[0] != steps or rows.shape[2] != len(x):
            raise ValueError(
                f"inputs must have shape ({len(x)}, {steps}, g), got {np.shape(inputs)}"
            )

    chain = model.chain(params, x.padded())

    def step(state, given):
        state = chain.onward(state, given)
        return state, state

    states = chain.states(jax.lax.scan(step, last, rows, length=steps)[1])
    return Forecast(jnp.moveaxis(states, 2, 0))


def _asked(model, params, x, what, key=None):
    model.domain.check(x, type(model).__name__)
    numeric, structure = split(model)
    return _answer(numeric, params, x, key, structure, what)


def _answer(numeric, params, x, key, structure, what):
    """The answer for all sequences, padded (n, t, ...)."""
    model, stack = merge(numeric, structure), x.padded()
    x = Sequences.of(stack.length, stack.rows, stack.observed, stack.inputs)
    return model.answer(what, params, x, key)


_answer = jax.jit(_answer, static_argnums=(4, 5))


def _by_row(model, x, values):
    """Values (n, t, ...) as a list of arrays (t_i, ...), where lengths are known. The first rows,
    on which an `Autoregression` is conditional, have no states: −1, or probabilities of NaN."""
    lags = model.domain.lags
    if is_traced(x, values):
        return values
    values = np.asarray(values)
    absent = np.nan if values.dtype.kind == "f" else -1
    first = np.full((len(values), lags, *values.shape[2:]), absent, values.dtype)
    values = np.concatenate([first, values], 1)
    return [values[i, :t] for i, t in enumerate(np.asarray(x.length).tolist())]
