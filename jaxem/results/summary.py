"""The params of a fit as a table with one row a component."""

import jax
import numpy as np

from jaxem.models.mixing import MixtureParams
from jaxem.models.noise import NoiseMixtureParams
from jaxem.results.printed import text

MOST_COLUMNS = 24
"""Columns of a leaf of params that are shown; of a larger one only its shape is."""


def summary(result, names=None) -> str:
    """See `Result.summary`."""
    if np.ndim(result.status):
        raise TypeError("a batch has no summary: result[i].summary() is that of one fit")
    k = result.model.domain.components
    params, noise = result.params, []
    if isinstance(params, NoiseMixtureParams):
        noise = ["", f"noise_weight {float(params.noise_weight):.6g}"]
        params = MixtureParams(params.weights, params.components)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    tables, left_out = [], []
    for path, leaf in leaves:
        title = jax.tree_util.keystr(path, simple=True, separator=".")
        values = np.asarray(leaf)
        if values.shape[:1] != (k,):
            left_out.append(f"{title} {values.shape}, the same for all components")
        elif values.size // k > MOST_COLUMNS:
            left_out.append(f"{title} {values.shape}")
        else:
            tables.append((title, _headings(result, title, values, names), values))
    lines = [text(result)]
    for title, headings, values in tables:
        lines += ["", title, *_table(headings, values.reshape(k, -1))]
    lines += noise
    return "\n".join(lines + [""] * bool(left_out) + left_out)


def _headings(result, title, values, names):
    """The names of the columns of a leaf (k, ...); of regressors x[0], x[1], … by default."""
    if values.ndim == 1:
        return [""]
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


def _table(headings, values):
    """Lines of a table with a row for each component, in six digits."""
    cells = [[f"{value:.6g}" for value in row] for row in values.tolist()]
    columns = list(zip(*cells, strict=True))
    widths = [max(len(h), *map(len, column)) for h, column in zip(headings, columns, strict=True)]
    lines = []
    if any(headings):
        heads = "  ".join(h.rjust(w) for h, w in zip(headings, widths, strict=True))
        lines.append(f"{'component':>9}  {heads}")
    for j, row in enumerate(cells):
        lines.append(f"{j:>9}  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
    return lines
