"""Columns that have no variance of their own: which they are, in words."""

import numpy as np

from jaxem.data.batch import Batch
from jaxem.data.data import Data
from jaxem.numerics import tuning


def column_names(data) -> list[str] | None:
    """The names of the columns of a data frame, of that in `Data`, or of all data sets of a
    `Batch` where they are the same; None where columns have only numbers."""
    if isinstance(data, Data):
        data = data.x
    if isinstance(data, Batch):
        each = [column_names(one) for one in data.data] if isinstance(data.data, list) else [None]
        return each[0] if all(names == each[0] for names in each) else None
    names = getattr(data, "columns", None)
    return None if names is None else [str(name) for name in names]


def constant_columns(x) -> np.ndarray:
    """The columns of an array (n, d) that are the same in all units.

    A sample of units comes first, so that large data with no such column are not read."""
    n = x.shape[0]
    if not (np.asarray(x[0]) == np.asarray(x[-1])).any():
        return np.zeros(0, int)
    sample = np.asarray(x[:: max(1, n // 64)])
    found = np.flatnonzero((sample == sample[0]).all(axis=0))
    if len(found) and n > len(sample):
        columns = np.asarray(x[:, found])
        found = found[(columns == columns[0]).all(axis=0)]
    return found


def called(columns, names) -> str:
    """Columns in words: by name, or by number counted from 0."""
    few = [int(c) for c in columns][:6]
    listed = ", ".join(repr(names[c]) if names else str(c) for c in few)
    return f"column{'s' * (len(columns) > 1)} {listed}" + ", ..." * (len(columns) > len(few))


def explain_constant(x, columns, names) -> str | None:
    """A sentence on those of the given columns that are the same in all units; None where none is,
    or where all are, which is a collapse."""
    if len(columns) < 2 or x.shape[0] < 2:
        return None
    found = [column for column in constant_columns(x) if column in columns]
    if not len(found) or len(found) == len(columns):
        return None
    verb, end = ("is", "s") if len(found) == 1 else ("are each", "")
    return (
        f"{called(found, names)} {verb} the same in all {x.shape[0]} units and say{end} nothing "
        "about components: no variance is estimated there; leave such columns out"
    )


def explain_collapse(x, labels, k: int, names) -> str:
    """Which columns are collinear, or the same in all units of a component, for the message of a
    degenerate fit; "" where none is.

    labels: (n,), the component of every unit.
    """
    rows = slice(0, None, max(1, x.shape[0] // tuning.EXPLAINED_UNITS))
    values, labels = np.asarray(x[rows], float), np.asarray(labels)[rows]
    is_complete = ~np.isnan(values).any(1)
    values, labels = values[is_complete], labels[is_complete]
    if len(values) < 2:
        return ""
    constant = np.ptp(values, axis=0) == 0
    if constant.all():
        return " All units are the same: there is nothing to fit."
    collinear = _collinear(values[:, ~constant])
    if len(collinear):
        which = called(np.flatnonzero(~constant)[collinear], names)
        return (
            f" {which[0].upper()}{which[1:]} are collinear in all units: leave one out, use "
            'covariance="diagonal", or give a prior.'
        )
    for component in range(k):
        members = values[labels == component]
        same = ~constant & (np.ptp(members, axis=0) == 0) if len(members) > 1 else []
        if len(members) > 1 and same.any():
            which, verb = called(np.flatnonzero(same), names), "are" if same.sum() > 1 else "is"
            return (
                f" {which[0].upper()}{which[1:]} {verb} the same in all {len(members)} units of "
                f"component {component}."
            )
    return ""


def _collinear(values):
    """The columns (of values (n, d), none constant) of the first linear relation among them."""
    with np.errstate(invalid="ignore", divide="ignore"):  # absent units may hold inf
        standard = (values - values.mean(axis=0)) / values.std(axis=0)
    if not np.isfinite(standard).all():
        return ()
    eigenvalues, vectors = np.linalg.eigh(standard.T @ standard / len(values))
    if eigenvalues[0] > 1e-10 * max(eigenvalues[-1], 1):
        return ()
    part = abs(vectors[:, 0])
    return np.flatnonzero(part > 1e-3 * part.max())
