"""Models compared by the log-likelihood of data that they were not fitted to."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxem.analysis.candidates import named_models
from jaxem.analysis.printed import SOUND
from jaxem.analysis.refits import (
    generator,
    refits,
    require_concrete,
    require_one_data_set,
    units_and_weights,
)
from jaxem.data.arrays import explain_bad_input, is_clean
from jaxem.data.options import as_key, integer
from jaxem.data.precision import float64, needs_float64
from jaxem.numerics import tuning
from jaxem.numerics.tree import split
from jaxem.protocol.model import name_of
from jaxem.protocol.status import collected_warnings, warn
from jaxem.results.answers import scores
from jaxem.solver.axes import best_of
from jaxem.solver.informed import informed
from jaxem.wrappers.adopt import adopt


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """Held-out scores of m models; `print` shows a table.

    names, models: in the order given. scores (m, repeats, n): log p of every unit under the model
    fitted without its fold. mean (m,): their mean over units, with weights; higher is better; NaN
    where a fit failed, and −∞ where a unit has density 0 under the model of the other folds:
    `impossible` says in which. error (m,): the standard error of the mean, NaN beside such a mean.
    difference_error (m,): that of the difference of a model from the winner. statuses (m, repeats,
    folds): how the fits ended. fold (repeats, n): the fold of every unit, −1 of weight 0. winner:
    the index of the largest finite mean, or None.
    """

    names: tuple[str, ...]
    models: tuple[Any, ...]
    scores: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    difference_error: np.ndarray
    statuses: np.ndarray
    fold: np.ndarray
    winner: int | None

    @property
    def best(self):
        """The winner among the models; None where no model has a finite mean."""
        return None if self.winner is None else self.models[self.winner]

    def impossible(self, i: int) -> dict:
        """{fold: an array (j, 2) of the (repeat, unit) in that fold with density 0 under model
        i}."""
        found = np.argwhere((self.scores[i] == -np.inf) & (self.fold >= 0))
        folds = self.fold[tuple(found.T)]
        return {int(f): found[folds == f] for f in np.unique(folds)}

    def __str__(self):
        repeats, folds = self.statuses.shape[1:]
        width = max(map(len, self.names))
        times = f", {repeats} times" if repeats > 1 else ""
        lines = [f"held-out log-likelihood a unit, {folds} folds{times}; higher is better", ""]
        lines.append(f"{'':>{width}}{'mean':>12}{'error':>11}{'below best':>12}{'error':>11}")
        top = np.nan if self.winner is None else self.mean[self.winner]
        for i, name in enumerate(self.names):
            cells = (self.mean[i], self.error[i], top - self.mean[i], self.difference_error[i])
            text = "".join(f"{c:>{w}.5g}" for c, w in zip(cells, (12, 11, 12, 11), strict=True))
            lost = int((~np.isin(self.statuses[i], SOUND)).sum())
            mark = " *" if i == self.winner else ""
            text += mark + f"  {lost} fits failed" * bool(lost)
            impossible = self.impossible(i)
            if impossible:
                text += f"  density 0 of {_units_in_folds(impossible)}"
            lines.append(f"{name:>{width}}{text}")
        return "\n".join(lines)

    __repr__ = __str__


def cross_validate(
    x: Any,
    models: Any,
    folds: int = 10,
    *,
    key: Any,
    weights: Any = None,
    repeats: int = 1,
    restarts: int = 8,
    tol: float | None = None,
    max_iter: int = 2000,
) -> CrossValidation:
    """Fits every model to all folds of the data but one, and scores the units of that fold.

    Args:
      x: the data; units are rows, groups or sequences.
      models: a list of models, or a dict of them by name.
      folds: how many parts the units are cut into, at random, of equal size but for one unit; as
        many as units leaves one out.
      key: a JAX key or an int.  weights: (n,), which count as repetitions of a unit that stay
        together; None: all 1.
      repeats: how many times the units are cut anew.
      restarts: the restarts of each fit.  tol, max_iter: as in `fit`.

    All models see the same folds. The fits differ in their weights alone, so that they share the
    data in one batch. A prior that a model takes from data is taken from all units.
    `cross_validate(x, [Mixture(Normal(), k=k) for k in (1, 2, 3)], key=0)` compares three models.

    Raises ValueError or TypeError for data, models or options that cannot be used. Warns once where
    fits failed: such a model has no score; and once where units have density 0: a score of −∞.
    Source: Smyth 2000.
    """
    require_concrete("cross_validate", x, weights)
    folds, repeats = integer(folds, "folds", 2), integer(repeats, "repeats", 1)
    restarts = integer(restarts, "restarts", 1)
    if needs_float64(x):
        with float64():
            return cross_validate(
                x,
                models,
                folds,
                key=key,
                weights=weights,
                repeats=repeats,
                restarts=restarts,
                tol=tol,
                max_iter=max_iter,
            )
    require_one_data_set(x, "cross_validate")
    names, models = named_models(models)
    units, of_units, n = units_and_weights(x, weights)
    models = [adopt(model) for model in models]
    for model in models:
        _check_values(model, units, of_units)
    base = np.ones(n) if of_units is None else np.asarray(of_units, float)
    present = np.flatnonzero(base > 0)
    if folds > len(present):
        raise ValueError(f"folds must be at most the number of units, {len(present)}, got {folds}")
    key, draws = as_key(key), generator(key)
    fold = np.full((repeats, n), -1)
    for r in range(repeats):
        fold[r, draws.permutation(present)] = np.arange(len(present)) % folds
    sets = np.where(fold[:, None] == np.arange(folds)[:, None], 0, base).reshape(-1, n)
    found = [
        _held_out(model, units, of_units, sets, fold, key, restarts, tol, max_iter)
        for model in models
    ]
    each, statuses = (np.stack(part) for part in zip(*found, strict=True))
    observed = models[0].domain.is_observed(units)
    base = base if observed is None else np.where(np.asarray(observed), base, 0)
    statuses = statuses.reshape(-1, repeats, folds)
    return _compared(tuple(names), tuple(models), each, statuses, fold, base)


def _check_values(model, x, weights):
    """ValueError where values lie outside the support of a model."""
    model.domain.check(x, name_of(model))
    if not is_clean(model, x):
        is_absent = np.zeros(len(jax.tree.leaves(x)[0])) if weights is None else weights == 0
        observed = model.domain.is_observed(x)
        valid = [np.asarray(m).reshape(len(m), -1).all(1) for m in _masks(model, x)]
        wrong = ~np.all(valid, axis=0) & ~np.asarray(is_absent, bool)
        if wrong.any() and (observed is None or np.any(wrong & np.asarray(observed))):
            raise ValueError(explain_bad_input(model, x, weights))
    model.domain.check_values(jax.tree.map(np.asarray, x), weights)


def _masks(model, x):
    return jax.tree.leaves(model.domain.valid(jax.tree.map(np.asarray, model.domain.examined(x))))


def _held_out(model, x, weights, sets, fold, key, restarts, tol, max_iter):
    """(log p of every unit (repeats, n), statuses (repeats · folds,))."""
    if model.informed is not None:
        model = informed(model, x, weights)
    key = jax.random.key(key) if isinstance(key, np.uint32) else key

    def starts(first, after):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(first, after))
        keys = jax.vmap(lambda key: jax.random.split(key, restarts))(keys)
        return np.asarray(jax.random.key_data(keys))

    with collected_warnings():
        fits = refits(
            model,
            x,
            weights,
            [sets],
            starts,
            given=False,
            restarts=restarts,
            tol=tol,
            max_iter=max_iter,
        )
    best = jax.device_get(_best(fits))
    numeric, structure = split(model)
    repeats, n = fold.shape
    folds, each = len(sets) // repeats, np.full((repeats, n), np.nan)
    with tuning.full_products():
        for i in range(len(sets)):
            if best.status[i] not in SOUND:
                continue
            params = jax.tree.map(lambda a: a[i], best.params)  # noqa: B023
            values = np.asarray(scores(numeric, params, x, structure), float)
            out = fold[i // folds] == i % folds
            each[i // folds, out] = values[out]
    return each, best.status


_best = jax.jit(partial(best_of, batched=True))


def _compared(names, models, each, statuses, fold, base) -> CrossValidation:
    """The `CrossValidation` of scores (m, repeats, n) of units with weights `base` (n,)."""
    present, total = base > 0, base.sum()
    of_units = each.mean(1)[:, present]  # (m, units): over repeats
    weights = base[present]
    mean = of_units @ weights / total

    def error(values):
        centre = values @ weights / total
        away = np.square(values - centre[:, None]) @ weights / max(total - 1, 1)
        return np.sqrt(away / total)

    with np.errstate(invalid="ignore"):  # −∞ less −∞ has no error
        is_scored = np.isfinite(mean)
        winner = int(np.argmax(np.where(is_scored, mean, -np.inf))) if is_scored.any() else None
        errors = error(of_units)
        best = of_units[winner] if winner is not None else np.nan
        difference = error(of_units - best)
    failed = [name for name, s in zip(names, statuses, strict=True) if not np.isin(s, SOUND).all()]
    if failed:
        warn(f"fits of {', '.join(failed)} failed in some folds: they have no score", 3)
    found = CrossValidation(names, models, each, mean, errors, difference, statuses, fold, winner)
    impossible = [(name, found.impossible(i)) for i, name in enumerate(names)]
    said = [f"{_units_in_folds(units)} under {name}" for name, units in impossible if units]
    if said:
        warn(
            f"the density is 0 of {'; of '.join(said)}, fitted to the other folds, so that the "
            "score is -inf: give the components a prior, or use fewer folds",
            3,
        )
    return found


def _units_in_folds(impossible) -> str:
    """Of `impossible`, such as "2 units in folds 0, 3"."""
    count = sum(map(len, impossible.values()))
    folds = ", ".join(map(str, list(impossible)[:6])) + ", ..." * (len(impossible) > 6)
    many = "s" * (len(impossible) > 1)
    return f"{count} unit{'s' * (count > 1)} in fold{many} {folds}"
