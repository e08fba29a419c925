"""`select`: several models of one data set, or of every one of a batch, compared by an information
criterion."""

import dataclasses
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from jaxem.analysis import printed, saved
from jaxem.analysis.batch_selection import BatchSelection
from jaxem.analysis.candidates import given_or_normals, named_models, size_of
from jaxem.analysis.held_out import held_out_scores
from jaxem.analysis.padded_mixtures import fit_padded, groups
from jaxem.analysis.printed import SOUND
from jaxem.data.batch import Batch
from jaxem.data.data import as_units
from jaxem.data.options import ALIASES, as_key, integer, one_of, suggestion
from jaxem.data.precision import float64, needs_float64
from jaxem.fit import fit
from jaxem.methods.em import EM
from jaxem.models.bayesian import BayesianMixture
from jaxem.models.lda.lda import LDA
from jaxem.numerics.tree import is_traced
from jaxem.protocol.starts import NAMED, Start
from jaxem.protocol.status import MEANING, Status, collected_warnings, sentence, warn
from jaxem.results.columns import column_names
from jaxem.results.result import Result
from jaxem.solver import host
from jaxem.solver.restarts import Restarts
from jaxem.solver.threads import in_threads

CRITERIA = ("bic", "aic", "icl", "bound", "cv")
OPTIONS = (
    *("k", "covariance", "criterion", "key", "restarts"),
    *("weights", "init", "method", "tol", "max_iter"),
)
NAMED_IN_WARNING = 4
"""The most models that a warning names."""


class Row(NamedTuple):
    """One model of a `Selection`.

    name, model: as in the call. k: the number of components or topics, None where the model has
    none. n_parameters: None with criterion="bound". log_likelihood: in nats. score: the value of
    the criterion; lower is better. status: a `Status`. data_set: its position in a `Batch`, else
    None.
    """

    name: str
    model: Any
    k: int | None
    n_parameters: int | None
    log_likelihood: float
    score: float
    status: Status
    data_set: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Fitted models in the order given; `print` shows the table.

    criterion: "bic", "aic", "icl", "bound" or "cv". table: a `Row` for every model. results: the
    `Result` of every model, a list of m. winner: the index of the lowest score among sound fits,
    which are those that ended as CONVERGED or MAX_ITER; the first of equal scores; None where no
    fit is sound.
    """

    criterion: str
    table: tuple[Row, ...]
    results: tuple[Result, ...]
    winner: int | None

    @property
    def best(self) -> Result | None:
        """The winner's `Result`; None where no fit is sound."""
        return None if self.winner is None else self.results[self.winner]

    def to_dataframe(self):
        """A pandas data frame with a row for every model: its name, k, n_parameters,
        log_likelihood, score, the name of its status, and whether it was chosen. Raises ImportError
        where pandas is missing."""
        frame = printed.table_frame(self.table)
        return frame.assign(chosen=[i == self.winner for i in range(len(self.table))])

    def save(self, path) -> None:
        """Writes the selection to the file `path` for `jaxem.load`, as `Result.save` does.

        Raises ValueError where a model is not one of jaxem's own.
        """
        rows = tuple(tuple(row._replace(status=int(row.status))) for row in self.table)
        saved.save(path, (self.criterion, rows, self.winner), self.results)

    @classmethod
    def load(cls, path, find) -> "Selection":
        """The selection that `save` wrote to the file `path`. find: the public class of a name.
        ValueError where the file is damaged."""
        (criterion, rows, winner), results = saved.load(path, find)
        table = (Row(*row) for row in rows)
        table = tuple(row._replace(status=Status(row.status)) for row in table)
        return cls(criterion, table, results, winner)

    def __str__(self):
        lines = [
            f"{self.criterion.upper()}, lower is better",
            "",
            *printed.lines(self),
        ]
        marks = {printed.mark(self, i).strip() for i in range(len(self.table))}
        legend = ["none is sound" if self.winner is None else f"* {self.table[self.winner].name}"]
        legend += ["~ not converged within max_iter"] * bool(marks & {"~", "*~"})
        unsound = "-" if printed.has_structures(self) else "!"
        legend += [f"{unsound} not sound, never chosen"] * ("!" in marks)
        return "\n".join([*lines, "", "; ".join(legend)])

    __repr__ = __str__


def select(
    x: Any,
    models: Any = None,
    *,
    k: Any = None,
    covariance: Any = None,
    criterion: str = "bic",
    key: Any = None,
    restarts: int | Restarts = 8,
    weights: Any = None,
    init: Any = None,
    method: EM = EM(),  # noqa: B008 - frozen and stateless
    tol: float | None = None,
    max_iter: int = 2000,
    **unknown,
) -> Selection | BatchSelection:
    """Fits every model to the same data and chooses the one with the lowest criterion.

    bic = −2·log-likelihood + n_parameters·log Σw; aic = −2·log-likelihood + 2·n_parameters;
    icl = bic + 2·entropy of the responsibilities. bound = −2·objective, for models whose objective
    is a lower bound on log p(x) with all params integrated out: `BayesianMixture`, and `LDA` with
    inference="bayes". cv = −2·log-likelihood of units that a fit did not see: `cross_validate`.

    Args:
      x: the data, (n, d), or a tree of arrays with one leading unit axis; or a `Batch`, for each
        data set of which a model is chosen.
      models: an iterable of models, or a dict of them by name; None: the normal mixtures of `k`
        and `covariance`.
      k: in place of models, numbers of components, such as range(1, 10).
      covariance: with k, structures of `Normal`, such as ("EII", "VVV"); None: mclust's 14. The
        table is then that of mclust, with the BIC of the opposite sign: lower is better.
      criterion: "bic" (Schwarz 1978), "aic" (Akaike 1974), "icl" (Biernacki, Celeux & Govaert
        2000), "bound", or "cv" (ten folds, without init and method; not of a `Batch`).
      key: a JAX key or an int, the same for every model.
      restarts: the number of restarts of each model, or a `Restarts` plan.
      weights: (n,), one per unit; 0 for an absent unit, 2 for one that counts twice. None: all 1.
        Of a `Batch` as in `fit`.
      init: None, or a random rule as in `fit`, such as "kmeans++" or "random"; given params or
        labels would belong to one k.
      method, tol, max_iter: as in `fit`.

    Returns:
      A `Selection`. Its results are those of `fit(model, x, key=key, restarts=restarts, ...)`, up
      to rounding. Mixtures that differ in k alone are fitted by one compiled program, padded with
      components of weight 0, where that saves more compile time than it costs. Of a
      `Batch` a `BatchSelection`, with the results of `fit(model, batch, ...)`.

      Under `jit`, `vmap` and `grad` there are no finished fits to compare. Take an array (m,)
      there, `scores = jnp.stack([fit(m, x, key=key, restarts=8).bic() for m in models])`, and
      `jnp.argmin(scores)`; look at `status` too, since the score of a fit that collapsed means
      nothing.

    Raises:
      ValueError, TypeError: data, models or options that cannot be used, here or in `fit`.

    Warns once, with `FitWarning`, for all the models whose fit did not converge.

    `select(x, k=range(1, 10), key=0).best` is the `Result` of the best of mclust's 14 structures
    with 1 to 9 components.
    """
    for word in unknown:
        known_name = ALIASES.get(word, word)
        raise TypeError(f"select() has no argument {word!r}" + suggestion(known_name, OPTIONS))
    names, models = named_models(given_or_normals(models, k, covariance))
    criterion = one_of(criterion, "criterion", CRITERIA)
    _check_criterion(criterion, names, models)
    data = x.data if isinstance(x, Batch) else x
    if is_traced((data, key, weights, tol, max_iter)):
        raise TypeError(
            "select compares finished fits, which jit, vmap and grad do not have: use jaxem.fit "
            "there, as in jnp.stack([jaxem.fit(m, x, key=key).bic() for m in models]), or call "
            "select outside, for many data sets with a jaxem.Batch"
        )
    if needs_float64(data, isinstance(x, Batch)):
        options = {"criterion": criterion, "key": key, "restarts": restarts, "weights": weights}
        options |= {"init": init, "method": method, "tol": tol, "max_iter": max_iter}
        named = dict(zip(names, models, strict=True)) if len(set(names)) == len(names) else models
        with float64():
            selection = select(x, named, **options)
            results = tuple(result.on_host() for result in selection.results)
            return dataclasses.replace(selection, results=results)
    if isinstance(init, str):
        init = NAMED[one_of(init, "init", NAMED)]
    if init is not None and not (isinstance(init, Start) and init.random):
        raise TypeError(
            f"init must be a random rule, {', '.join(map(repr, NAMED))}, got "
            f"{type(init).__name__}, which belongs to one k: fit that model by itself"
        )
    if key is None:
        raise ValueError("the starts are random: pass key=jax.random.key(0), or an int")
    key = as_key(key)
    if not isinstance(restarts, Restarts):
        restarts = integer(restarts, "restarts", 1)
    columns = column_names(x)
    if not isinstance(x, Batch):
        x, _, groups_of_rows = as_units(x)
        if groups_of_rows is not None:
            weights = groups_of_rows.weights(weights)
    options = {"restarts": restarts, "weights": weights, "method": method}
    options |= {"tol": tol, "max_iter": max_iter}
    held_out = None
    if criterion == "cv":
        if isinstance(x, Batch) or init is not None or method != EM():
            raise TypeError(
                'criterion="cv" takes one data set, and neither init nor method: its fits have '
                "other weights and the default start"
            )
        count = restarts.keep if isinstance(restarts, Restarts) else restarts
        more = {"tol": tol, "max_iter": max_iter, "weights": weights, "restarts": count}
        held_out = held_out_scores(x, models, key, more)
    with collected_warnings() as texts:
        results = _fit_all(names, models, x, key, init, options)
    for result in results:
        if columns is not None and result.own_data is not None:
            result.about(*result.own_data, columns)
    for text in dict.fromkeys(texts):
        if "did not converge" not in text:  # the table says which did not, in one warning
            warn(text, stacklevel=2)
    if isinstance(x, Batch):
        selection = _of_batch(names, models, results, criterion, x, weights)
        _warn_of_failed_batch(selection, tol)
        return selection
    table = tuple(
        _row(name, model, result, criterion, x, weights)
        for name, model, result in zip(names, models, results, strict=True)
    )
    if held_out is not None:
        pairs = zip(table, held_out, strict=True)
        table = tuple(row._replace(score=-2 * float(value)) for row, value in pairs)
    sound = [i for i, row in enumerate(table) if row.status in SOUND and math.isfinite(row.score)]
    winner = min(sound, key=lambda i: table[i].score, default=None)
    selection = Selection(criterion, table, tuple(results), winner)
    _warn_of_failed(selection, tol)
    return selection


def _check_criterion(criterion, names, models) -> None:
    """TypeError where a model has no value of the criterion."""
    for name, model in zip(names, models, strict=True):
        has_bound = isinstance(model, BayesianMixture) or (isinstance(model, LDA) and model.bayes)
        if criterion == "bound" and not has_bound:
            raise TypeError(
                f'criterion="bound" compares models with a posterior of their params, such as '
                f'jaxem.BayesianMixture, and {name} is none: use "bic"'
            )
        if criterion == "cv" and isinstance(model, BayesianMixture):
            raise TypeError(
                f'{name} integrates over its params, and criterion="cv" refits params: use '
                'criterion="bound"'
            )
        if criterion != "bound" and isinstance(model, BayesianMixture):
            raise TypeError(
                f"{name} has no count of parameters, which {criterion!r} needs: use "
                'criterion="bound"'
            )


def _fit_all(names, models, x, key, init, options):
    """The result of every model. Models are compiled and fitted in parallel on the host's cores."""
    padded_groups = groups(models, x, options["restarts"], options["method"])
    single_models = set(range(len(models))) - {i for group in padded_groups for i in group}

    def fit_group(group):
        try:
            if group[0] in single_models:
                return [fit(models[group[0]], x, key=key, init=init, **options)]
            return fit_padded([models[i] for i in group], x, key, init, **options)
        except (TypeError, ValueError) as error:
            error.add_note(f"while fitting {', '.join(names[i] for i in group)}")
            raise

    jobs = [*padded_groups, *([i] for i in sorted(single_models))]
    with host.bar(len(models), host.MODELS, True, "jaxem.select") as bar:

        def counted(group):
            results = fit_group(group)
            bar.update(len(group))
            return results

        fitted = in_threads(counted, jobs)
    pairs = zip(jobs, fitted, strict=True)
    by_model = {i: r for job, fits in pairs for i, r in zip(job, fits, strict=True)}
    return [by_model[i] for i in range(len(models))]


def _row(name, model, result, criterion, x, weights):
    """The `Row` of a fitted model."""
    n_parameters = None
    if criterion == "bound":
        score = -2 * float(result.objective)
    else:
        score, n_parameters = -2 * float(result.log_likelihood), int(result.n_parameters)
        score += (
            2 * n_parameters if criterion == "aic" else n_parameters * math.log(result.total_weight)
        )
    if criterion == "icl":
        score += 2 * float(result.entropy(x, weights))
    likelihood, status = float(result.log_likelihood), Status(int(result.status))
    return Row(name, model, size_of(model), n_parameters, likelihood, score, status)


def _of_batch(names, models, results, criterion, x, weights) -> BatchSelection:
    """The selection of every data set, from the results of batches, one a model."""
    columns = []
    for result in results:
        likelihood, n_parameters = np.asarray(result.log_likelihood, float), None
        if criterion == "bound":
            score = -2 * np.asarray(result.objective, float)
        else:
            n_parameters, total = result.n_parameters, np.asarray(result.total_weight, float)
            penalty = 2 * n_parameters if criterion == "aic" else n_parameters * np.log(total)
            score = penalty - 2 * likelihood
        if criterion == "icl":
            score += 2 * np.asarray(result.entropy(x, weights), float)
        columns.append((n_parameters, likelihood, score, np.asarray(result.status)))
    sizes = [size_of(model) for model in models]
    table = tuple(
        Row(name, model, k, p, float(ll[i]), float(score[i]), Status(int(status[i])), i)
        for i in range(len(columns[0][1]))
        for name, model, k, (p, ll, score, status) in zip(
            names, models, sizes, columns, strict=True
        )
    )
    scores = np.stack([score for _, _, score, _ in columns], axis=1)
    status = np.stack([status for *_, status in columns], axis=1)
    is_sound = np.isin(status, [int(s) for s in SOUND]) & np.isfinite(scores)
    winner = np.where(is_sound, scores, np.inf).argmin(axis=1)
    winner = np.where(is_sound.any(axis=1), winner, -1)
    return BatchSelection(criterion, table, tuple(results), scores, winner)


def _warn_of_failed_batch(selection: BatchSelection, tol) -> None:
    """One warning for all fits of a batch that did not converge, as in `_warn_of_failed`."""
    status = np.concatenate([np.asarray(result.status) for result in selection.results])
    n_iter = np.concatenate([np.asarray(result.n_iter) for result in selection.results])
    is_requested = (status == int(Status.MAX_ITER)) & ((tol == 0) | (n_iter == 0))
    failed = status[(status != int(Status.CONVERGED)) & ~is_requested]
    if not failed.size:
        return
    counts = Counter(failed.tolist()).most_common()
    without = int((selection.winner < 0).sum())
    warn(
        f"{failed.size} of {status.size} fits did not converge: "
        + "; ".join(sentence(code, many) for code, many in counts)
        + f"; in {without} data sets none is sound, so best is None" * bool(without),
        stacklevel=3,
    )


def _warn_of_failed(selection: Selection, tol) -> None:
    """One warning for all fits that did not converge, except those that asked for no convergence
    by tol=0 or max_iter=0."""
    pairs = zip(selection.table, selection.results, strict=True)
    failed = [
        row
        for row, result in pairs
        if row.status != Status.CONVERGED
        and not (row.status == Status.MAX_ITER and (tol == 0 or int(result.n_iter) == 0))
    ]
    if not failed:
        return
    listed = ", ".join(f"{row.name} {row.status.name}" for row in failed[:NAMED_IN_WARNING])
    unnamed = (
        f" and {len(failed) - NAMED_IN_WARNING} more" if len(failed) > NAMED_IN_WARNING else ""
    )
    meanings = "; ".join(
        f"{status.name}: {MEANING[status]}" for status in Counter(row.status for row in failed)
    )
    no_winner = "" if selection.winner is not None else "; none is sound, so best is None"
    warn(
        f"{len(failed)} of {len(selection.table)} models did not converge ({listed}{unnamed}): "
        + meanings
        + no_winner,
        stacklevel=3,
    )
