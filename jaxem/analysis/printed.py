"""A `Selection` in print, and short names of models."""

import dataclasses
import re

import numpy as np

from jaxem.models.bayesian import BayesianMixture
from jaxem.models.hmm.hmm import HMM
from jaxem.models.hmm.semi_markov import SemiMarkov
from jaxem.models.lda.lda import LDA
from jaxem.models.mixture import Mixture
from jaxem.protocol.status import Status
from jaxem.results.frames import as_frame

SOUND = (Status.CONVERGED, Status.MAX_ITER)
"""The statuses of fits whose likelihoods can be compared. Only such a fit can be chosen."""


LINE = 100
"""The most characters of a line of a table of structures."""

STRUCTURE = re.compile(r"Normal\('([EVI]{3})'\)(, noise)?, k=(\d+)")
"""The names of mixtures that are in such a table."""


def model_name(model) -> str:
    """`Normal('full'), k=3` for a mixture, `LDA(topics=3)` for topics, `HMM of Poisson(), k=2` or
    `SemiMarkov of Poisson(), 'poisson', k=2` for a chain, else the type."""
    if isinstance(model, LDA):
        inference = f", {model.inference!r}" if model.bayes else ""
        return f"LDA(topics={model.topics}{inference})"
    if isinstance(model, BayesianMixture):
        options = "" if model.weights == "dirichlet" else f", {model.weights!r}"
        return f"BayesianMixture({_bank_name(model.components)}, k={model.k}{options})"
    if isinstance(model, HMM):
        options = [repr(model.initial)] * (model.initial != "free")
        parts = (part for part in (model.transitions, model.prior) if part is not None)
        options += [type(part).__name__ for part in parts]
        return ", ".join([f"HMM of {_bank_name(model.emissions)}", *options, f"k={model.k}"])
    if isinstance(model, SemiMarkov):
        return f"SemiMarkov of {_bank_name(model.emissions)}, {model.durations!r}, k={model.k}"
    if not isinstance(model, Mixture):
        return type(model).__name__
    prior = "" if model.prior is None else f", {type(model.prior).__name__}"
    noise = "" if model.noise is None else ", noise"
    return f"{_bank_name(model.components)}{noise}, k={model.k}{prior}"


def _bank_name(part) -> str:
    """A short name of a bank: its type, its options that are strings, and those not at their
    default."""
    if not dataclasses.is_dataclass(part):
        return repr(part) if len(repr(part)) < 40 else type(part).__name__
    options = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, str):
            options.append(repr(value))
        elif dataclasses.is_dataclass(value):
            options.append(type(value).__name__)
        elif value is not field.default and value is not None:
            options.append(f"{field.name}={value}" if np.ndim(value) == 0 else field.name)
    return f"{type(part).__name__}({', '.join(options)})"


def mark(selection, i) -> str:
    """The mark of model i in the table: * the winner, ~ not converged, ! not sound."""
    status = selection.table[i].status
    if i == selection.winner:
        return "*" if status == Status.CONVERGED else "*~"
    return {Status.CONVERGED: "", Status.MAX_ITER: "~"}.get(status, "!")


def lines(selection):
    """The lines of the table of a selection."""
    if has_structures(selection):
        return structure_lines(selection)
    return grid_lines(selection) or table_lines(selection)


def has_structures(selection) -> bool:
    """Whether all models are mixtures of normals in structures of three letters, each once."""
    cells = [_cell(row) for row in selection.table]
    return None not in cells and len(set(cells)) == len(cells)


def _cell(row):
    """(the structure, k) of a row of the table; None for other models."""
    found = STRUCTURE.fullmatch(row.name)
    return (found[1] + (found[2] or ""), row.k) if found and int(found[3]) == row.k else None


def structure_lines(selection):
    """The lines of mclust's table: a row a k, a column a structure, "-" for a fit that is not
    sound. Many columns are printed in blocks."""
    score = {}
    for i, row in enumerate(selection.table):
        symbol = mark(selection, i)
        score[_cell(row)] = "-" if symbol == "!" else f"{row.score:.2f}{symbol}"
    names = list(dict.fromkeys(name for name, _ in score))
    sizes = sorted({k for _, k in score})
    width = 2 + max(map(len, [*score.values(), *names]))
    lines = []
    for start in range(0, len(names), count := max(1, (LINE - 3) // width)):
        block = names[start : start + count]
        lines += [""] * bool(lines)
        lines.append(f"{'k':>3}" + "".join(f"{name:>{width}}" for name in block))
        for k in sizes:
            cells = (score.get((name, k), "") for name in block)
            lines.append(f"{k:>3}" + "".join(f"{cell:>{width}}" for cell in cells))
    return [line.rstrip() for line in lines]


def table_frame(table):
    """The rows of a selection as a pandas data frame."""
    columns = {"name": [row.name for row in table]}
    columns |= {"k": [row.k for row in table], "n_parameters": [row.n_parameters for row in table]}
    columns["log_likelihood"] = [row.log_likelihood for row in table]
    columns["score"] = [row.score for row in table]
    return as_frame(columns | {"status": [row.status.name for row in table]})


def grid_lines(selection):
    """The lines of a table with a row a bank and a column a k; None where the models do not form
    one."""
    cells, labels = {}, []
    for i, (row, model) in enumerate((row, row.model) for row in selection.table):
        suffix = f", k={row.k}"
        if not isinstance(model, Mixture) or not row.name.endswith(suffix):
            return None
        label = row.name.removesuffix(suffix)
        if (label, row.k) in cells:
            return None
        labels.append(label)
        cells[label, row.k] = f"{row.score:.2f}{mark(selection, i) or ' '}"
    labels, columns = list(dict.fromkeys(labels)), sorted({row.k for row in selection.table})
    label_width, cell_width = (
        max(map(len, labels)),
        max(11, *(len(cell) + 2 for cell in cells.values())),
    )
    lines = ["k".rjust(label_width) + "".join(f"{k:>{cell_width - 1}} " for k in columns).rstrip()]
    for label in labels:
        row = "".join(f"{cells.get((label, k), ''):>{cell_width}}" for k in columns)
        lines.append(f"{label:>{label_width}}{row}".rstrip())
    return lines


def table_lines(selection):
    """The lines of a table with a row for every model."""
    width = max(len(row.name) for row in selection.table)
    head = (
        f"{'':>{width}}{'parameters':>12}{'log-likelihood':>16}{selection.criterion:>14}   status"
    )
    sizes = ["-" if row.n_parameters is None else row.n_parameters for row in selection.table]
    return [head] + [
        f"{row.name:>{width}}{sizes[i]:>12}"
        f"{row.log_likelihood:>16.2f}{row.score:>14.2f}"
        f"{mark(selection, i):<3}{row.status.name}"
        for i, row in enumerate(selection.table)
    ]
