"""What mixtures take."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxem.data.data import (
    Data,
    gate_of,
    given,
    labels_of,
    of_components,
    of_rows,
    shapes_of_components,
    with_components,
    within_units,
)
from jaxem.data.grouped import Grouped
from jaxem.models.noise import check_box
from jaxem.numerics.dependence import dependent
from jaxem.protocol.domains import Domain, finite, require_count, whole
from jaxem.protocol.model import name_of


@dataclasses.dataclass(frozen=True)
class MixtureDomain(Domain):
    """The data of a bank, or `Data` with labels −1 … k − 1, k for noise; with a gate its covariates
    too, finite numbers. Rows in groups."""

    bank: Any = None
    gate: Any = None
    noise: Any = None

    @property
    def classes(self):
        return self.components + (self.noise is not None)

    def with_variance(self, d):
        return self.bank.domain.with_variance(d)

    def rows(self, x):
        if not isinstance(x, Grouped):
            return 1
        stored = x.rows.stored[1]
        parts = [stored] if x.rows.place is None else stored
        return sum(r.shape[-3] * r.shape[-2] for r in parts) / x.rows.length.shape[-1]

    def is_observed(self, x):
        observed = self.bank.domain.is_observed(of_components(x))
        if observed is None or not isinstance(x, Grouped):
            return observed
        return within_units(x, observed) > 0

    def observations(self, x):
        if isinstance(x, Grouped):
            return x.rows.observations()
        return self.bank.domain.observations(of_components(x))

    def numbers(self, x):
        inner = self.bank.domain.numbers(shapes_of_components(x))
        others = [leaf for leaf in (gate_of(x), labels_of(x)) if leaf is not None]
        return inner + sum(leaf.size for leaf in others)

    def completes(self, x):
        return self.bank.domain.completes(shapes_of_components(x))

    def examined(self, x):
        if not isinstance(x, Grouped):
            return x
        worst = x.worst(self.bank.domain.valid)
        if x.gate is None and x.labels is None:
            return worst
        return with_components(Data(None, gate=x.gate, labels=x.labels), worst)

    def valid(self, x):
        x = self.examined(x)
        plain, labels = of_components(x), labels_of(x)
        valid = self.bank.domain.valid(plain)
        if not isinstance(x, Data):
            return valid
        if labels is not None:
            labels = (labels >= -1) & (labels < self.classes) & whole(labels)
        gate = None if x.gate is None else finite(x.gate)
        return with_components(dataclasses.replace(x, labels=labels, gate=gate), valid)

    def _require_taken(self, names):
        """ValueError where the data have fields of a regression that the bank does not take."""
        takes = self.bank.domain.takes
        other = [name for name in names if takes is not None and name not in ("x", *takes)]
        if other:
            raise ValueError(
                f"data.{other[0]} is given, and {name_of(self.bank)} takes none: leave it out, or "
                "use components that take it"
            )

    def check_gate(self, x, n):
        """ValueError where the covariates of the weights are missing, not wanted or of a wrong
        shape."""
        gate = x.gate if isinstance(x, (Data, Grouped)) else None
        if self.gate is None and gate is not None:
            raise ValueError(
                "data.gate is given, and the mixture has constant weights: give it "
                "gate=jaxem.SoftmaxGate(), or leave the covariates out"
            )
        if self.gate is None:
            return
        if gate is None:
            raise ValueError(
                "the mixture has a gate and the data no covariates for it: gate=... takes "
                "covariates: jaxem.Data(x, gate=...)"
            )
        shape = tuple(np.shape(gate))
        if len(shape) != 2 or shape[:1] != n:
            remedy = "gate[:, None] for one covariate" if shape == n else "one row per unit"
            raise ValueError(f"data.gate must have shape ({n[0]}, g), got {shape}: give {remedy}")
        self.gate.require_width(shape[1])

    def accepted(self, path, values):
        if path == ".labels":
            noise = ", which is noise" * (self.noise is not None)
            return f"-1 where unknown, else 0 to {self.classes - 1}{noise}", ""
        if path == ".gate":
            return "finite numbers", ""
        return self.bank.domain.accepted(path, values)

    def check_values(self, x, weights):
        rows, row_weights = of_components(x), weights
        if weights is not None and isinstance(x, Grouped):
            row_weights = np.asarray(of_rows(x, weights))
        self.bank.domain.check_values(rows, row_weights)
        check_box(self.noise, rows, row_weights)
        if self.gate is None or self.gate.prior is not None:
            return
        gate = np.asarray(x.gate)
        gate = gate if weights is None else gate[np.asarray(weights) > 0]
        found = dependent(gate, self.gate.intercept)
        if len(found) == 1:
            what = "the same in all units" if self.gate.intercept else "0 in all units"
            raise ValueError(
                f"column {found[0]} of data.gate (counted from 0) is {what}, so that its "
                "coefficients have no estimate: leave it out"
            )
        if len(found):
            columns = ", ".join(map(str, found))
            raise ValueError(
                f"columns {columns} of data.gate (counted from 0) are collinear, so that their "
                "coefficients have no estimate: leave one out, or give SoftmaxGate a prior"
            )

    def check(self, x, name):
        labels = labels_of(x)
        plain = shapes_of_components(x)
        if isinstance(plain, Data):
            self._require_taken(given(plain))
        has_missing = jax.eval_shape(self.bank.domain.is_observed, plain) is not None
        if self.noise is not None and has_missing:
            raise ValueError(
                f"noise takes complete rows alone, and {name_of(self.bank)} takes missing cells: "
                "leave noise or missing=True out"
            )
        require_count(self.bank.domain, self.components, name_of(self.bank))
        self.bank.domain.check(plain, name_of(self.bank))
        n = jax.tree.leaves(x if isinstance(x, Grouped) else plain)[0].shape[:1]
        self.check_gate(x, n)
        if labels is not None and np.shape(labels) != n:
            raise ValueError(
                f"data.labels must have shape {n}, one per unit, "
                f"got {np.shape(labels)}: give -1 where a label is unknown"
            )
        super().check(x, name)


def require_units(domain, x, name: str) -> None:
    """TypeError where data hold what only mixtures take: rows in groups, covariates of weights. A
    model of `Data` without a domain of jaxem may take them."""
    if isinstance(domain, MixtureDomain):
        return
    if isinstance(x, Grouped):
        raise TypeError(
            f"{name} takes no groups: they are of mixtures, jaxem.Mixture(..., k=...), whose rows "
            "share a component; leave data.groups out"
        )
