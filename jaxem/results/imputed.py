"""Missing cells replaced by what the observed ones say of them: `Result.impute`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.data import Data, of_components
from jaxem.data.options import as_key, integer
from jaxem.data.sequences import Sequences
from jaxem.models.hmm.chained import Chained
from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.capabilities import Imputed, has
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.wrapper import Wrapper


def impute(result, x, draws, key):
    """As `Result.impute`."""
    if result.is_fleet:
        raise TypeError("a batch imputes one fit at a time: result[i].impute(x)")
    bank, params = _bank_of(result)
    if draws is not None:
        draws = integer(draws, "draws", 1)
        if key is None:
            raise ValueError("draws are random: pass key=jax.random.key(0), or an int")
        key = as_key(key)
        key = jax.random.key(key) if isinstance(key, np.uint32) else key
    if isinstance(x, Sequences):
        return _of_sequences(result, bank, params, x, draws, key)
    r = jnp.asarray(result.predict_proba(x))
    data = dataclasses.replace(x, groups=None) if isinstance(x, Data) else x
    data = jax.tree.map(jnp.asarray, of_components(data))
    if draws is None:
        return _expected(bank, params, data, r)
    return _drawn(bank, params, data, jnp.log(r), jax.random.split(key, draws))


def _bank_of(result):
    """(the bank of a mixture or a chain, its params). TypeError where it takes no missing cells."""
    model = result.model
    if isinstance(model, Wrapper) and not isinstance(model, Bank):
        model = model.wrapped
    parts = {FiniteMixture: "components", Chained: "emissions"}
    for kind, name in parts.items():
        if isinstance(model, kind) and has(model.bank, Imputed):
            shape = jax.ShapeDtypeStruct((1, 1), jnp.result_type(float))
            if jax.eval_shape(model.bank.domain.is_observed, shape) is not None:
                return model.bank, getattr(result.params, name)
    if _takes_missing(result):
        raise TypeError(
            f"{name_of(model)} takes missing cells, and its components do not say what is expected "
            "of them: impute is of jaxem.Normal and jaxem.StudentT components"
        )
    raise TypeError(
        f"{name_of(model)} takes no missing cells to impute: fit components that do, such as "
        "jaxem.Normal(missing=True)"
    )


def _takes_missing(result) -> bool:
    shape = jax.ShapeDtypeStruct((1, *result._shape_of_one[1:]), jnp.result_type(float))
    return jax.eval_shape(result.model.domain.is_observed, shape) is not None


@jax.jit
def _mixed(r, means):
    return (r[:, :, None] * means).sum(1)


def _expected(bank, params, rows, r):
    means = jax.jit(bank.completed)(params, rows)
    x = rows if isinstance(rows, jax.Array) else rows.x
    return jnp.where(jnp.isnan(x), _mixed(r, means), x)


def _drawn(bank, params, rows, logs, keys):
    """Imputed rows (m, n, d); logs (n, k): of the responsibilities."""

    def draw(key):
        of_component, of_cells = jax.random.split(key)
        z = jax.random.categorical(of_component, logs)
        return bank.drawn(of_cells, params, rows, z)

    return jax.lax.map(draw, keys)


def _of_sequences(result, bank, params, x, draws, key):
    rows = [
        np.where(seen[:t, None], row[:t], np.nan)
        for row, seen, t in zip(*map(np.asarray, (x.rows, x.observed, x.length)), strict=True)
    ]
    ends = np.cumsum([len(row) for row in rows])[:-1]
    flat = jnp.asarray(np.concatenate(rows), x.dtype)
    if draws is None:
        r = jnp.concatenate([jnp.asarray(one) for one in result.predict_proba(x)])
        return np.split(np.asarray(_expected(bank, params, flat, r)), ends)
    found = []
    for one in jax.random.split(key, draws):
        of_path, of_cells = jax.random.split(one)
        path = result.model.draw(of_path, result.params, x)
        z = jnp.concatenate([jnp.asarray(states) for states in path])
        found.append(np.split(np.asarray(bank.drawn(of_cells, params, flat, z)), ends))
    return [np.stack(parts) for parts in zip(*found, strict=True)]
