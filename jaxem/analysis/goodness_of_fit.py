"""How well a model of codes or bits explains the table of their patterns."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxem.analysis.refits import (
    precision_of,
    require_concrete,
    require_result,
    units_and_weights,
)
from jaxem.families.bernoulli import Bernoulli
from jaxem.families.categorical import Categorical
from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.model import name_of
from jaxem.results.component_axes import unwrapped
from jaxem.results.result import Result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GoodnessOfFit:
    """Observed counts of patterns against expected ones; `print` shows both tests.

    g_squared: 2 Σ n log(n / e) over observed patterns; x_squared: Σ (n − e)² / e over all cells.
    degrees_of_freedom: cells − 1 − free parameters; where it is below 1 there is no test, and p
    values are NaN. patterns (c, d), counts (c,), expected (c,): of the observed patterns. cells:
    of the whole table. entropy_r2: 1 − entropy of the responsibilities / (Σw log k), 1 where every
    unit is classified with certainty; NaN for one component.
    """

    g_squared: float
    x_squared: float
    degrees_of_freedom: int
    patterns: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    cells: int
    entropy_r2: float

    @property
    def p_values(self) -> tuple[float, float]:
        """The p values of g_squared and x_squared by χ², an approximation that needs expected
        counts of about 5 or more."""
        if self.degrees_of_freedom < 1:
            return math.nan, math.nan
        half = self.degrees_of_freedom / 2
        tails = (jax.scipy.special.gammaincc(half, v / 2) for v in (self.g_squared, self.x_squared))
        return tuple(float(tail) for tail in tails)

    def __str__(self):
        p = self.p_values
        lines = [
            f"{len(self.counts)} of {self.cells} patterns observed, "
            f"{self.degrees_of_freedom} degrees of freedom",
            f"G² {self.g_squared:.6g}, p = {p[0]:.3g}",
            f"X² {self.x_squared:.6g}, p = {p[1]:.3g}",
            f"entropy R² {self.entropy_r2:.4g}",
        ]
        rare = int((self.expected < 5).sum()) + self.cells - len(self.counts)
        if rare > self.cells / 5:
            lines.append(
                f"{rare} patterns have, or may have, expected counts below 5: the χ² "
                "approximation is poor"
            )
        return "\n".join(lines)

    __repr__ = __str__


def goodness_of_fit(result: Result, x: Any, weights: Any = None) -> GoodnessOfFit:
    """G² and X² of the table of all patterns of d columns, for mixtures of `Categorical` or
    `Bernoulli` components.

    Args:
      result: of one fit.  x: codes or bits (n, d).  weights: (n,), counts of rows; None: all 1.

    Returns a `GoodnessOfFit`. Raises TypeError for other models, for a batch, and under jit,
    ValueError for missing cells. Source: Goodman 1974.
    """
    require_concrete("goodness_of_fit", result, x, weights)
    require_result(result, "goodness_of_fit(result, x)")
    if result.is_fleet:
        raise TypeError("a batch is tested fit by fit: jaxem.goodness_of_fit(result[i], x[i])")
    with precision_of(result.params):
        rows, of_units, n = units_and_weights(x, weights)
        levels = _levels(result.model, rows)
        rows = np.asarray(rows)
        base = np.ones(n) if of_units is None else np.asarray(of_units, float)
        rows, base = rows[base > 0], base[base > 0]
        if np.isnan(np.asarray(rows, float)).any():
            raise ValueError(
                "the table of patterns needs complete rows, and x has missing cells: give the "
                "complete rows alone, or use jaxem.cross_validate"
            )
        patterns, place = np.unique(rows, axis=0, return_inverse=True)
        counts = np.bincount(place.ravel(), base, minlength=len(patterns))
        total = counts.sum()
        expected = total * np.exp(np.asarray(result.score_samples(patterns), float))
        k = result.model.domain.classes
        entropy = float(result.entropy(rows, base))
    away = np.square(counts - expected) / expected
    return GoodnessOfFit(
        g_squared=float(2 * np.sum(counts * np.log(counts / expected))),
        x_squared=float(away.sum() + max(0.0, total - expected.sum())),
        degrees_of_freedom=math.prod(levels) - 1 - int(result.n_parameters),
        patterns=patterns,
        counts=counts,
        expected=expected,
        cells=math.prod(levels),
        entropy_r2=1 - entropy / (total * math.log(k)) if k > 1 else math.nan,
    )


def _levels(model, x) -> list[int]:
    """The number of values of every column."""
    plain = unwrapped(model)
    bank = plain.components if isinstance(plain, FiniteMixture) else None
    if not isinstance(bank, (Bernoulli, Categorical)) or not hasattr(x, "ndim"):
        raise TypeError(
            f"{name_of(model)} has no finite table of patterns of rows: G² and X² are of mixtures "
            "of Categorical or Bernoulli components and data (n, d); use jaxem.cross_validate"
        )
    d = x.shape[1]
    return [2] * d if isinstance(bank, Bernoulli) else [int(v) for v in bank.per_column(d)]
