"""`Optima`: the distinct objectives at which restarts converged, and how often each was reached."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxem.data.options import tolerance
from jaxem.numerics.rounding import ROUNDING
from jaxem.numerics.tree import is_traced
from jaxem.protocol.status import Status
from jaxem.results.frames import as_frame


class Optimum(NamedTuple):
    """One optimum among the restarts of a fit.

    objective: the highest objective of its restarts, in nats. count: the number of its restarts.
    share: count over the number of all restarts. index: the restart with that objective; its params
    are `jax.tree.map(lambda leaf: leaf[index], result.restarts.params)`.
    """

    objective: float
    count: int
    share: float
    index: int


class Optima(tuple):
    """A tuple of `Optimum`, the best first; prints as a table.

    unfinished: the number of restarts by `Status`, for statuses other than CONVERGED. They belong
    to no optimum. Shares are of all restarts, so that the shares of the optima and of the
    unfinished restarts sum to 1.
    """

    unfinished: dict

    def __new__(cls, entries, unfinished=()):
        self = super().__new__(cls, entries)
        self.unfinished = dict(unfinished)
        return self

    def __getnewargs__(self):
        return tuple(self), self.unfinished

    def to_dataframe(self):
        """A pandas data frame with a row for every optimum, then one for every status of restarts
        that did not converge: status, objective, count, share of all restarts, and the index of the
        best restart; NaN and −1 where there is none. Raises ImportError where pandas is missing."""
        total = sum(optimum.count for optimum in self) + sum(self.unfinished.values())
        rows = [(Status.CONVERGED.name, *optimum) for optimum in self]
        rows += [
            (status.name, np.nan, count, count / total, -1)
            for status, count in self.unfinished.items()
        ]
        names = ("status", "objective", "count", "share", "index")
        columns = zip(*rows, strict=True) if rows else ((),) * len(names)
        return as_frame({n: list(column) for n, column in zip(names, columns, strict=True)})

    def __repr__(self):
        lines = ["    objective  count   share  restart"]
        lines += [
            f"{optimum.objective:13.7g} {optimum.count:6d} {optimum.share:7.1%} {optimum.index:8d}"
            for optimum in self
        ]
        total = sum(optimum.count for optimum in self) + sum(self.unfinished.values())
        for status, count in self.unfinished.items():
            lines.append(f"{status.name:>13} {count:6d} {count / total:7.1%}")
        return "\n".join(lines)

    __str__ = __repr__


def optima(restarts, units: float, tol: float) -> Optima:
    """Groups the restarts that converged by their final objectives.

    The first optimum holds the best restart and all at most tol·units below it. The second holds
    the best of the others and all at most tol·units below that one, and so on. Where the rounding
    error bound of the objective is larger than tol·units, that bound is used.

    Args:
      restarts: a `Fit` with one leading axis of restarts.
      units: Σw.  tol: per unit of weight, in nats.

    Raises:
      ValueError, TypeError: tol is not a number of 0 or more, units not one above 0, or the fit is
      traced: the number of optima is not known under `jit`.
    """
    if is_traced((restarts.objective, restarts.status)):
        raise TypeError("the number of optima is not known under jit or vmap: ask outside")
    tol = tolerance(tol)
    if not 0 < units < np.inf:
        raise ValueError(f"units must be the total weight, a finite number above 0, got {units!r}")
    status, objective = np.asarray(restarts.status), np.asarray(restarts.objective)
    rounding = ROUNDING * float(np.finfo(objective.dtype).eps)
    converged = np.flatnonzero(status == Status.CONVERGED)
    order = converged[np.argsort(-objective[converged], kind="stable")]
    sorted_objectives = objective[order].astype(float)
    grouped, first = [], 0
    while first < len(order):
        best = sorted_objectives[first]
        width = max(tol * units, rounding * (abs(best) + units))
        end = int(np.searchsorted(-sorted_objectives, width - best, side="right"))
        count = end - first
        grouped.append(Optimum(float(best), count, count / len(status), int(order[first])))
        first = end
    unfinished = Counter(Status(int(s)) for s in status if s != Status.CONVERGED)
    return Optima(grouped, unfinished.most_common())
