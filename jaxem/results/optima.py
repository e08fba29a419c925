"""The optima that restarts reached: their objectives, and how often each was found."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from jaxem.data import arrays as checks
from jaxem.numerics.rounding import ROUNDING
from jaxem.numerics.tree import is_traced
from jaxem.protocol.status import Status


class Optimum(NamedTuple):
    """One optimum among the restarts of a fit.

    objective: the highest value reached there. count: how many restarts ended there. share: count
    over the number of all restarts. index: the restart that reached the value, so that its params
    are `jax.tree.map(lambda leaf: leaf[index], result.restarts.params)`.
    """

    objective: float
    count: int
    share: float
    index: int


class Optima(tuple):
    """`Optimum` after `Optimum`, the best first; prints as a table.

    unfinished: how many restarts ended with which `Status` other than CONVERGED. They count in no
    optimum, but every share is of all restarts: shares and these together sum to one.
    """

    unfinished: dict

    def __new__(cls, found, unfinished=()):
        self = super().__new__(cls, found)
        self.unfinished = dict(unfinished)
        return self

    def __getnewargs__(self):
        return tuple(self), self.unfinished

    def __repr__(self):
        lines = ["    objective  count   share  restart"]
        lines += [f"{o.objective:13.7g} {o.count:6d} {o.share:7.1%} {o.index:8d}" for o in self]
        total = sum(o.count for o in self) + sum(self.unfinished.values())
        for status, many in self.unfinished.items():
            lines.append(f"{status.name:>13} {many:6d} {many / total:7.1%}")
        return "\n".join(lines)

    __str__ = __repr__


def optima(restarts, units: float, tol: float) -> Optima:
    """Groups the restarts that converged by their final objectives.

    The best restart opens the first optimum and takes in all within tol·units below it; the best
    of the others opens the second, and so on. The width is raised to the rounding of the objective
    where that is larger.

    Args:
      restarts: a `Fit` with one leading axis of restarts.
      units: Σw.  tol: per unit of weight, in nats.

    Raises:
      ValueError, TypeError: tol is not a number of 0 or more, units not one above 0, or the fit is
      traced: the number of optima is not known under `jit`.
    """
    if is_traced((restarts.objective, restarts.status)):
        raise TypeError("the number of optima is not known under jit or vmap: ask outside")
    tol = checks.tolerance(tol)
    if not 0 < units < np.inf:
        raise ValueError(f"units must be the total weight, a finite number above 0, got {units!r}")
    status, objective = np.asarray(restarts.status), np.asarray(restarts.objective)
    rounding = ROUNDING * float(np.finfo(objective.dtype).eps)
    sound = np.flatnonzero(status == Status.CONVERGED)
    order = sound[np.argsort(-objective[sound], kind="stable")]
    values = objective[order].astype(float)
    found, at = [], 0
    while at < len(order):
        top = values[at]
        width = max(tol * units, rounding * (abs(top) + units))
        end = int(np.searchsorted(-values, width - top, side="right"))
        count = end - at
        found.append(Optimum(float(top), count, count / len(status), int(order[at])))
        at = end
    others = Counter(Status(int(s)) for s in status if s != Status.CONVERGED)
    return Optima(found, others.most_common())
