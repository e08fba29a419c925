"""The page about a fit: sizes, likelihood, criteria, components, restarts, warnings."""

import contextlib

import jax
import numpy as np

from jaxem.models.mixing import MixtureParams
from jaxem.models.noise import NoiseMixtureParams
from jaxem.protocol.status import MEANING, Status
from jaxem.results.component_axes import axes
from jaxem.results.printed import text
from jaxem.results.separation import explain_separation

MOST_COLUMNS = 24
"""Columns of a leaf of params that are shown; of a larger one only its shape is."""

MOST_NUMBERS = 64
"""Numbers of a matrix that are shown, as `MOST_COLUMNS`."""


def summary(result, names=None) -> str:
    """See `Result.summary`."""
    if np.ndim(result.status):
        raise TypeError("a batch has no summary: result[i].summary() is that of one fit")
    names = result.column_names if names is None else names
    lines = [*text(result).split("\n")[:1], "", *_sizes(result), "", *_restarts(result)]
    found = _warnings(result)
    if found:
        lines += ["", "warnings", *(f"  {sentence}" for sentence in found)]
    return "\n".join([*lines, *_tables(result, names)])


def _sizes(result) -> list[str]:
    """Sizes, likelihood and criteria, one a line."""
    n, total = result._shape_of_one[0], float(result.total_weight)
    likelihood, objective = float(result.log_likelihood), float(result.objective)
    rows = [("units", f"{n}")]
    rows += [("total weight", f"{total:.6g}")] * (total != n)
    with contextlib.suppress(NotImplementedError):
        rows.append(("free parameters", f"{int(result.n_parameters)}"))
    rows.append(("log-likelihood", f"{likelihood:.4f}"))
    rows += [("objective", f"{objective:.4f}")] * (abs(objective - likelihood) > 1e-6 * abs(total))
    for name, criterion in (
        ("AIC", result.aic),
        ("BIC", result.bic),
        ("ICL", result.icl),
        ("entropy", result.entropy),
    ):
        with contextlib.suppress(TypeError, NotImplementedError):
            rows.append((name, f"{float(criterion()):.4f}"))
    width, numbers = max(len(name) for name, _ in rows), max(len(value) for _, value in rows)
    return [f"{name:<{width}}  {value:>{numbers}}" for name, value in rows]


def _restarts(result) -> list[str]:
    """How the fit ended, and the statuses of the restarts."""
    status, steps = Status(int(result.status)), int(result.n_iter)
    lines = [f"{status.name} after {steps} EM steps"]
    ended = np.asarray(result.restarts.status).ravel()
    if len(ended) > 1:
        codes, counts = np.unique(ended, return_counts=True)
        pairs = sorted(zip(counts, codes, strict=True), reverse=True)
        listed = ", ".join(f"{count} {Status(int(code)).name}" for count, code in pairs)
        lines.append(f"restarts: {listed}")
        found = result.optima()
        if found:
            best = found[0]
            lines.append(
                f"the best optimum, {best.objective:.7g}, was found by {best.count} of {len(ended)}"
            )
    return lines


def _warnings(result) -> list[str]:
    """What a reader of the tables should know first."""
    status, found = Status(int(result.status)), []
    if status != Status.CONVERGED:
        found.append(f"{status.name}: {MEANING[status]}")
    ended = np.asarray(result.restarts.status).ravel()
    optima = result.optima()
    if len(ended) > 1 and optima and optima[0].count == 1:
        found.append("one restart alone found the best optimum: more may find a better one")
    if result.own_data is not None:
        sentence = explain_separation(result, result.model, *result.own_data)
        found += [sentence] * (sentence is not None)
    return found


def _tables(result, names) -> list[str]:
    """The params: first the numbers that are one for every component, then a table a leaf with one
    row a component, or a matrix for each, then leaves that all components share."""
    k = result.model.domain.components
    params, noise = result.params, []
    if isinstance(params, NoiseMixtureParams):
        noise = ["", f"noise_weight {float(params.noise_weight):.6g}"]
        params = MixtureParams(params.weights, params.components)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    of_leaves = jax.tree.leaves(axes(result, params))
    single, tables, shared, left_out = [], [], [], []
    for (path, leaf), axis in zip(leaves, of_leaves, strict=True):
        title = jax.tree_util.keystr(path, simple=True, separator=".")
        values, components, is_of_each = np.asarray(leaf), axis.components, axis.is_leading
        is_of_all = len(components) == k
        are_matrices = is_of_each and values.ndim == 3 and min(values.shape[1:]) > 1
        most = MOST_NUMBERS if are_matrices else MOST_COLUMNS
        if values.size > most * (len(components) if is_of_each else 1):
            left_out.append(
                f"{title} {values.shape}{'' if is_of_each else _sharing(components, k)}"
            )
        elif not is_of_each:
            rows = values.reshape(-1, values.shape[-1]) if values.ndim else values[None, None]
            headings = _headings(result, title, rows, names) if values.ndim else [""]
            shared += ["", title + _sharing(components, k), *_matrix(headings, rows, names)]
        elif are_matrices:
            headings = _headings(result, title, values[:, 0], names)
            for j, rows in zip(components, values, strict=True):
                tables += ["", f"{title} of component {j}", *_matrix(headings, rows, names)]
        elif values.ndim == 1 and is_of_all:
            single.append((title.rsplit(".", 1)[-1], values))
        else:
            rows = values.reshape(len(components), -1)
            headings = _headings(result, title, values, names) if values.ndim > 1 else [""]
            tables += ["", title, *_table(headings, rows, "component", map(str, components))]
    lines = []
    if single:
        headings = [title for title, _ in single]
        columns = np.stack([values for _, values in single], 1)
        lines = ["", *_table(headings, columns, "component", map(str, range(k)))]
    return lines + tables + shared + noise + [""] * bool(left_out) + left_out


def _sharing(components, k) -> str:
    """Which components share a leaf, for its title."""
    if len(components) == k:
        return ", the same for all components"
    first, last = components[0], components[-1]
    return "" if first == last else f", the same for components {first} to {last}"


def _headings(result, title, values, names):
    """The names of the columns of a leaf (k, ...); of regressors x[0], x[1], … by default."""
    width = values[0].size
    if title.endswith("coefficients"):
        is_gate = title.startswith("gate")
        p = width - result.model.gate.intercept if is_gate else result._shape_of_one[-1]
        of_columns = [f"{'gate' if is_gate else 'x'}[{i}]" for i in range(p)]
        if names is not None and not is_gate and len(names) == p:
            of_columns = [str(name) for name in names]
        if width - p in (0, 1):
            return ["intercept"] * (width - p) + of_columns
    if values.ndim == 2 and names is not None and len(names) == width:
        return [str(name) for name in names]
    return [str(list(index)) for index in np.ndindex(values.shape[1:])]


def _matrix(headings, values, names):
    """Lines of a matrix, whose rows have names where as many columns of the data do."""
    if len(values) == len(names or ()):
        return _table(headings, values, "", map(str, names))
    return _table(headings, values, "row", map(str, range(len(values))))


def _table(headings, values, of, labels):
    """Lines of a table in six digits; of: the heading of the labels of its rows."""
    cells = [[f"{value:.6g}" for value in row] for row in values.tolist()]
    columns = list(zip(*cells, strict=True))
    widths = [max(len(h), *map(len, column)) for h, column in zip(headings, columns, strict=True)]
    labels = list(labels)
    margin = max(9, *map(len, labels))
    lines = []
    if any(headings):
        heads = "  ".join(h.rjust(w) for h, w in zip(headings, widths, strict=True))
        lines.append(f"{of:>{margin}}  {heads}")
    for label, row in zip(labels, cells, strict=True):
        numbers = "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True))
        lines.append(f"{label:>{margin}}  {numbers}")
    return lines
