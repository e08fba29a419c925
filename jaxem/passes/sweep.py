"""One pass over the data in chunks: every sum that EM needs, and nothing that grows with n.

Statistics are additive over units, so any model can be swept chunk by chunk; a model that knows a
faster way for many units says so in `Model.fused`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.tree import pytree

CHUNKED = 2**20
"""Units × features × components from which a pass is cut into chunks."""

CACHED = 2**17
"""Numbers of a (k, d, rows) block of centred rows: a chunk that stays in cache (4 lanes,
n = 20,000, d = k = 8: 1.0 ms a lane against 1.8 to 2.7)."""

FEWEST = 256
"""Rows of the smallest chunk."""

TRUSTED = 3e-4
"""The rounding, in nats, of the terms of a log density up to which a fused sweep is taken. Measured
on clusters of 100,000 × 4 in both precisions: the mean log-likelihood is off by 0.02 to 0.12 of it,
and six steps leave params that lose less than 1e-6 a row up to 1e-2."""

HEARD = 1 / 32
"""The part of those terms that counts as rounding: the objective is known to 16 times that, which
is four times what was seen."""

EVEN = 64
"""Chunks are of equal size but for this: the last one repeats few rows, and vectors fit."""

BLOCK = 1024

ROOM = 2**26
"""Bytes up to which data are copied; beyond they are standardised chunk by chunk in every pass."""

SPARE = 2
"""Features above the number of columns up to which they are kept in place of the columns."""

CHAINS = 2
"""Chunks at work at once on a CPU: XLA runs in two threads what does not depend on each other; of
one chunk, products and loops keep two cores busy for half of the time (a pass in float32 over
131,072 × 16, k = 16, full: 13.3 to 10.4 ms; 524,288 × 16, k = 32, diagonal: 37 to 28 ms; four at
once 11.4 and 32)."""

SEVERAL = 8
"""Up to so many chunks go one after another: two at once take longer to compile, by a quarter and
more. Not so just two: then there is no loop (10,000 × 16, k = 32, diagonal: 1.4 to 1.1 ms)."""


class Fused(NamedTuple):
    """A faster way over many units: see `Model.fused`.

    prepare(x) -> the units as the sweep takes them, along `axis` of every leaf, and whatever else
    is the same in every pass; sweep(params, units, weights) -> (sums, evidence (n,)) for at most
    `rows` units at a time; statistics(params, sums) as of `Model.sweep`, from the sums of all;
    terms(params) -> a scalar, the size of the terms of which log p(x) is the small difference, or
    None where they are never large; room: whether the units may be kept beside the data.
    """

    prepare: Callable
    sweep: Callable
    statistics: Callable
    terms: Callable
    rows: int
    axis: int
    room: bool


class Linear(NamedTuple):
    """A bank whose log density is linear in features that no parameter enters: see `Bank.linear`.

    log p(x | k) = base(x) + coefficients[k] · features(x), where feature `one` is 1.

    columns(x) -> (c, n), the data with units minor, which is kept if there is `room`;
    features(columns) -> (size, n); coefficients(params, level) -> (k, size), with level (k,) in the
    place of feature `one`; base(x) -> (n,), or None where it is 0; statistics(params, sums
    (size, k)) -> the bank's statistics from Σw·features; terms(params) as in `Fused`; `lowest`: a
    log density from which a unit is impossible.
    """

    size: int
    one: int
    room: bool
    columns: Callable
    features: Callable
    coefficients: Callable
    base: Callable
    statistics: Callable
    terms: Callable
    lowest: float = -math.inf

    def hoisted(self, x):
        """The same with its features kept in the place of the columns, where these are hardly fewer
        (1e5 × 8, k = 8, spherical, float64: 4.1 to 3.0 ms)."""
        if not self.room or self.size > jax.eval_shape(self.columns, x).shape[0] + SPARE:
            return self
        return self._replace(
            columns=lambda x: self.features(self.columns(x)), features=lambda columns: columns
        )


@pytree(eq=False)
class Prepared:
    """Data, and the units of a fused sweep: what many passes over the same data have in common."""

    x: Any
    units: Any


def prepared(model, x, method=None, kept=False):
    """A `Prepared` where the data are many and the model has a fused sweep, else the data; only
    where there is room for it if it is to be `kept` in memory.

    A method of another kind than exact EM (`plain`) takes the data as they are.
    """
    other = not (method is None or getattr(method, "plain", False))
    if other or isinstance(x, Prepared) or _numbers(model, x) < CHUNKED:
        return x
    fused = model.fused(x)
    return x if fused is None or (kept and not fused.room) else Prepared(x, fused.prepare(x))


def roomy(x) -> bool:
    """Whether there is room for a copy of x."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x)) <= ROOM


def is_large(model, x) -> bool:
    """Whether a pass over the data is cut into chunks."""
    return _numbers(model, x.x if isinstance(x, Prepared) else x) >= CHUNKED


def _numbers(model, x) -> int:
    """Units × features × components."""
    return getattr(model, "k", 1) * sum(leaf.size for leaf in jax.tree.leaves(x))


class Sums(NamedTuple):
    """statistics; evidence Σ w·ℓ; magnitude Σ w·(|ℓ| + 1), the scale of its rounding."""

    statistics: Any
    evidence: Any
    magnitude: Any


def sweep(model, params, x, weights) -> Sums:
    """Statistics and evidence of the data at `params`: in one piece where the data are few."""
    ready = prepared(model, x)
    x = ready.x if isinstance(ready, Prepared) else x
    numbers, n = _numbers(model, x), weights.shape[0]
    if numbers < CHUNKED:
        return _sums(model.sweep, params, x, weights)

    def plain(params):
        return in_chunks(model.sweep, max(FEWEST, CACHED * n // numbers), params, x, weights)

    if not isinstance(ready, Prepared):
        return plain(params)

    fused = model.fused(x)
    terms = fused.terms(jax.lax.stop_gradient(params))

    def quick(params):
        sums = in_chunks(fused.sweep, fused.rows, params, ready.units, weights, fused.axis)
        heard = 0 if terms is None else HEARD * weights.sum() * terms
        return Sums(
            fused.statistics(params, sums.statistics), sums.evidence, sums.magnitude + heard
        )

    if terms is None:
        return quick(params)

    def sound(terms):
        return _trusted(terms * jnp.finfo(weights.dtype).eps)

    def nothing(params):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(quick, params))

    # Broad components whose next params are tiny: their moments have cancelled too.
    now = sound(terms)
    sums = jax.lax.cond(now, quick, nothing, params)
    following = model.maximize(params, sums.statistics)
    fine = now & sound(fused.terms(jax.lax.stop_gradient(following)))
    return jax.lax.cond(fine, lambda params: sums, plain, params)


@jax.custom_batching.custom_vmap
def _trusted(rounding):
    """Whether a rounding is small; under `vmap`, all of them: a `cond` of many runs both ways.

    The answers of a lane then depend on the others in rounding alone, and on those that have failed
    not at all.
    """
    return rounding <= TRUSTED


@_trusted.def_vmap
def _(size, batched, rounding):
    return jnp.all((rounding <= TRUSTED) | ~jnp.isfinite(rounding)), False


def in_chunks(function, rows: int, params, x, weights, axis=0) -> Sums:
    """The `Sums` of `function(params, x, weights) -> (statistics, evidence (n,))`, chunk by chunk
    along an axis of every leaf of x.

    The last chunks reach back over rows of those before, with weight 0. Chunks are added with the
    rounding of each addition kept, so that the sums of many chunks are as good as those of one.
    """
    n = weights.shape[0]
    if n <= rows:
        return _sums(function, params, x, weights)
    few = CHAINS * rows < n <= SEVERAL * rows
    chains = CHAINS if jax.default_backend() == "cpu" and not few else 1
    count = -(-n // (rows * chains))
    rows = min(n, -(-n // (count * chains * EVEN)) * EVEN)

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


def _sums(function, params, x, weights) -> Sums:
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
    if n > BLOCK:
        count = 1 << (-(-n // BLOCK) - 1).bit_length()  # it divides the rows of a chunk: no copy
        blocks = [jnp.pad(a, (0, -n % count)).reshape(count, -1) for a in (weights, values)]
        weights, values = blocks
    sums = jnp.einsum("...n,...n->...", weights, values, precision=Precision.HIGHEST)
    return sums.sum()
