"""Sums over units, chunk by chunk, with the rounding of every addition kept."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics import tuning


class Sums(NamedTuple):
    """statistics; evidence Σ w·ℓ; magnitude Σ w·(|ℓ| + 1), the scale of its rounding."""

    statistics: Any
    evidence: Any
    magnitude: Any


def in_chunks(function, rows: int, params, x, weights, axis=0) -> Sums:
    """The `Sums` of `function(params, x, weights) -> (statistics, evidence (n,))`, chunk by chunk
    along an axis of every leaf of x.

    The last chunks reach back over rows of those before, with weight 0. Chunks are added with the
    rounding of each addition kept, so that the sums of many chunks are as good as those of one.
    """
    n = weights.shape[0]
    if n <= rows:
        return sums_of(function, params, x, weights)
    few = tuning.CHAINS * rows < n <= tuning.SEVERAL_CHUNKS * rows
    chains = tuning.CHAINS if tuning.platform() == "cpu" and not few else 1
    count = -(-n // (rows * chains))
    rows = min(n, -(-n // (count * chains * tuning.CHUNK_MULTIPLE)) * tuning.CHUNK_MULTIPLE)

    @jax.checkpoint  # a reverse pass keeps nothing of a chunk
    def chunk(i, params, x, weights):
        begin = jnp.minimum(i * rows, n - rows)
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=rows, axis=axis)
        here, w = jax.tree.map(cut, (x, weights))
        fresh = begin + jnp.arange(rows) >= i * rows
        return _parts(function, params, here, jnp.where(fresh, w, 0))

    def add(total, lost, part):
        new = jax.tree.map(jnp.add, total, part)
        lost = jax.tree.map(lambda lost, *sum: lost + _rounding(*sum), lost, total, part, new)
        return new, lost

    def on(carry, i):
        # A chunk is added a turn later: its sums then get memory that the other chunk at work does
        # not use, and neither waits for the other (524,288 × 16, k = 32, diagonal: 41 to 35 ms).
        return [
            (*add(*sums), chunk(i + j * count, params, x, weights)) for j, sums in enumerate(carry)
        ], None

    like = jax.eval_shape(chunk, 0, params, x, weights)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    every, _ = jax.lax.scan(on, [(zero, zero, zero)] * chains, jnp.arange(count))
    every = [add(*sums) for sums in every]
    total = jax.tree.map(lambda *leaves: sum(leaves), *jax.tree.leaves(every, is_leaf=_is_sums))
    return total._replace(magnitude=total.magnitude + weights.sum())


def _is_sums(tree):
    return isinstance(tree, Sums)


def _rounding(a, b, total):
    """a + b − total, exactly. Source: Knuth, The Art of Computer Programming 2, section 4.2.2."""
    rest = total - a
    return (a - (total - rest)) + (b - rest)


def sums_of(function, params, x, weights) -> Sums:
    sums = _parts(function, params, x, weights)
    return sums._replace(magnitude=sums.magnitude + weights.sum())


def _parts(function, params, x, weights) -> Sums:
    """`Sums` whose magnitude is Σ w·|ℓ|."""
    statistics, evidence = function(params, x, weights)
    evidence = jnp.where(weights > 0, evidence, 0)
    return Sums(statistics, row_sum(weights, evidence), row_sum(weights, jnp.abs(evidence)))


def total_of(weights, total, each):
    """Σ w·each, with Σ w = `total`, of a scalar or of (n,); a weight of 0 has its gradient."""
    if jnp.ndim(each) == 0:
        return total * each
    return row_sum(weights, jnp.where((weights > 0) | jnp.isfinite(each), each, 0))


def row_sum(weights, values):
    """Σ_i weights_i · values_i, in blocks, so that rounding grows like √n/1024 + 1024, not like n.

    A product of matrices: sums along a minor axis do not vectorise on a CPU.
    """
    n = values.shape[0]
    if n > tuning.SUM_BLOCK:
        least = -(-n // tuning.SUM_BLOCK)
        count = 1 << (least - 1).bit_length()  # it divides the rows of a chunk: no copy
        blocks = [jnp.pad(a, (0, -n % count)).reshape(count, -1) for a in (weights, values)]
        weights, values = blocks
    sums = jnp.einsum("...n,...n->...", weights, values, precision=Precision.HIGHEST)
    return sums.sum()
