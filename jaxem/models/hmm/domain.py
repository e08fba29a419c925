"""What hidden Markov models take."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.sequences import Sequences
from jaxem.numerics.tree import is_traced
from jaxem.protocol.domains import Domain, require_count
from jaxem.protocol.model import name_of


@dataclass(frozen=True)
class SequencesDomain(Domain):
    """`Sequences` of rows that a bank takes. inputs: whether with inputs; None: never."""

    bank: Any = None
    inputs: bool | None = False

    def rows(self, x):
        length, rows, *_ = x.stored
        cells = sum(r.shape[-3] * r.shape[-2] for r in (rows if x.place is not None else [rows]))
        return cells / length.shape[-1]

    def observations(self, x):
        return x.lagged(self.lags).observations() if self.lags else x.observations()

    def valid(self, x):
        x = self.examined(x)
        n, t, d = x.rows.shape
        are_valid = self.bank.domain.valid(x.rows.reshape(n * t, d)).reshape(n, t, d)
        is_length = x.length >= 0
        inputs = None if x.inputs is None else abs(x.inputs) < float("inf")
        return Sequences.of(is_length, are_valid, x.observed == x.observed, inputs)

    def examined(self, x):
        """Where x has several padded lengths, the worst row of each sequence: one that is outside
        the support of the bank, or else any."""
        length, rows, _, inputs, place = x.stored
        if place is None:
            return x
        xp = jnp if is_traced(x) else np

        def worst(part, given):
            m, t, d = part.shape
            are_valid = self.bank.domain.valid(part.reshape(m * t, d)).reshape(m, t, d).all(-1)
            if given is not None:
                are_valid = are_valid & (abs(given) < float("inf")).all(-1)
            row = xp.argmin(are_valid, axis=1)[:, None, None]
            return tuple(
                None if a is None else xp.take_along_axis(xp.asarray(a), row, axis=1)
                for a in (part, given)
            )

        given = [None] * len(rows) if inputs is None else inputs
        found = [worst(part, of_part) for part, of_part in zip(rows, given, strict=True)]
        rows, given = zip(*found, strict=True)
        given = None if inputs is None else xp.concatenate(given)[place]
        rows = xp.concatenate(rows)[place]
        return Sequences.of(length, rows, xp.ones(rows.shape[:2], bool), given)

    def check(self, x, name):
        if not isinstance(x, Sequences):
            raise TypeError(
                f"{name} takes jaxem.Sequences, got {type(x).__name__}: wrap the rows, "
                "jaxem.Sequences(x) for one sequence (t, d), jaxem.Sequences([x0, x1]) for several"
            )
        rows = x.stored[1]
        rows = rows if x.place is not None else [rows]
        shape = jax.ShapeDtypeStruct((1, rows[0].shape[-1]), rows[0].dtype)
        require_count(self.bank.domain, self.components, name_of(self.bank))
        self.bank.domain.check(shape, name_of(self.bank))
        has_inputs = x.stored[3] is not None
        if has_inputs != bool(self.inputs):
            gate = "" if self.inputs is None else "give transitions=jaxem.SoftmaxGate(), or "
            raise ValueError(
                f"the sequences have inputs, {name} takes none: {gate}leave them out"
                if has_inputs
                else f"{name} has transitions that depend on inputs: give "
                "jaxem.Sequences(data, inputs=...)"
            )
        super().check(x, name)
