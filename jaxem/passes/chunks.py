"""Sums over units, chunk by chunk, with compensated summation."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics import tuning
from jaxem.numerics.rows import are_sharded, summed
from jaxem.numerics.sums import rounding
from jaxem.numerics.tree import over_units
from jaxem.passes.invariant import hoisted


class Sums(NamedTuple):
    """statistics, a tree; evidence Σ w·ℓ, a scalar in nats, of ℓ = log p(x) or F of every unit;
    magnitude Σ w·(|ℓ| + 1), to which the rounding error of the evidence is proportional."""

    statistics: Any
    evidence: Any
    magnitude: Any


def in_chunks(function, rows: int, params, x, weights, axis=0) -> Sums:
    """The `Sums` of `function(params, x, weights) -> (statistics, evidence (n,))`, chunk by chunk
    along an axis of every leaf of x.

    All chunks have the same number of rows: the last ones repeat rows of earlier ones, with weight
    0. The rounding error of each addition of a chunk is summed and added at the end, so that the
    sums of many chunks are as accurate as those of one.
    """
    if are_sharded():
        of_device = partial(in_chunks, function, rows, axis=axis)
        return summed(of_device, params, x, weights, axis)
    n = weights.shape[0]
    if n <= rows:
        return sums_of(function, params, x, weights)
    are_few = tuning.PARALLEL_CHUNKS * rows < n <= tuning.SEVERAL_CHUNKS * rows
    chains = tuning.PARALLEL_CHUNKS if tuning.platform() == "cpu" and not are_few else 1
    count = -(-n // (rows * chains))
    multiple = tuning.chunk_multiple(rows)
    rows = min(n, -(-n // (count * chains * multiple)) * multiple)

    def rows_from(begin, x, weights):
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=rows, axis=axis)
        return over_units(cut, (x, weights))

    params, of_chunk = hoisted(
        partial(_parts, function), params, *jax.eval_shape(rows_from, 0, x, weights)
    )

    @jax.checkpoint  # reverse differentiation stores nothing of a chunk
    def chunk(i, params, x, weights):
        begin = jnp.minimum(i * rows, n - rows)
        rows_of_x, chunk_weights = rows_from(begin, x, weights)
        is_first_visit = begin + jnp.arange(rows) >= i * rows
        return of_chunk(params, rows_of_x, jnp.where(is_first_visit, chunk_weights, 0))

    def add(total, errors, part):
        updated = jax.tree.map(jnp.add, total, part)
        errors = jax.tree.map(
            lambda errors, *sum: errors + rounding(*sum), errors, total, part, updated
        )
        return updated, errors

    def next_chunks(carry, i):
        # The sums of a chunk are added one iteration later. They then have memory of their own, and
        # the chunks that are computed at once do not wait for each other (524,288 × 16, k = 32,
        # diagonal: 41 to 35 ms).
        return [
            (*add(*sums), chunk(i + j * count, params, x, weights)) for j, sums in enumerate(carry)
        ], None

    shapes = jax.eval_shape(chunk, 0, params, x, weights)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    carries, _ = jax.lax.scan(next_chunks, [(zero, zero, zero)] * chains, jnp.arange(count))
    carries = [add(*sums) for sums in carries]
    total = jax.tree.map(lambda *leaves: sum(leaves), *jax.tree.leaves(carries, is_leaf=_is_sums))
    return total._replace(magnitude=total.magnitude + weights.sum())


def _is_sums(tree):
    return isinstance(tree, Sums)


def sums_of(function, params, x, weights) -> Sums:
    """The `Sums` of `function` as in `in_chunks`, over all units at once."""
    if are_sharded():
        return summed(partial(sums_of, function), params, x, weights)
    sums = _parts(function, params, x, weights)
    return sums._replace(magnitude=sums.magnitude + weights.sum())


def _parts(function, params, x, weights) -> Sums:
    """`Sums` whose magnitude is Σ w·|ℓ|."""
    statistics, evidence = function(params, x, weights)
    evidence = jnp.where(weights > 0, evidence, 0)
    return Sums(statistics, row_sum(weights, evidence), row_sum(weights, jnp.abs(evidence)))


def total_of(weights, total, each):
    """Σ w·each of a scalar or of (n,), with Σ w = `total`. Its gradient includes that by weights of
    0."""
    if jnp.ndim(each) == 0:
        return total * each
    return row_sum(weights, jnp.where((weights > 0) | jnp.isfinite(each), each, 0))


def row_sum(weights, values):
    """Σ_i weights_i · values_i, in blocks, so that rounding errors grow like √n/1024 + 1024, not n.

    It is computed as a matrix product: sums along the minor axis are not vectorised on a CPU.
    """
    if are_sharded():
        return summed(lambda _, values, weights: row_sum(weights, values), (), values, weights)
    n = values.shape[0]
    if n > tuning.SUM_BLOCK:
        least = -(-n // tuning.SUM_BLOCK)
        count = 1 << (least - 1).bit_length()  # a power of 2 divides the rows of a chunk: no copy
        blocks = [jnp.pad(a, (0, -n % count)).reshape(count, -1) for a in (weights, values)]
        weights, values = blocks
    sums = jnp.einsum("...n,...n->...", weights, values, precision=Precision.HIGHEST)
    return sums.sum()
