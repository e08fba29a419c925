"""What regressions take: `Data` of regressors and responses, and designs that have estimates."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxem.families.regression.design import has_fields
from jaxem.numerics.dependence import dependent
from jaxem.protocol.domains import Domain, finite, is_count, require_matrix

CHECKED_ROWS = 2**16
"""Rows, evenly spaced, that are looked at first: where they are not collinear, no more are."""


@dataclass(frozen=True)
class RegressionDomain(Domain):
    """`Data` with regressors x (n, p), responses y (n,) or (n, 1), and offset and trials (n,)."""

    bank: Any = None

    @property
    def response(self):
        return self.bank.response

    def valid(self, x):
        if not has_fields(x):
            return super().valid(x)
        y = x.y
        is_valid = self.response.is_valid(y)
        if self.response.takes_trials:
            is_valid = is_valid & (y <= (1 if x.trials is None else x.trials.reshape(y.shape)))
        offset = None if x.offset is None else finite(x.offset)
        trials = None if x.trials is None else is_count(x.trials)
        return replace(x, x=finite(x.x), y=is_valid, offset=offset, trials=trials)

    def accepted(self, path, values):
        if path == ".y":
            return self.response.words, self.response.remedy(values)
        words = {".trials": "counts 0, 1, 2, ...", ".offset": "finite numbers, such as logarithms"}
        return words.get(path, "finite numbers"), ""

    def check(self, x, name):
        if not has_fields(x) or x.y is None:
            shaped = f"an array of shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
            got = "none" if has_fields(x) else shaped or type(x).__name__
            raise ValueError(
                f"{name} takes responses: give jaxem.Data(x, y) to a Mixture, got {got} (chains "
                "take rows alone, such as those of jaxem.Autoregression)"
            )
        if x.x is None:
            raise ValueError(f"{name} takes regressors: data.x is None, give jaxem.Data(x, y)")
        require_matrix(x.x, name)
        n, p = x.x.shape
        if x.y.shape not in ((n,), (n, 1)):
            raise ValueError(
                f"{name} takes data.y of shape ({n},), one response a row, got {tuple(x.y.shape)}: "
                "for several responses use jaxem.Product"
            )
        for field in ("offset", "trials"):
            value = getattr(x, field)
            if value is not None and value.shape != (n,):
                raise ValueError(
                    f"{name} takes data.{field} of shape ({n},), one a row, got "
                    f"{tuple(value.shape)}: reshape it"
                )
        self._check_columns(name, n, p)
        super().check(x, name)

    def _check_columns(self, name, n, p):
        bank, m = self.bank, p + self.bank.intercept
        if any(c >= p for c in bank.shared):
            raise ValueError(
                f"{name} has shared={bank.shared}, and data.x has {p} columns, counted from 0: "
                "give columns of data.x, without the intercept"
            )
        if bank.prior is None and m > n:
            raise ValueError(
                f"{name} has {m} coefficients and the data {n} rows: use fewer columns of data.x, "
                "or a prior"
            )
        for field in ("precision", "mean"):
            shape = np.shape(getattr(bank.prior, field, 0))
            if shape not in ((), (1,), (m,)):
                raise ValueError(
                    f"CoefficientPrior has {field} of shape {shape}, and {name} {m} coefficients: "
                    f"give a number or shape ({m},), the intercept first"
                )

    def check_values(self, x, weights):
        """ValueError where regressors are constant beside an intercept, or collinear; a prior makes
        the estimates unique."""
        bank, design = self.bank, np.asarray(x.x)
        if bank.prior is not None:
            return
        if weights is not None:
            design = design[np.asarray(weights) > 0]
        sample = design[:: -(-len(design) // CHECKED_ROWS) or 1]
        found = dependent(sample, bank.intercept)
        if len(found) and len(sample) < len(design):
            found = dependent(design, bank.intercept)
        if not len(found):
            return
        columns = ", ".join(map(str, found))
        if len(found) == 1:
            what = "the same in all rows" if bank.intercept else "0 in all rows"
            end = ", or use intercept=False" * bool(bank.intercept)
            raise ValueError(
                f"column {columns} of data.x (counted from 0) is {what}, so that its coefficient "
                f"has no estimate: leave it out{end}"
            )
        beside = " with the intercept" * bool(bank.intercept)
        raise ValueError(
            f"columns {columns} of data.x (counted from 0) are collinear{beside}, so that their "
            "coefficients have no estimate: leave one out, or give a prior"
        )
