"""`Uncertainty`: estimates with standard errors and intervals, and what has none."""

import dataclasses
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from jaxem.data.options import one_of
from jaxem.numerics.paths import names_of_entries
from jaxem.protocol.status import Status
from jaxem.results.frames import as_frame

SCALES = ("natural", "log", "logit")

MOST_ROWS = 60
"""Estimates that are printed."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Uncertainty:
    """Estimates with standard errors; `print` shows a table.

    estimates, errors: trees like params, or like what the function `of` returned. An error is NaN
    where there is none; `notes` say which and why. An entry that is fixed or constant has the error
    0. names: of all entries, in the order of the leaves, such as "components.mean[0, 1]".
    coordinates: the names of entries that determine all others, m of them, such as all weights
    but the last. covariance (m, m): of those. jacobian (p, m): the derivative of all p entries by
    them. method: how the errors were computed. scales: for every entry the scale of its interval,
    "natural", "log" or "logit".

    `jaxem.bootstrap` also sets: replicates, a tree like estimates with a leading axis of the
    replicates, labels as in the fit; statuses (n,), how the refit of each ended; used (n,), those
    whose values count; relabelled: the share of these whose components were permuted to match those
    of the fit. Else these four are None.
    """

    method: str
    estimates: Any
    errors: Any
    names: tuple[str, ...]
    coordinates: tuple[str, ...]
    covariance: np.ndarray
    jacobian: np.ndarray
    scales: tuple[str, ...]
    notes: tuple[str, ...] = ()
    replicates: Any = None
    statuses: Any = None
    used: Any = None
    relabelled: float | None = None

    def interval(self, level: float = 0.95, scale: str | None = None):
        """(lower, upper), two trees like `estimates`: an interval that covers the true value with
        about this probability, NaN where there is no error.

        scale: "natural": estimate ± z·error; "log" and "logit": the same of the logarithm or the
        log odds, for values above 0 or between 0 and 1, NaN for others; "percentile", of a
        bootstrap alone: the quantiles of the replicates. None: logit for probabilities, log for
        values above 0, natural for all others.

        Raises ValueError where level is not between 0 and 1, or for an unknown scale.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level!r}: 0.95 is usual")
        known = (*SCALES, "percentile") if self.replicates is not None else SCALES
        if scale is not None:
            one_of(scale, "scale", known)
        if scale == "percentile":
            return self._percentiles(level)
        value, error = flat(self.estimates), flat(self.errors)
        z = NormalDist().inv_cdf((1 + level) / 2)
        ends = np.full((2, value.size), np.nan)
        for kind in SCALES:
            chosen = np.full(value.size, scale == kind)
            if scale is None:
                chosen = np.array([one == kind for one in self.scales], bool)
            ends[:, chosen] = _ends(kind, value[chosen], error[chosen], z)
        return tuple(unflat(self.estimates, end) for end in ends)

    def to_dataframe(self, level: float = 0.95):
        """A pandas data frame with a row for every entry, by name: estimate, error, lower and upper
        of `interval(level)`. Raises ImportError where pandas is missing."""
        columns = {"estimate": flat(self.estimates), "error": flat(self.errors)}
        columns |= dict(zip(("lower", "upper"), map(flat, self.interval(level)), strict=True))
        return as_frame(columns, list(self.names))

    def __str__(self):
        value, error = flat(self.estimates), flat(self.errors)
        lower, upper = map(flat, self.interval())
        shown = [i for i in range(value.size) if error[i] != 0]
        width = max([len(self.names[i]) for i in shown[:MOST_ROWS]], default=0)
        heads = ("estimate", "error", "95% from", "to")
        lines = [f"standard errors: {self.method}", ""]
        lines += [" " * width + "".join(f"{head:>14}" for head in heads)]
        for i in shown[:MOST_ROWS]:
            cells = (value[i], error[i], lower[i], upper[i])
            row = "".join(f"{'-' if np.isnan(c) else f'{c:.6g}':>14}" for c in cells)
            lines.append(f"{self.names[i]:<{width}}{row}")
        if len(shown) > MOST_ROWS:
            lines.append(f"... and {len(shown) - MOST_ROWS} more: to_dataframe() has all")
        constant = value.size - len(shown)
        if constant:
            lines.append(f"{constant} fixed or constant entries are not shown")
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    __repr__ = __str__

    def _percentiles(self, level):
        tail = (1 - level) / 2
        error = flat(self.errors)
        draws = rows(self.replicates)[self.used]
        ends = np.full((2, error.size), np.nan)
        has_error = np.isfinite(error)
        if len(draws) > 1:
            ends[:, has_error] = np.quantile(draws[:, has_error], (tail, 1 - tail), axis=0)
        return tuple(unflat(self.estimates, end) for end in ends)

    @property
    def information(self) -> np.ndarray:
        """The inverse of `covariance`, (m, m): for method "observed" the observed information on
        the entries `coordinates`."""
        return np.linalg.inv(self.covariance)

    def status_counts(self) -> dict[str, int]:
        """How many refits of a bootstrap ended with each status, by its name. TypeError where
        there are none."""
        if self.statuses is None:
            raise TypeError("there are no refits: status_counts is of jaxem.bootstrap")
        codes, counts = np.unique(self.statuses, return_counts=True)
        pairs = zip(codes.tolist(), counts.tolist(), strict=True)
        return {Status(code).name: count for code, count in pairs}


def flat(tree) -> np.ndarray:
    """The entries of a tree in one vector of floats."""
    leaves = [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def rows(tree) -> np.ndarray:
    """The entries of a tree with a leading axis b, (b, p)."""
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([a.reshape(len(a), -1) for a in leaves], 1)


def unflat(tree, values):
    """A tree like the given one, with these values (p,)."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    parts = np.split(np.asarray(values), ends[:-1]) if leaves else []
    shaped = [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def entry_names(tree) -> tuple[str, ...]:
    """The names of the entries of a tree, such as "components.mean[0, 1]"."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found += names_of_entries(path, np.shape(leaf))
    return tuple(found)


def _ends(kind, value, error, z):
    """The ends (2, p) of intervals on a scale."""
    both = np.array([-z, z])[:, None]
    with np.errstate(all="ignore"):
        if kind == "natural":
            return value + both * error
        if kind == "log":
            inside = value > 0
            return np.where(inside, value * np.exp(both * error / value), np.nan)
        inside = (value > 0) & (value < 1)
        odds = np.log(value) - np.log1p(-value) + both * error / (value * (1 - value))
        return np.where(inside, 1 / (1 + np.exp(-odds)), np.nan)
