"""`select`: many models of one data set, compared by an information criterion."""

import dataclasses
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxem.analysis.padded_mixtures import fit_padded, groups
from jaxem.data import arrays as checks
from jaxem.data.batch import Batch
from jaxem.data.options import integer
from jaxem.fit import fit, require_model
from jaxem.methods.em import EM
from jaxem.models.mixture import Mixture
from jaxem.numerics.tree import is_traced
from jaxem.protocol.starts import NAMED, Start
from jaxem.protocol.status import MEANING, FitWarning, Status
from jaxem.results.result import Result
from jaxem.solver.restarts import Restarts

CRITERIA = ("bic", "aic", "icl")
OPTIONS = ("criterion", "key", "restarts", "weights", "init", "method", "tol", "max_iter")
SOUND = (Status.CONVERGED, Status.MAX_ITER)
"""Statuses of fits whose likelihood can be compared: only these can be chosen."""

NAMED_IN_WARNING = 4


class Row(NamedTuple):
    """One model of a `Selection`.

    k: the number of components, None where the model has none. score: the criterion, lower is
    better. status: a `Status`.
    """

    name: str
    model: Any
    k: int | None
    n_parameters: int
    log_likelihood: float
    score: float
    status: Status


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Fitted models side by side, in the order given; `print` shows the table.

    criterion: "bic", "aic" or "icl". table: a `Row` for every model. results: a `Result` each, as
    `fit` returns it. winner: the index of the lowest score among sound fits (CONVERGED or
    MAX_ITER), the first of equals; None where no fit is sound.
    """

    criterion: str
    table: tuple[Row, ...]
    results: tuple[Result, ...]
    winner: int | None

    @property
    def best(self) -> Result | None:
        """The winner's `Result`; None where no fit is sound."""
        return None if self.winner is None else self.results[self.winner]

    def __str__(self):
        lines = [f"{self.criterion.upper()}, lower is better", "", *(_grid(self) or _list(self))]
        seen = {_mark(self, i).strip() for i in range(len(self.table))}
        legend = ["none is sound" if self.winner is None else f"* {self.table[self.winner].name}"]
        legend += ["~ not converged within max_iter"] * bool(seen & {"~", "*~"})
        legend += ["! not sound, never chosen"] * ("!" in seen)
        return "\n".join([*lines, "", "; ".join(legend)])

    __repr__ = __str__


def select(
    x: Any,
    models: Any,
    *,
    criterion: str = "bic",
    key: Any = None,
    restarts: int | Restarts = 8,
    weights: Any = None,
    init: Any = None,
    method: EM = EM(),  # noqa: B008 - frozen and stateless
    tol: float | None = None,
    max_iter: int = 2000,
    **unknown,
) -> Selection:
    """Fits every model to the same data and chooses the lowest criterion.

    bic = −2·log-likelihood + n_parameters·log Σw; aic = −2·log-likelihood + 2·n_parameters;
    icl = bic + 2·entropy of the responsibilities.

    Args:
      x: the data, (n, d), or a tree of arrays with one leading unit axis.
      models: an iterable of models, or a dict of them by name.
      criterion: "bic" (Schwarz 1978), "aic" (Akaike 1974) or "icl" (Biernacki, Celeux & Govaert
        2000).
      key: a JAX key or an int, the same for every model.
      restarts: how many starts each model climbs from, or a `Restarts` plan.
      weights: (n,), one per unit; 0 = absent, 2 = seen twice. None: all 1.
      init: None, "kmeans++", "random_rows", "random", or such a rule; given params or labels would
        belong to one k.
      method, tol, max_iter: as in `fit`.

    Returns:
      A `Selection`. Its results are those of `fit(model, x, key=key, restarts=restarts, ...)`, up
      to rounding: mixtures that differ in k alone are climbed in one compiled program, padded with
      components of weight 0, where that saves more compilation than it costs.

    Raises:
      ValueError, TypeError: data, models or options that cannot be used, here or in `fit`.

    Warns once, with `FitWarning`, for all the models whose fit did not converge.
    """
    for word in unknown:
        meant = checks.ALIASES.get(word, word)
        raise TypeError(f"select() has no argument {word!r}" + checks.suggestion(meant, OPTIONS))
    names, models = _as_models(models)
    criterion = checks.one_of(criterion, "criterion", CRITERIA)
    if isinstance(x, Batch):
        raise TypeError("select takes one data set: call it for every data set of the Batch")
    if is_traced((x, key, weights, tol, max_iter)):
        raise TypeError(
            "select compares finished fits, which jit, vmap and grad do not have: use jaxem.fit "
            "there, or call select outside"
        )
    if isinstance(init, str):
        init = NAMED[checks.one_of(init, "init", NAMED)]
    if init is not None and not (isinstance(init, Start) and init.random):
        raise TypeError(
            f"init must be a random rule, {', '.join(map(repr, NAMED))}, got "
            f"{type(init).__name__}, which belongs to one k: fit that model by itself"
        )
    if key is None:
        raise ValueError("the starts are random: pass key=jax.random.key(0), or an int")
    key = checks.as_key(key)
    if not isinstance(restarts, Restarts):
        restarts = integer(restarts, "restarts", 1)
    x, _ = checks.as_data(x)
    options = {"restarts": restarts, "weights": weights, "method": method}
    options |= {"tol": tol, "max_iter": max_iter}
    results = _quietly(_fit_all, names, models, x, key, init, options)
    total = _total(x, weights)
    table = tuple(
        _row(name, model, result, criterion, total, x, weights)
        for name, model, result in zip(names, models, results, strict=True)
    )
    sound = [i for i, row in enumerate(table) if row.status in SOUND and math.isfinite(row.score)]
    winner = min(sound, key=lambda i: table[i].score, default=None)
    selection = Selection(criterion, table, tuple(results), winner)
    _warn(selection, tol)
    return selection


def _as_models(models):
    """Names and models; TypeError or ValueError where an entry is no model."""
    if isinstance(models, Mapping):
        names, models = [str(name) for name in models], list(models.values())
    else:
        if not hasattr(models, "__iter__"):
            raise TypeError(
                f"models must be a list of models, got {models!r:.60}: the data come first, "
                "select(x, [model, ...])"
            )
        models = list(models)
        names = [_name(model) for model in models]
    if not models:
        raise ValueError("models are empty: pass at least one model to choose from")
    for i, model in enumerate(models):
        try:
            require_model(model)
        except TypeError as error:
            raise TypeError(f"models[{i}]: {error}") from None
        if not callable(getattr(model, "n_parameters", None)):
            raise TypeError(
                f"models[{i}]: {type(model).__name__} does not define n_parameters(params), which "
                "the criterion counts"
            )
    return names, models


def _fit_all(names, models, x, key, init, options):
    """The result of every model, compiled and run side by side on the cores of the host."""
    together = groups(models, x, options["restarts"], options["method"])
    alone = set(range(len(models))) - {i for group in together for i in group}

    def run(group):
        try:
            if group[0] in alone:
                return [fit(models[group[0]], x, key=key, init=init, **options)]
            return fit_padded([models[i] for i in group], x, key, init, **options)
        except (TypeError, ValueError) as error:
            error.add_note(f"while fitting {', '.join(names[i] for i in group)}")
            raise

    jobs = [*together, *([i] for i in sorted(alone))]
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        found = [*pool.map(run, jobs)]
    pairs = zip(jobs, found, strict=True)
    every = {i: r for job, fits in pairs for i, r in zip(job, fits, strict=True)}
    return [every[i] for i in range(len(models))]


def _quietly(function, *args):
    """`function(*args)` without a warning for every fit; other warnings are given afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FitWarning)
        out = function(*args)
    said = set()
    for each in caught:
        if not issubclass(each.category, FitWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        elif "did not converge" not in str(each.message) and str(each.message) not in said:
            said.add(str(each.message))
            warnings.warn(str(each.message), FitWarning, stacklevel=3)
    return out


def _total(x, weights) -> float:
    """Σw."""
    if weights is None:
        return float(jax.tree.leaves(x)[0].shape[0])
    return float(np.sum(np.asarray(weights, float)))


def _row(name, model, result, criterion, total, x, weights):
    score, free = -2 * float(result.log_likelihood), int(result.n_parameters)
    score += 2 * free if criterion == "aic" else free * math.log(total)
    if criterion == "icl":
        score += 2 * float(result.entropy(x, weights))
    k = getattr(model, "k", None)
    status = Status(int(result.status))
    return Row(name, model, k, free, float(result.log_likelihood), score, status)


def _warn(selection: Selection, tol) -> None:
    """One warning for all the fits that did not converge, unless that was asked for."""
    pairs = zip(selection.table, selection.results, strict=True)
    bad = [
        row
        for row, result in pairs
        if row.status != Status.CONVERGED
        and not (row.status == Status.MAX_ITER and (tol == 0 or int(result.n_iter) == 0))
    ]
    if not bad:
        return
    listed = ", ".join(f"{row.name} {row.status.name}" for row in bad[:NAMED_IN_WARNING])
    more = f" and {len(bad) - NAMED_IN_WARNING} more" if len(bad) > NAMED_IN_WARNING else ""
    told = "; ".join(
        f"{status.name}: {MEANING[status]}" for status in Counter(row.status for row in bad)
    )
    none = "" if selection.winner is not None else "; none is sound, so best is None"
    warnings.warn(
        f"{len(bad)} of {len(selection.table)} models did not converge ({listed}{more}): {told}"
        + none,
        FitWarning,
        stacklevel=3,
    )


def _name(model) -> str:
    """`Normal('full'), k=3` for a mixture, else the type."""
    if not isinstance(model, Mixture):
        return type(model).__name__
    prior = "" if model.prior is None else f", {type(model.prior).__name__}"
    return f"{_label(model.components)}, k={model.k}{prior}"


def _label(part) -> str:
    """A bank in a few characters: its type, the strings it holds, and what is not the default."""
    if not dataclasses.is_dataclass(part):
        return repr(part) if len(repr(part)) < 40 else type(part).__name__
    inside = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, str):
            inside.append(repr(value))
        elif dataclasses.is_dataclass(value):
            inside.append(type(value).__name__)
        elif value is not field.default and value is not None:
            inside.append(f"{field.name}={value}" if np.ndim(value) == 0 else field.name)
    return f"{type(part).__name__}({', '.join(inside)})"


def _mark(selection, i) -> str:
    status = selection.table[i].status
    if i == selection.winner:
        return "*" if status == Status.CONVERGED else "*~"
    return {Status.CONVERGED: "", Status.MAX_ITER: "~"}.get(status, "!")


def _grid(selection):
    """Lines of a table of banks by k; None where the models are not such a grid."""
    cells, labels = {}, []
    for i, (row, model) in enumerate((row, row.model) for row in selection.table):
        suffix = f", k={row.k}"
        if not isinstance(model, Mixture) or not row.name.endswith(suffix):
            return None
        label = row.name.removesuffix(suffix)
        if (label, row.k) in cells:
            return None
        labels.append(label)
        cells[label, row.k] = f"{row.score:.2f}{_mark(selection, i) or ' '}"
    labels, ks = list(dict.fromkeys(labels)), sorted({row.k for row in selection.table})
    left, width = max(map(len, labels)), max(11, *(len(cell) + 2 for cell in cells.values()))
    lines = ["k".rjust(left) + "".join(f"{k:>{width - 1}} " for k in ks).rstrip()]
    for label in labels:
        row = "".join(f"{cells.get((label, k), ''):>{width}}" for k in ks)
        lines.append(f"{label:>{left}}{row}".rstrip())
    return lines


def _list(selection):
    """Lines of a table with a row for every model."""
    left = max(len(row.name) for row in selection.table)
    head = f"{'':>{left}}{'parameters':>12}{'log-likelihood':>16}{selection.criterion:>14}   status"
    return [head] + [
        f"{row.name:>{left}}{row.n_parameters:>12}{row.log_likelihood:>16.2f}{row.score:>14.2f}"
        f"{_mark(selection, i):<3}{row.status.name}"
        for i, row in enumerate(selection.table)
    ]
