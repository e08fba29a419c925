"""A batch of fits asked about data: one data set for each fit, stacked or a list."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import explain_bad_weights
from jaxem.data.batch import (
    Batch,
    Block,
    as_blocks,
    check_data_sets,
    data_set_at,
    grouped_sets,
    is_list,
)
from jaxem.data.grouped import unit_shape
from jaxem.numerics.tree import is_traced, merge
from jaxem.protocol.model import name_of
from jaxem.protocol.status import Status
from jaxem.results import answers


class DataSets(NamedTuple):
    """Data sets for the fits of a batch. is_list: whether they were given as a list. names: of the
    groups of each, as in `grouped_sets`."""

    blocks: list[Block]
    is_list: bool
    names: list | None = None


def data_sets(result, x, weights=None) -> DataSets:
    """Data and weights for every fit of a batch, checked. Data sets of a list are padded with
    copies of their last unit, so that no padded value lies outside the model's support."""
    if np.ndim(result.status) != 1:
        raise TypeError(
            f"a batch of shape {np.shape(result.status)} answers one row at a time: "
            "result[i].predict(x[i])"
        )
    x, weights, names = grouped_sets(x.data if isinstance(x, Batch) else x, weights)
    batch = Batch(x)
    listed = is_list(batch.data)
    if not listed and getattr(batch.data, "ndim", 0) == len(result._shape_of_one):
        raise ValueError(
            f"a batch of {len(result)} fits takes as many data sets, a list or an array with "
            f"a leading axis {len(result)}, got one data set of shape {batch.data.shape}: for it "
            "alone use result[i]"
        )
    blocks = as_blocks(batch, weights, repeat=True)
    sets = sum(len(block.index) for block in blocks)
    if sets != len(result):
        raise ValueError(
            f"x has {sets} data sets and the batch {len(result)} fits: give one data set a fit, in "
            "the order of the fits"
        )
    shapes = check_data_sets(batch, blocks, result.model.domain, name_of(result.model))
    result._require_features(unit_shape(shapes))
    if weights is not None:
        _require_sound_weights(blocks)
    return DataSets(blocks, listed, names)


def paths(result, what, x):
    """What a model of sequences says about their states, its `smooth` or its `viterbi`; of a
    batch a list with that of every fit."""
    if np.ndim(result.status):
        return [paths(r, what, one) for r, one in zip(result, _listed(result, x), strict=True)]
    model, x = result.model, result._checked(x)
    return (model.smooth if what == "smooth" else model.viterbi)(result.params, x)


def _listed(result, x) -> list:
    """The data set of each fit of a batch, in a list."""
    data = x.data if isinstance(x, Batch) else x
    sets = [data_set_at(data, i) for i in range(len(result))]
    if is_list(data) and len(data) != len(result):
        raise ValueError(
            f"x has {len(data)} data sets and the batch {len(result)} fits: give one data set a "
            "fit, in the order of the fits"
        )
    return sets


def scores(result, sets: DataSets) -> list:
    """log p(x | params) of every block, (b, n) each."""
    return [
        answers.scores(numeric, params, block.x, result._structure, axes)
        for block, numeric, params, axes in _asked(result, sets)
    ]


def responsibilities(result, sets: DataSets) -> list:
    """p(z = k | x, params) of every block, (b, n, k) each."""
    args = (result.model, result._structure)
    return [
        answers.responsibilities(args[0], numeric, params, block.x, args[1], axes)
        for block, numeric, params, axes in _asked(result, sets)
    ]


def labels(result, sets: DataSets) -> list:
    """The most probable component of every unit of every block, (b, n) each."""
    is_observed, found = result.model.domain.is_observed, []
    for block, r in zip(sets.blocks, responsibilities(result, sets), strict=True):
        has_all = is_observed(jax.tree.map(lambda a: a[0], block.x)) is None
        found.append(answers.labels(r, None if has_all else jax.vmap(is_observed)(block.x)))
    return found


def by_row(sets: DataSets, arrays: list):
    """As `by_unit`, with the value of its group for every row."""
    values = by_unit(sets, arrays)
    if sets.names is None:
        return values
    return [v if n is None else v[n.place] for v, n in zip(values, sets.names, strict=True)]


def by_unit(sets: DataSets, arrays: list):
    """Values of every unit, from arrays (b, n, ...) of blocks: stacked as the data were, or a list
    of one NumPy array for each data set, without padding."""
    if not sets.is_list:
        return arrays[0]
    ordered = [None] * sum(len(block.index) for block in sets.blocks)
    for block, array in zip(sets.blocks, arrays, strict=True):
        rows = array if is_traced(array) else np.asarray(array)
        for position, i in enumerate(block.index):
            ordered[i] = rows[position, : block.sizes[position]]
    return ordered


def by_data_set(sets: DataSets, arrays: list):
    """Values of every data set (b,), from arrays of blocks."""
    order = np.argsort(np.concatenate([block.index for block in sets.blocks]))
    return jnp.concatenate(arrays)[order]


def score_and_weight(result, sets: DataSets, units=False):
    """(log-likelihood, Σw) of every data set, (b,) each; Σw over observations, or over units."""
    totals, weights = [], []
    for block, evidence in zip(sets.blocks, scores(result, sets), strict=True):
        w = block.weights
        totals.append(evidence.sum(1) if w is None else _weighted(evidence, w))
        counts = None if units else result.model.domain.observations(block.x)
        if counts is not None:
            total = (counts if w is None else w * counts).sum(1)
        else:
            total = block.sizes.astype(evidence.dtype) if w is None else w.sum(1)
        weights.append(jnp.asarray(total))
    return by_data_set(sets, totals), by_data_set(sets, weights)


def entropy(result, sets: DataSets):
    """The entropy of the responsibilities of every data set, (b,)."""
    pairs = zip(responsibilities(result, sets), sets.blocks, strict=True)
    return by_data_set(sets, [answers.entropy(r, block.weights, True) for r, block in pairs])


def table(result) -> dict[str, Any]:
    """The columns of `Result.to_dataframe`, one value a fit."""
    columns = {"status": [Status(int(s)).name for s in np.atleast_1d(np.asarray(result.status))]}
    for name in ("log_likelihood", "n_iter", "objective"):
        columns[name] = np.atleast_1d(np.asarray(getattr(result, name)))
    with contextlib.suppress(NotImplementedError):  # of a model whose parameters are integrated out
        columns["bic"] = np.atleast_1d(np.asarray(result.bic()))
    return columns


def part(result, index):
    """The `Result` of one fit of a batch, or the smaller batch of a slice or an array of
    indices."""
    of_batch = result.shares_model and np.ndim(result.status) == 1  # the axis of a Batch, not vmap

    def taken(tree):
        return jax.tree.map(lambda a: a[index], tree)

    numeric = result._numeric if of_batch else taken(result._numeric)
    status, sizes = taken((result.status, result.n_units))
    shape, still_batch = result.data_shape, result.shares_model
    if of_batch and np.ndim(status):
        shape = (np.shape(status)[0], *shape[1:])
    elif np.ndim(status) == 0 and (of_batch or sizes is not None):
        known = sizes is not None and not is_traced(sizes)
        n, rest = shape[int(of_batch) :][0], shape[1 + int(of_batch) :]
        shape, still_batch, sizes = (int(sizes) if known else n, *rest), False, None
    fits = taken((result.best_fit, result.restarts))
    ends = taken((result.gradient_ok, result.total_weight))
    model = merge(numeric, result._structure)
    smaller = result.of(model, *fits, shape, *ends, sizes, still_batch)
    if result.own_data is None:
        return smaller
    sets = (data_set_at(data, index) for data in result.own_data)
    return smaller.about(*sets, result.column_names)


@jax.jit
def _weighted(evidence, weights):
    return jnp.where(weights > 0, weights * evidence, 0).sum(1)


def _asked(result, sets: DataSets):
    """For every block its data, and the arrays of the model and the params of its fits."""
    model_axis = None if result.shares_model else 0
    for block in sets.blocks:
        numeric, params = result._numeric, result.params
        if len(sets.blocks) > 1:
            params = jax.tree.map(lambda a: a[block.index], params)  # noqa: B023
            if model_axis == 0:
                numeric = [leaf[block.index] for leaf in numeric]
        yield block, numeric, params, (model_axis, 0, 0)


def _require_sound_weights(blocks):
    """ValueError that names the first data set with weights that are not traced and are wrong."""
    for block in blocks:
        if is_traced(block.weights):
            continue
        for i, n, weights in zip(block.index, block.sizes, np.asarray(block.weights), strict=True):
            explanation = explain_bad_weights(weights[:n])
            if explanation is not None:
                raise ValueError(f"data set {i}: {explanation}")
