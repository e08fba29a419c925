"""`BatchSelection`: models compared on every data set of a `Batch`."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxem.analysis import printed
from jaxem.protocol.status import Status
from jaxem.results.result import Result

MOST_LISTED = 12
"""The most data sets whose scores are printed one by one."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchSelection:
    """Models fitted to every data set of a `Batch`; `print` shows how often each was chosen.

    criterion: that of the call. table: a `Row` for every data set and model, b·m of them, the
    models of a data set together. results: the `Result` of every model, a batch of b fits. scores
    (b, m): the criterion; lower is better. winner (b,): the index of the model with the lowest
    score among the sound fits of a data set; −1 where no fit is sound.
    """

    criterion: str
    table: tuple[Any, ...]
    results: tuple[Result, ...]
    scores: np.ndarray
    winner: np.ndarray

    @property
    def best(self) -> list[Result | None]:
        """A list with the winner's `Result` of every data set, None where no fit is sound."""
        chosen = set(self.winner.tolist()) - {-1}
        fits = {j: jax.device_get(self.results[j]).like(self.results[j]) for j in chosen}
        return [None if j < 0 else fits[j][i] for i, j in enumerate(self.winner.tolist())]

    def to_dataframe(self):
        """A pandas data frame with a row for every data set and model, as that of a `Selection`,
        with the number of the data set. Raises ImportError where pandas is missing."""
        models = self.scores.shape[1]
        chosen = [self.winner[row.data_set] == i % models for i, row in enumerate(self.table)]
        frame = printed.table_frame(self.table).assign(chosen=chosen)
        frame.insert(0, "data_set", [row.data_set for row in self.table])
        return frame

    def __len__(self):
        """The number of data sets."""
        return len(self.winner)

    def __str__(self):
        b, m = self.scores.shape
        names = [row.name for row in self.table[:m]]
        head = f"{self.criterion.upper()}, lower is better; {b} data sets"
        lines = _scores(self, names) if b <= MOST_LISTED else _counts(self, names)
        legend = ["chosen: in how many data sets"]
        if b <= MOST_LISTED:
            marks = {_mark(self, i, j) for i in range(b) for j in range(m)}
            legend = ["* chosen"] + ["~ not converged within max_iter"] * bool(marks & {"~", "*~"})
            legend += ["! not sound, never chosen"] * ("!" in marks)
        without = int((self.winner < 0).sum())
        legend += [f"no fit is sound in {without} data sets"] * bool(without)
        return "\n".join([head, "", *lines, "", "; ".join(legend)])

    __repr__ = __str__


def _counts(selection, names):
    """A row for every model: in how many data sets it was chosen, and how its fits ended."""
    width = max(map(len, names))
    lines = [f"{'':>{width}}{'chosen':>9}{'converged':>11}{'MAX_ITER':>10}{'not sound':>11}"]
    for j, (name, result) in enumerate(zip(names, selection.results, strict=True)):
        status = np.asarray(result.status)
        converged, limited = ((status == int(s)).sum() for s in (Status.CONVERGED, Status.MAX_ITER))
        unsound = len(status) - converged - limited
        chosen = (selection.winner == j).sum()
        lines.append(f"{name:>{width}}{chosen:>9}{converged:>11}{limited:>10}{unsound:>11}")
    return lines


def _scores(selection, names):
    """A row for every model and a column for every data set, with its score."""
    width = max(map(len, names))
    lines = [f"{'data set':>{width}}" + "".join(f"{i:>11}  " for i in range(len(selection)))]
    for j, name in enumerate(names):
        cells = [
            f"{s:>11.2f}{_mark(selection, i, j):<2}" for i, s in enumerate(selection.scores[:, j])
        ]
        lines.append(f"{name:>{width}}" + "".join(cells))
    return [line.rstrip() for line in lines]


def _mark(selection, i: int, j: int) -> str:
    """The mark of model j in data set i: * the winner, ~ not converged, ! not sound."""
    status = selection.table[i * selection.scores.shape[1] + j].status
    if j == selection.winner[i]:
        return "*" if status == Status.CONVERGED else "*~"
    return {Status.CONVERGED: "", Status.MAX_ITER: "~"}.get(status, "!")
