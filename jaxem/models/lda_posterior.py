"""The mean-field posterior of documents: q(θ_d) = Dirichlet(γ_d), each document to its own end.

Given γ the best q(z) is φ_lk ∝ exp(ψ(γ_k)) · table[word l, k], and given φ the best γ is
α_k + Σ_l counts_l φ_lk. Documents are taken in blocks of similar length that fit a cache. A block
ends when few of its documents still move, and those of all blocks are packed into new ones.

Axes: `n` documents, `l` their cells, `k` topics, `w` documents of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.lax import Precision, lgamma

from jaxem.pytree import select
from jaxem.special import digamma_parts, exp_digamma

SHORTEST, GRID, CLASSES = 16, 1.5, 6
"""Lengths to which blocks are padded: the longest document's, and at most so many below it."""

BLOCK = 2**16
"""Numbers of a (w, k, l) block on a CPU (20 topics, 4,000 documents of 112 words, an E-step from
nothing: 94 ms; blocks of 2**17 98 ms, of 2**18 128 ms: more documents wait for the last)."""

FEWEST, MOST = 16, 512
"""Documents of a block there."""

LEFT = 4
"""A block is left when fewer than one document in so many still moves."""

SPARSE = 64
"""Words of the vocabulary a cell of a document, above which statistics are added cell by cell."""


class Table(NamedTuple):
    """table (v, k): exp E[log p(word | topic)]; alpha (k,); words (n, L), counts (n, L)."""

    table: jax.Array
    alpha: jax.Array
    words: jax.Array
    counts: jax.Array


class Words(NamedTuple):
    """What the words of the documents add up to.

    topics (k, v): Σ w·counts·φ; evidence (n,): F of each document at γ and the best φ.
    """

    topics: jax.Array
    evidence: jax.Array


@sequential_vmap
def settle(data: Table, gamma, tol, most):
    """γ (n, k) after at least one step each, at most `most`, until its mean change is at most tol
    (n,). Documents do not wait for one another, and none depends on its neighbours."""
    return _settle(data, gamma, tol, most)


@sequential_vmap
def resettle(data: Table, gamma, cold, anew, tol, most):
    """`settle` from γ (n, k) or, where `anew`, from `cold` unless F then is lower than at γ."""
    found = _settle(data, jnp.where(anew, cold, gamma), tol, most)

    def better(found):
        new, old = values(data, (found, gamma))
        return jnp.where((new >= old)[:, None], found, gamma)

    return jax.lax.cond(anew, better, lambda found: found, found)


def _settle(data: Table, gamma, tol, most):
    n = gamma.shape[0]
    lengths, rows = layout(data)
    state = (gamma, jnp.zeros(n, jnp.int32), jnp.ones(n, bool))
    if rows == [n]:
        return moved(data, (data.words, data.counts), tol, most, 0, state)[0]

    def visited(state, idx, inside, length, alone):
        left = jnp.where(alone, 0, idx.shape[0] // LEFT)
        gamma, steps, live = (leaf[idx] for leaf in state)
        here = (gamma, steps, live & inside)
        found = moved(data, cells(data, idx, length), tol[idx], most, left, here)
        at = jnp.where(inside, idx, n)
        return tuple(a.at[at].set(b, mode="drop") for a, b in zip(state, found, strict=True))

    def packed(state):
        order, which = in_classes(data.counts, lengths, state[2])
        return by_class(which, state, visit(visited, order, lengths, rows, state))

    return jax.lax.while_loop(lambda state: jnp.any(state[2]), packed, state)[0]


def moved(data: Table, cells, tol, most, left, state):
    """(γ (w, k), steps taken (w,), who still moves (w,)) of a block once at most `left` do."""
    words, counts = cells
    block = entries(data.table, words)

    def step(state):
        gamma, steps, live = state
        new = improved(block, counts, data.alpha, gamma)
        steps = steps + live
        again = live & (jnp.abs(new - gamma).mean(-1) > tol) & (steps < most)
        return jnp.where(live[:, None], new, gamma), steps, again

    return jax.lax.while_loop(lambda state: state[2].sum() > left, step, state)


@sequential_vmap
def collect(data: Table, gamma, weights) -> Words:
    """The `Words` of documents at γ (n, k), with weights (n,)."""
    exponent = exp_digamma(gamma)

    def of_block(cells, idx, inside):
        words, counts = cells
        e = exponent[idx]
        norm = shares(entries(data.table, words), e)
        ratio = counts / jnp.where(norm > 0, norm, 1)
        mine = e * jnp.where(inside, weights[idx], 0)[:, None]
        return added(mine, words, ratio, data.table.shape[0]), (logs_of(norm, counts),)

    zero = jnp.zeros(data.table.shape[::-1], gamma.dtype)
    total, (logs,) = over_blocks(of_block, data, zero, 1)
    return Words(total * data.table.T, logs + of_theta(data, gamma))


def values(data: Table, gammas):
    """F (n,) of the documents at each of several γ (n, k)."""
    exponents = [exp_digamma(gamma) for gamma in gammas]

    def of_block(cells, idx, inside):
        words, counts = cells
        block = entries(data.table, words)
        return (), tuple(logs_of(shares(block, e[idx]), counts) for e in exponents)

    _, logs = over_blocks(of_block, data, (), len(gammas))
    return [a + of_theta(data, gamma) for a, gamma in zip(logs, gammas, strict=True)]


def over_blocks(of_block, data: Table, zero, parts: int):
    """Sums from `zero` of, and rows (n,) from, `of_block(cells, idx, inside) -> (sums, rows)`."""
    n = data.counts.shape[0]
    lengths, rows = layout(data)
    if rows == [n]:
        return of_block((data.words, data.counts), jnp.arange(n), jnp.ones(n, bool))

    def add(carry, idx, inside, length, alone):
        sums, found = of_block(cells(data, idx, length), idx, inside)
        at = jnp.where(inside, idx, n)
        each = zip(carry[1], found, strict=True)
        new = tuple(a.at[at].set(b, mode="drop") for a, b in each)
        return jax.tree.map(jnp.add, carry[0], sums), new

    empty = (jnp.zeros(n, data.table.dtype),) * parts
    order, which = in_classes(data.counts, lengths, jnp.ones(n, bool))
    sums, found = zip(*visit(add, order, lengths, rows, (zero, empty)), strict=True)
    return jax.tree.map(lambda *parts: sum(parts), *sums), by_class(which, empty, found)


def logs_of(norm, counts):
    """Σ_l counts_l log norm_l: (w,)."""
    some = counts > 0
    return jnp.where(some, counts * jnp.log(jnp.where(some, norm, 1)), 0).sum(-1)


def of_theta(data: Table, gamma):
    """What F holds beside `logs_of`: −KL(q(θ) ‖ Dirichlet(alpha)), and the scale of exp ψ(γ)."""
    kl = of_dirichlets(data.alpha, gamma, mean_log(gamma))
    return kl - data.counts.sum(-1) * digamma(gamma.sum(-1))


def of_dirichlets(alpha, gamma, logs):
    """−KL(Dirichlet(γ) ‖ Dirichlet(alpha)) over the last axis; logs: E[log θ] under the first."""
    inside = ((alpha - gamma) * logs).sum(-1)
    return log_normalizer(alpha) - log_normalizer(gamma) + inside


def log_normalizer(alpha):
    """log Γ(Σα) − Σ log Γ(α), over the last axis."""
    return lgamma(alpha.sum(-1)) - lgamma(alpha).sum(-1)


def entries(table, words):
    """The table's rows of a block of words (w, l), as (w, k, l): products of these are quick."""
    return jnp.swapaxes(jnp.take(table, words, axis=0, mode="clip"), 1, 2)


def shares(block, e):
    """Σ_k e_wk block_wkl: (w, l)."""
    return jnp.einsum("wk,wkl->wl", e, block, precision=Precision.HIGHEST)


def improved(block, counts, alpha, gamma):
    """γ after one step: α + Σ_l counts φ, from block (w, k, l), counts (w, l) and γ (w, k)."""
    e = exp_digamma(gamma)
    norm = shares(block, e)
    ratio = counts / jnp.where(norm > 0, norm, 1)
    return alpha + e * jnp.einsum("wl,wkl->wk", ratio, block, precision=Precision.HIGHEST)


def added(e, words, ratio, v: int):
    """Σ_w e_wk Σ_l ratio_wl [words_wl = word]: (k, v)."""
    w, length = words.shape
    if v > SPARSE * length:
        cells = (e[:, None, :] * ratio[:, :, None]).reshape(-1, e.shape[1])
        return jnp.zeros((v, e.shape[1]), e.dtype).at[words.reshape(-1)].add(cells).T
    dense = jnp.zeros((w, v), e.dtype).at[jnp.arange(w)[:, None], words].add(ratio)
    return jnp.matmul(e.T, dense, precision=Precision.HIGHEST)


def layout(data: Table):
    """The lengths of the classes of documents, rising, and the rows of a block of each."""
    n, longest = data.words.shape
    lengths = [longest]
    while len(lengths) < CLASSES and lengths[-1] / GRID >= SHORTEST:
        lengths.append(int(lengths[-1] / GRID))
    lengths = lengths[::-1]
    k = data.alpha.shape[0]
    if jax.default_backend() == "cpu":
        rows = [min(max(FEWEST, BLOCK // (k * length)), MOST) for length in lengths]
    else:
        rows = [2**13] * len(lengths)
    if n <= min(rows):
        return [longest], [n]
    return lengths, [min(n, r) for r in rows]


def in_classes(counts, lengths, live):
    """(order, start (c,), end (c,)): the documents that are live, class by class of length; and the
    class of each (n,)."""
    cells = jnp.arange(1, counts.shape[1] + 1)
    longest = jnp.max(jnp.where(counts > 0, cells, 0), axis=1)
    which = jnp.sum(longest[:, None] > jnp.asarray(lengths[:-1], int)[None], axis=1)
    which = jnp.where(live, which, len(lengths))
    count = jnp.sum(which[:, None] == jnp.arange(len(lengths)), axis=0)
    end = jnp.cumsum(count)
    return (jnp.argsort(which), end - count, end), which


def by_class(which, before, after):
    """Rows (n, ...) of the trees `after`, one for each class, where it is theirs, else `before`."""
    for c, tree in enumerate(after):
        before = select(which == c, tree, before)
    return before


def visit(function, order, lengths, rows, carry):
    """`carry = function(carry, idx (w,), inside (w,), length, alone)` over the blocks of a class.

    Every class begins with the same carry: none waits for another, and a CPU takes two at once.
    """
    order, starts, ends = order
    carries = []
    for c, (length, w) in enumerate(zip(lengths, rows, strict=True)):
        start, end = starts[c], ends[c]

        def one(i, carry, start=start, end=end, length=length, w=w):
            slot = start + i * w + jnp.arange(w)
            idx = order[jnp.minimum(slot, order.shape[0] - 1)]
            return function(carry, idx, slot < end, length, end - start <= w)

        carries.append(jax.lax.fori_loop(0, (end - start + w - 1) // w, one, carry))
    return carries


def cells(data: Table, idx, length: int):
    """Words and counts (w, length) of some documents."""

    def some(leaf):
        return jax.vmap(lambda i: jax.lax.dynamic_slice(leaf, (i, 0), (1, length))[0])(idx)

    return some(data.words), some(data.counts)


def mean_log(gamma):
    """E[log θ] (n, k) under Dirichlet(γ)."""
    return digamma(gamma) - digamma(gamma.sum(-1, keepdims=True))


def digamma(x):
    """ψ(x) for x > 0."""
    y, t = digamma_parts(x)
    return jnp.log(y) + t
