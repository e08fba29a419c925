"""The pass of a mixture over rows that are sorted into blocks of one kind (`passes.blocked`)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.data.data import labels_of, of_components
from jaxem.numerics import tuning
from jaxem.numerics.softmax import softmax_parts
from jaxem.passes.blocked import Blocked, Blocks, in_blocks
from jaxem.passes.linear import FusedPass, roomy


class BlockedUnits(NamedTuple):
    """columns (s, g, c, r) of s spans of g blocks of r rows; labels (s, g · r) and covariates
    (s, h, g · r) or None; kind (s, g); and the `Blocks`."""

    columns: Any
    labels: Any
    covariates: Any
    kind: Any
    blocks: Blocks


def blocked_pass(mixture, x, form: Blocked, statistics, with_labels) -> FusedPass:
    """The `FusedPass` of a mixture over a bank with this form for data shaped like x. statistics:
    the class of the mixture's statistics."""
    mixing, n = mixture.mixing, jax.tree.leaves(x)[0].shape[0]

    def prepare(x):
        plain, covariates, labels = of_components(x), mixing.columns(x), labels_of(x)
        blocks = in_blocks(form.kind(plain), form.kinds)
        span = _span(form, blocks.row.shape[1])
        spans = partial(_spans, span=span)

        columns = spans(jnp.swapaxes(form.columns(plain)[blocks.row], 1, 2))
        if labels is not None:
            labels = spans(labels[blocks.row]).reshape(columns.shape[0], -1)
        if covariates is not None:
            covariates = spans(covariates.T[blocks.row])
            covariates = covariates.reshape(columns.shape[0], -1, covariates.shape[-1])
            covariates = jnp.swapaxes(covariates, 1, 2)
        return BlockedUnits(columns, labels, covariates, spans(blocks.kind), blocks)

    def coefficients(params):
        of_weights = mixing.gate_coefficients(params)
        levels = mixing.levels(params, None) if of_weights is None else of_weights
        return form.coefficients(params.components), levels

    def sums(coefficients, units, weights):
        slopes, levels = coefficients
        blocks, k = units.blocks, slopes.shape[1]
        has_gate = units.covariates is not None
        block_weights = jnp.where(blocks.inside, weights[blocks.row], 0)
        block_weights = _spans(block_weights, units.kind.shape[1])

        def of_span(total, span):
            (columns, labels, covariates, kind), w = span
            features = jax.vmap(form.features)(columns)  # (g, size, r)
            joint = jnp.matmul(slopes[kind], features, precision=Precision.HIGHEST)
            joint = jnp.moveaxis(joint, 1, 0).reshape(k, -1)
            of_weights = levels[:, None]
            if has_gate:
                of_weights = mixing.levels_of_columns(levels, covariates)
            joint = with_labels(joint + of_weights, labels, 0)
            exponentials, mass, evidence = softmax_parts(joint)
            weighted = exponentials * (w.reshape(-1) / mass)
            count = mixing.count(levels, covariates, weighted) if has_gate else ()
            weighted = jnp.moveaxis(weighted.reshape(k, len(kind), -1), 0, 2)
            found = jnp.matmul(features, weighted, precision=Precision.HIGHEST)
            return total.at[kind].add(found), (evidence, count)

        zero = jnp.zeros((form.kinds, form.size, k), slopes.dtype)
        spans = (tuple(units[:4]), block_weights)
        total, (evidence, count) = jax.lax.scan(jax.checkpoint(of_span), zero, spans)
        evidence = evidence.reshape(-1)[blocks.place]
        return (total, jax.tree.map(lambda a: a.sum(0), count) if has_gate else None), evidence

    def statistics_of(params, sums):
        total, count = sums
        inner = form.statistics(params.components, total)
        return statistics(total[:, form.one].sum(0) if count is None else count, inner)

    return FusedPass(
        prepare=prepare,
        coefficients=coefficients,
        sums=sums,
        statistics=statistics_of,
        terms=lambda params: form.terms(params.components),
        rows=n,
        room=roomy(x),
    )


def _span(form: Blocked, rows: int) -> int:
    """Blocks of a span whose features stay in cache."""
    return max(1, tuning.PRODUCT_NUMBERS // (form.size * rows))


def _spans(values, span: int):
    """Values (b, ...) of blocks as (s, span, ...), with zeros for blocks that are added."""
    added = -values.shape[0] % span
    padded = jnp.pad(values, [(0, added)] + [(0, 0)] * (values.ndim - 1))
    return padded.reshape(-1, span, *values.shape[1:])
