"""A faster pass over many rows: log densities and sums by two matrix products."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import Precision

from jaxem.models.mixture import SUM_OVER_UNITS
from jaxem.numerics import chains
from jaxem.passes.linear import FusedPass
from jaxem.protocol.capabilities import LinearBank, has


class PreparedRows(NamedTuple):
    """The rows of all stacks with time first: columns (c, r), base (r,) or None; and the
    sequences."""

    columns: Any
    base: Any
    sequences: Any


def fused_pass(model, x, statistics):
    """The `FusedPass` of a model with `bank` and `chain(params)`, or None where the bank is not
    linear. statistics: the class of the model's statistics, of first rows, transitions and
    emissions."""
    bank, flat = model.bank, model.rows_before(x).flat()
    linear = bank.linear(flat) if has(bank, LinearBank) else None
    if linear is None:
        return None
    linear = linear.hoisted(flat)

    def prepare(x):
        x = model.rows_before(x)
        parts = [jnp.moveaxis(s.rows, 0, 1).reshape(-1, s.rows.shape[-1]) for s in x.stacks()]
        rows = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        return PreparedRows(linear.columns(rows) if linear.room else rows, linear.base(rows), x)

    def coefficients(params):
        level = jnp.zeros(model.k, params.transition.dtype)
        slopes = linear.coefficients(params.emissions, level)
        return slopes, dataclasses.replace(params, emissions=())

    def sums(coefficients, units, weights):
        slopes, params = coefficients
        x = units.sequences
        features = linear.features(units.columns if linear.room else linear.columns(units.columns))
        joint = jnp.matmul(slopes, features, precision=Precision.HIGHEST)
        if units.base is not None:
            joint = joint + units.base
        joint = jnp.where(joint > linear.lowest, joint, -jnp.inf)
        weighted, evidence, pairs, first, start = [], [], [], 0, 0
        for stack, w in zip(x.stacks(), x.from_units(weights), strict=True):
            m, t = stack.observed.shape
            part = joint[:, start : start + t * m].reshape(-1, t, m)
            start += t * m
            observed = (stack.observed & stack.inside).T
            logs = jnp.where(observed[:, None], jnp.moveaxis(part, 0, 1), 0)
            chain = model.chain(params, stack)
            found = chain.forward(logs)
            marginals, of_pairs = chain.backward(found, stack.is_last.T)
            first += jnp.matmul(
                marginals[0], jnp.where(stack.length > 0, w, 0), precision=Precision.HIGHEST
            )
            pairs.append(
                jax.tree.map(lambda a: jnp.matmul(a, w, precision=Precision.HIGHEST), of_pairs)  # noqa: B023
            )
            rows = jnp.where(observed, w, 0)[:, None] * marginals
            weighted.append(jnp.moveaxis(rows, 1, 0).reshape(model.k, -1))
            evidence.append(chains.total(jnp.where(stack.inside.T, found.evidence, 0)))
        weighted = jnp.concatenate(weighted, 1) if len(weighted) > 1 else weighted[0]
        emissions = lax.dot_general(features, weighted, SUM_OVER_UNITS, precision=Precision.HIGHEST)
        pairs = jax.tree.map(lambda *parts: sum(parts), *pairs)
        return statistics(first, pairs, emissions), x.to_units(evidence)

    return FusedPass(
        prepare=prepare,
        coefficients=coefficients,
        sums=sums,
        statistics=lambda params, sums: sums._replace(
            emissions=linear.statistics(params.emissions, sums.emissions)
        ),
        terms=lambda params: linear.terms(params.emissions),
        rows=len(x),
        room=linear.room,
    )
