"""Faster passes of a mixture over many units: two products of matrices around a softmax."""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.lax import Precision

from jaxem.data.data import labels_of, of_components
from jaxem.data.grouped import Grouped
from jaxem.numerics import tuning
from jaxem.numerics.softmax import softmax_parts
from jaxem.passes.linear import FusedPass
from jaxem.protocol.capabilities import Fused, LinearBank, has

SUM_OVER_UNITS = (((1,), (1,)), ((), ()))
"""The contraction of features and responsibilities over units. In this order the smaller factor is
packed: a core reaches 87 GFLOP/s of 95 in float32, against 57 in the other order. XLA reverses the
order of a product that is transposed."""


def fused_pass(mixture, x, statistics):
    """The `FusedPass` of a mixture for data shaped like x, or None. statistics: the class of the
    mixture's statistics, of weights and components."""
    bank, data, mixing = mixture.bank, of_components(x), mixture.mixing
    blocked = bank.fused(data) if has(bank, Fused) and not isinstance(x, Grouped) else None
    if blocked is not None:
        from jaxem.models.blocked_pass import blocked_pass  # other fits do not import it

        return blocked_pass(mixture, x, blocked, statistics, with_labels)
    linear = bank.linear(data) if has(bank, LinearBank) else None
    if isinstance(x, Grouped):
        return _of_groups(mixture, x, linear, statistics)
    if linear is None:
        return None
    linear = linear.hoisted(data)

    def prepare(x):
        plain, covariates = of_components(x), mixing.columns(x)
        if covariates is not None and not linear.room:
            covariates = covariates.T
        columns = linear.columns(plain) if linear.room else plain
        return columns, labels_of(x), linear.base(plain), covariates

    return FusedPass(
        prepare=prepare,
        coefficients=partial(_coefficients, mixture, linear),
        sums=partial(_sums, mixture, linear),
        statistics=partial(_statistics, mixture, linear, statistics),
        terms=lambda params: linear.terms(params.components),
        rows=product_rows(linear.size + 2 * mixture.k),
        axis=-1 if linear.room else 0,
        room=linear.room,
    )


def _coefficients(mixture, linear, params):
    """(the coefficients (k, size) of features, with noise (k + 1, size), the params of weights that
    depend on units)."""
    mixing, k = mixture.mixing, mixture.k
    of_weights = mixing.gate_coefficients(params)
    level = mixing.levels(params, None) if of_weights is None else jnp.zeros(k, of_weights.dtype)
    slopes = linear.coefficients(params.components, level[:k])
    return _with_noise(slopes, mixing, linear, level[k:]), of_weights


def _with_noise(slopes, mixing, linear, level):
    """The coefficients with those of the noise, whose log density is constant. level: its log
    weight (1,)."""
    if mixing.background is None:
        return slopes
    row = jnp.zeros_like(slopes[:1]).at[0, linear.one].set(mixing.background + level[0])
    return jnp.concatenate([slopes, row])


def _less_base(joint, base, k):
    """log p(x, z) (k, n), to which base (n,) will be added; with noise (k + 1, n), and that of the
    noise less base, which it has not."""
    if len(joint) == k:
        return joint
    return joint - jnp.where(jnp.arange(k + 1)[:, None] == k, base, 0)


def _statistics(mixture, linear, statistics, params, sums):
    of_features, count = sums
    inner = linear.statistics(params.components, of_features[:, : mixture.k])
    return statistics(of_features[linear.one] if count is None else count, inner)


def _sums(mixture, linear, coefficients, units, weights):
    """((sums, statistics of the weights or None), evidence) by two matrix products and a softmax,
    with the units minor."""
    mixing, (slopes, of_weights) = mixture.mixing, coefficients
    columns, labels, base, covariates = units
    if covariates is not None and not linear.room:
        covariates = covariates.T
    features = linear.features(columns if linear.room else linear.columns(columns))
    joint = jnp.matmul(slopes, features, precision=Precision.HIGHEST)
    if base is not None:
        joint = _less_base(joint, base, mixture.k)
    if of_weights is not None:
        joint = joint + mixing.levels_of_columns(of_weights, covariates)
    exponentials, total, evidence = softmax_parts(with_labels(joint, labels, 0), linear.lowest)
    weighted = exponentials * (weights / total)
    sums = lax.dot_general(features, weighted, SUM_OVER_UNITS, precision=Precision.HIGHEST)
    count = None if of_weights is None else mixing.count(of_weights, covariates, weighted)
    return (sums, count), evidence if base is None else evidence + base


class GroupedUnits(NamedTuple):
    """The rows of every stack with time first, (c, t·m), and base (t·m,) or None; covariates
    (m, n) or None; and the data."""

    columns: Any
    base: Any
    covariates: Any
    data: Any


def _of_groups(mixture, x, linear, statistics):
    """The pass over groups, all at once: chunks of groups of several padded lengths would be padded
    to the longest."""
    mixing = mixture.mixing
    if linear is None:
        return None if x.rows.place is None else _at_once(mixture, x)

    def prepare(x):
        columns, base = [], []
        for stack in x.rows.stacks():
            rows = jnp.moveaxis(stack.rows, 1, 0)
            flat = x.layout.unpacked(rows.reshape(-1, rows.shape[-1]))
            columns.append(linear.columns(flat))
            base.append(linear.base(flat))
        return GroupedUnits(columns, base, mixing.columns(x), x)

    def coefficients(params):
        of_weights = mixing.gate_coefficients(params)
        of_weights = mixing.levels(params, None) if of_weights is None else of_weights
        level = jnp.zeros(mixture.k + 1, of_weights.dtype)
        slopes = linear.coefficients(params.components, level[:-1])
        return _with_noise(slopes, mixing, linear, level[-1:]), of_weights

    def sums(coefficients, units, weights):
        slopes, of_weights = coefficients
        rows, stacks = units.data.rows, units.data.rows.stacks()
        features = [linear.features(columns) for columns in units.columns]
        joint = []
        for part, base, stack in zip(features, units.base, stacks, strict=True):
            logs = jnp.matmul(slopes, part, precision=Precision.HIGHEST)
            logs = logs if base is None else _less_base(logs, base, mixture.k) + base
            logs = logs.reshape(len(logs), -1, len(stack.length))
            joint.append(jnp.where(stack.inside.T, logs, 0).sum(1).T)
        has_gate = units.covariates is not None
        level = (
            mixing.levels_of_columns(of_weights, units.covariates)
            if has_gate
            else of_weights[:, None]
        )
        joint = with_labels(rows.to_units(joint).T + level, units.data.labels, 0)
        exponentials, total, evidence = softmax_parts(joint, linear.lowest)
        weighted = exponentials * (weights / total)
        count = (
            mixing.count(of_weights, units.covariates, weighted) if has_gate else weighted.sum(1)
        )
        found = 0
        for part, r, stack in zip(features, rows.from_units(weighted.T), stacks, strict=True):
            r = jnp.where(stack.inside.T, r.T[:, None], 0).reshape(r.shape[1], -1)
            found += lax.dot_general(part, r, SUM_OVER_UNITS, precision=Precision.HIGHEST)
        return (found, count), evidence

    return FusedPass(
        prepare=prepare,
        coefficients=coefficients,
        sums=sums,
        statistics=partial(_statistics, mixture, linear, statistics),
        terms=lambda params: linear.terms(params.components),
        rows=len(x),
        room=linear.room,
    )


def _at_once(mixture, x):
    """The plain pass over all groups."""

    def sums(params, x, weights):
        q, evidence = mixture.posterior(params, x)
        return mixture.statistics(params, x, q, weights), evidence

    return FusedPass(
        prepare=lambda x: x,
        coefficients=lambda params: params,
        sums=sums,
        statistics=lambda params, sums: sums,
        terms=lambda params: None,
        rows=len(x),
        room=True,
    )


def with_labels(joint, labels, axis):
    """log p(x, z) with −∞ for components that a label excludes. axis: that of components in
    `joint`."""
    if labels is None:
        return joint
    labels = jnp.expand_dims(labels, axis)
    component = jnp.expand_dims(jnp.arange(joint.shape[axis]), 1 - axis)
    return jnp.where((labels >= 0) & (labels != component), -jnp.inf, joint)


def product_rows(numbers: int) -> int:
    """Rows of a chunk for matrix products, for `numbers` numbers a unit."""
    if tuning.platform() != "cpu":
        return max(tuning.LEAST_PRODUCT_ROWS, tuning.ACCELERATOR_NUMBERS // numbers)
    rows = max(tuning.LEAST_PRODUCT_ROWS, tuning.PRODUCT_NUMBERS // numbers)
    return min(tuning.MOST_PRODUCT_ROWS, rows)
