"""Refits to resampled data: standard errors without the information matrix.

Sources: rows, Efron 1979; Bayesian, Rubin 1981; parametric, McLachlan & Peel 2000;
jackknife, Tukey 1958. Components that exchange their labels are matched to those of the fit.
"""

import dataclasses
from collections import Counter
from typing import Any

import jax
import numpy as np

from jaxem.analysis.printed import SOUND
from jaxem.analysis.refits import (
    generator,
    precision_of,
    refits,
    require_concrete,
    require_result,
    units_and_weights,
)
from jaxem.data.arrays import as_array
from jaxem.data.batch import Batch
from jaxem.data.data import labels_of
from jaxem.data.options import as_key, integer, one_of
from jaxem.fit import fit
from jaxem.models.mixing import MixtureParams
from jaxem.models.mixture import Mixture
from jaxem.numerics.assignment import assigned
from jaxem.numerics.ranks import independent
from jaxem.numerics.tree import is_floating
from jaxem.protocol.capabilities import LocalPosterior, Sampled, has
from jaxem.protocol.model import name_of
from jaxem.protocol.status import Status, collected_warnings, warn
from jaxem.results.component_axes import have_components
from jaxem.results.errors import scales_of
from jaxem.results.result import Result
from jaxem.results.uncertainty import Uncertainty, entry_names, flat, rows, unflat
from jaxem.solver.replicates import MOST_WEIGHTS, slice_sizes

KINDS = ("rows", "bayesian", "parametric", "jackknife")

MOST_DRAWN = 2**24
"""The most numbers of the data sets of a parametric bootstrap that are in memory at once."""


def bootstrap(
    result: Result,
    x: Any,
    n: int = 999,
    *,
    key: Any = None,
    weights: Any = None,
    kind: str = "rows",
    tol: float | None = None,
    max_iter: int = 2000,
) -> Uncertainty:
    """Standard errors and intervals from n refits, which all begin at the params of the fit.

    Args:
      result: of one fit of x.  x: its data, (n, d) or a tree of arrays.
      n: the number of refits, an int of 2 or more.
      key: a JAX key or an int; needed except for "jackknife".
      weights: those of the fit, which count as repetitions: Σw units are drawn. None: all 1.
      kind: "rows": units drawn with replacement; "bayesian": weights drawn from a Dirichlet
        distribution; "parametric": data sets drawn from the model; "jackknife": every unit left out
        once, whatever n is.
      tol, max_iter: as in `fit`.

    Returns:
      An `Uncertainty` with `replicates`: a tree like params with a leading axis of the refits.
      Refits with other weights share the data, which are not copied. Those that did not end as
      CONVERGED or MAX_ITER count in `statuses` alone; `notes` say how many. The components of a
      mixture are matched to those of the fit by the best permutation.
      `bootstrap(result, x, key=0).interval(0.9)` gives the ends of 90% intervals.

    Raises ValueError or TypeError for options or data that cannot be used, for a batch, and for
    "parametric" where the model draws no arrays of rows. Sources: Efron & Tibshirani 1993;
    "bayesian": Rubin 1981.
    """
    one_of(kind, "kind", KINDS)
    n = integer(n, "n", 2)
    require_concrete("bootstrap", result, x, weights)
    _check(result, kind, key)
    result._checked(x)
    with precision_of(result.params):
        units, of_units, size = units_and_weights(x, weights)
        params = jax.tree.map(np.asarray, result.params)
        multiplicity = None
        if kind == "parametric":
            found, statuses = _parametric(
                result.model, params, units, of_units, n, key, tol, max_iter
            )
        else:
            sets, count = _weight_sets(kind, of_units, size, n, key)
            multiplicity = None if kind != "jackknife" else _repetitions(of_units, size)

            def starts(first, after):
                return jax.tree.map(
                    lambda a: np.broadcast_to(a, (after - first, 1, *a.shape)), params
                )

            with collected_warnings():
                fits = refits(
                    result.model, units, of_units, sets(count), starts, tol=tol, max_iter=max_iter
                )
            found = jax.tree.map(lambda a: a[:, 0], fits.params)
            statuses = fits.status[:, 0]
    return _summary(kind, result, params, found, statuses, multiplicity)


def _check(result, kind, key) -> None:
    require_result(result, "bootstrap(result, x)")
    if result.is_fleet:
        raise TypeError("a batch is resampled fit by fit: jaxem.bootstrap(result[i], x[i])")
    if has(result.model, LocalPosterior) or not is_floating(result.params):
        raise TypeError(
            f"{name_of(result.model)} cannot be refitted from its params alone, since it carries q "
            "from step to step: fit it to resampled data, jaxem.Batch([...])"
        )
    if key is None and kind != "jackknife":
        raise ValueError("replicates are random: pass key=jax.random.key(0), or an int")


def _repetitions(weights, size):
    weights = np.ones(size) if weights is None else weights
    return weights[weights > 0]


def _weight_sets(kind, weights, size, n, key):
    """(a function of a count that yields sets of weights (b_i, size), the number of sets)."""
    if kind == "jackknife":
        base = np.ones(size) if weights is None else np.asarray(weights, float)
        present = np.flatnonzero(base > 0)
        if np.any(base[present] < 1):
            raise ValueError(
                "the jackknife leaves out one repetition of a unit, and weights are below 1: "
                'multiply them, or use kind="bayesian"'
            )
        if base.sum() < 3:
            raise ValueError("the jackknife needs 3 units or more")

        def left_out(count):
            for part in _cut(present, size):
                sets = np.tile(base, (len(part), 1))
                sets[np.arange(len(part)), part] -= 1
                yield sets

        return left_out, len(present)
    draws = generator(key)
    return (
        lambda count: (_drawn(kind, draws, weights, size, b) for b in slice_sizes(count, size))
    ), n


def _cut(items, size):
    each = max(1, MOST_WEIGHTS // size)
    return [items[i : i + each] for i in range(0, len(items), each)]


def _drawn(kind, draws, weights, size, b):
    """Sets of weights (b, size)."""
    total = float(size) if weights is None else float(np.sum(weights, dtype=float))
    if kind == "bayesian":
        shape = np.ones(size) if weights is None else np.asarray(weights, float)
        found = draws.standard_gamma(shape, (b, size))
        return found * (total / found.sum(1, keepdims=True))
    if weights is None:
        chosen = draws.integers(0, size, (b, size))
        chosen += size * np.arange(b)[:, None]
        return np.bincount(chosen.ravel(), minlength=b * size).reshape(b, size).astype(float)
    units = max(1, round(total))
    share = np.asarray(weights, float) / total
    return draws.multinomial(units, share / share.sum(), size=b) * (total / units)


def _parametric(model, params, x, weights, n, key, tol, max_iter):
    """(params (n, ...), statuses (n,)) of refits to data sets drawn from the model."""
    sets = drawn_sets(model, params, x, weights, n, key)
    found = []
    for data in sets:
        init = jax.tree.map(lambda a: np.broadcast_to(a, (len(data), *a.shape)), params)  # noqa: B023
        with collected_warnings():
            fits = fit(model, Batch(data), init=init, tol=tol, max_iter=max_iter, gradient="none")
        found.append(jax.device_get((fits.params, fits.status)))
    return jax.tree.map(lambda *a: np.concatenate(a), *found)


def drawn_sets(model, params, x, weights, n, key):
    """n data sets drawn from the model with the number of units of the fit, as arrays (b_i, units,
    d) of which one is in memory at once. Cells are missing where they are in x.

    TypeError where the model draws nothing, or no arrays of rows, ValueError where x has missing
    cells and weights."""
    if not has(model, Sampled) or not hasattr(x, "ndim") or x.ndim != 2:
        raise TypeError(
            f"data sets are drawn as arrays of rows, which {name_of(model)} with data of type "
            f'{type(x).__name__} does not draw by itself: use kind="rows"'
        )
    is_missing = np.isnan(np.asarray(x))
    if is_missing.any() and weights is not None:
        raise ValueError(
            "drawn data sets have the missing cells of x, row by row, which rows with weights do "
            "not give: leave the weights out, repeating rows, or resample rows"
        )
    units = x.shape[0] if weights is None else max(1, round(float(np.sum(weights, dtype=float))))
    key = as_key(key)
    key = jax.random.key(key) if isinstance(key, np.uint32) else key
    each = max(1, min(n, MOST_DRAWN // (units * x.shape[1])))

    @jax.jit
    def draw(index, params):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return jax.vmap(lambda key: model.sample(key, params, units))(keys)

    for begin in range(0, n, each):
        data = draw(np.arange(begin, min(n, begin + each)), params)
        data = np.asarray(data)
        data = np.where(is_missing, np.nan, data) if is_missing.any() else data
        yield as_array(data, "draws")


def _summary(kind, result, params, found, statuses, multiplicity):
    """The `Uncertainty` of replicates."""
    statuses = np.asarray(statuses)
    values = rows(found)
    used = np.isin(statuses, SOUND) & np.isfinite(values).all(1)
    order = _labels(result, found, used)
    relabelled = None
    if order is not None:
        found = _permuted(result, found, order)
        relabelled = float((order != np.arange(order.shape[1])).any(1)[used].mean())
        values = rows(found)
    names, estimate = entry_names(params), flat(params)
    sound, notes = values[used], _notes(statuses, used, relabelled)
    if len(sound) < 2:
        warn(f"{len(sound)} of {len(used)} refits ended soundly, too few for errors", 4)
        sound = np.full((2, estimate.size), np.nan)
    away, scale = sound - sound.mean(0), 1 / max(1, len(sound) - 1)
    if multiplicity is not None:
        repetitions = multiplicity[used]
        total = repetitions.sum()
        away = sound - repetitions @ sound / total
        away, scale = away * np.sqrt(repetitions)[:, None], (total - 1) / total
    errors = np.sqrt((away**2).sum(0) * scale)
    errors = np.where(errors <= 1e-12 * np.abs(estimate), 0, errors)
    moving = np.flatnonzero(errors > 0)
    free = moving[independent(away[:, moving].T, shortest=1e-6)] if len(moving) else moving
    solved = np.linalg.lstsq(away[:, free], away, rcond=None)[0] if len(free) else away[:0]
    return Uncertainty(
        method="jackknife" if kind == "jackknife" else f"{kind} bootstrap, {len(sound)} refits",
        estimates=params,
        errors=unflat(params, errors),
        names=names,
        coordinates=tuple(names[i] for i in free),
        covariance=away[:, free].T @ away[:, free] * scale,
        jacobian=solved.T,
        scales=scales_of(result.model.spaces(params), params),
        notes=tuple(notes),
        replicates=found,
        statuses=statuses,
        used=used,
        relabelled=relabelled,
    )


def _notes(statuses, used, relabelled):
    notes = []
    left_out = Counter(Status(int(code)).name for code in statuses[~used])
    if left_out:
        counts = ", ".join(f"{count} {name}" for name, count in left_out.most_common())
        notes.append(f"{(~used).sum()} of {len(used)} refits do not count: {counts}")
    limited = int((statuses[used] == Status.MAX_ITER).sum())
    notes += [f"{limited} refits ended at max_iter"] * bool(limited)
    if relabelled:
        notes.append(f"in {100 * relabelled:.1f}% of the refits components were relabelled")
    return notes


def _labels(result, found, used):
    """The component (b, k) of each replicate that belongs to every component of the fit; None where
    components cannot be exchanged."""
    model, params = result.model, result.params
    if not isinstance(model, Mixture) or model.gate is not None or _has_known_labels(result):
        return None
    has_axis = _have_components(result)
    k = model.k
    if not any(jax.tree.leaves(has_axis)):
        return None  # every component has a family of its own
    pairs = [(np.asarray(params.weights), np.asarray(found.weights))]
    leaves = zip(
        *map(jax.tree.leaves, (has_axis, params.components, found.components)), strict=True
    )
    pairs += [(np.asarray(a), np.asarray(b)) for is_of_each, a, b in leaves if is_of_each]
    pairs = [(a.reshape(k, -1), b.reshape(len(b), k, -1)) for a, b in pairs]
    fitted = np.concatenate([a for a, _ in pairs], 1).astype(float)
    each = np.concatenate([b for _, b in pairs], 2).astype(float)
    each = np.where(np.isfinite(each), each, 0)
    if k == 1 or not used.any():
        return np.zeros((len(each), k), int) + np.arange(k)
    # Errors of entries as the median of their absolute deviations from the fit.
    spread = np.median(np.abs(each[used] - fitted), axis=(0, 1))
    spread = np.where(spread > 0, spread, 1)
    cost = sum(
        np.square((fitted[None, :, None, j] - each[:, None, :, j]) / spread[j])
        for j in range(fitted.shape[1])
    )
    return assigned(cost)


def _has_known_labels(result) -> bool:
    return result.own_data is not None and labels_of(result.own_data[0]) is not None


def _have_components(result):
    """Which leaves of the params of the bank of a mixture have an axis of components."""
    params = result.params
    return have_components(result, MixtureParams(params.weights, params.components)).components


def _permuted(result, found, order):
    """Replicates with their components in another order (b, k)."""
    place = np.arange(len(order))[:, None]

    def permuted(is_of_each, leaf):
        return leaf[place, order] if is_of_each else leaf

    components = jax.tree.map(permuted, _have_components(result), found.components)
    weights = np.asarray(found.weights)[place, order]
    return dataclasses.replace(found, components=components, weights=weights)
