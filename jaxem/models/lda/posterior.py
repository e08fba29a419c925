"""The mean-field posterior of documents: q(θ_d) = Dirichlet(γ_d), each document to its own end.

Given γ the best q(z) is φ_lk ∝ exp(ψ(γ_k)) · table[word l, k], and given φ the best γ is
α_k + Σ_l counts_l φ_lk. Documents are taken in blocks of similar length that fit a cache. A block
ends when few of its documents still move, and those of all blocks are packed into new ones.

Axes: `n` documents, `l` their cells, `k` topics, `w` documents of a block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.lax import Precision, lgamma

from jaxem.numerics.special import digamma, exp_digamma
from jaxem.numerics.tree import select

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
"""Words of the vocabulary a cell of a document, above which statistics are added cell by cell; on a
CPU they always are."""


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


class LDAPosterior(NamedTuple):
    """gamma (n, k): q(θ_d) = Dirichlet(gamma_d). shares (n, L, k): q(z) of the cells, or
    None for the best one given gamma, ∝ exp(ψ(gamma_k)) · exp(E[log topics_k,word])."""

    gamma: Any
    shares: Any = None

    @property
    def responsibilities(self):
        """E[θ] (n, k): what part of each document every topic has."""
        return self.gamma / self.gamma.sum(-1, keepdims=True)


@sequential_vmap
def settle(data: Table, gamma, tol, most):
    """γ (n, k) after at least one step each, at most `most`, until its mean change is at most tol
    (n,). Documents do not wait for one another, and none depends on its neighbours."""
    n = gamma.shape[0]
    lengths, rows = layout(data.words.shape, gamma.shape[1])
    state = (gamma, jnp.zeros(n, jnp.int32), jnp.ones(n, bool))
    if rows == [n]:
        block = entries(data.table, data.words)
        return moved(block, data.counts, data.alpha, tol, most, 0, state)[0]

    def visited(state, idx, inside, length, alone):
        words, counts = cells(data, idx, length)
        left = jnp.where(alone, 0, idx.shape[0] // LEFT)
        gamma, steps, live = (leaf[idx] for leaf in state)
        here = (gamma, steps, live & inside)
        block = entries(data.table, words)
        found = moved(block, counts, data.alpha, tol[idx], most, left, here)
        at = jnp.where(inside, idx, n)
        return tuple(a.at[at].set(b, mode="drop") for a, b in zip(state, found, strict=True))

    def packed(state):
        order, which = in_classes(data.counts, lengths, state[2])
        return by_class(which, state, visit(visited, order, lengths, rows, state))

    return jax.lax.while_loop(lambda state: jnp.any(state[2]), packed, state)[0]


def moved(block, counts, alpha, tol, most, left, state):
    """(γ (w, k), steps taken (w,), who still moves (w,)) of a block once at most `left` do."""

    def step(state):
        gamma, steps, live = state
        new = improved(block, counts, alpha, gamma)
        steps = steps + live
        again = live & (jnp.abs(new - gamma).mean(-1) > tol) & (steps < most)
        return jnp.where(live[:, None], new, gamma), steps, again

    return jax.lax.while_loop(lambda state: state[2].sum() > left, step, state)


@sequential_vmap
def collect(data: Table, gamma, weights) -> Words:
    """The `Words` of documents at γ (n, k), with weights (n,)."""

    units = arranged(data.words, data.counts, gamma.shape[1])
    gamma = gamma[units.order]

    def found(block, counts, idx, inside, left):
        return look(block, counts, data.alpha, gamma[idx])

    return over_blocks(found, data, units, weights)[1]


@sequential_vmap
def swept(data: Table, units, gamma, cold, anew, tol, most, weights):
    """(γ (n, k), `Words` there) after 1 to `most` steps from γ or, where `anew`, from `cold` unless
    F then is lower than at γ. The words, `arranged`, are looked at once: a block ends when few of
    its documents move more than tol (n,), and no document comes back.
    """
    alpha = data.alpha
    gamma, cold, tol = (leaf[units.order] for leaf in (gamma, cold, tol))

    def found(block, counts, idx, inside, left):
        old = gamma[idx]
        state = jnp.where(anew, cold[idx], old), jnp.zeros(idx.shape, jnp.int32), inside
        new = moved(block, counts, alpha, tol[idx], most, left, state)[0]

        def better():  # only this leaves the branch: F, if inlined, is computed anew for every cell
            before, after = (look(block, counts, alpha, g).evidence for g in (old, new))
            return after >= before

        keep = jax.lax.cond(anew, better, lambda: inside)
        return look(block, counts, alpha, jnp.where(keep[:, None], new, old))

    return over_blocks(found, data, units, weights)


class Look(NamedTuple):
    """γ of some documents, Σ_k exp ψ(γ_k) · table[word, k] of their cells, and F at the best φ."""

    gamma: jax.Array
    norm: jax.Array
    evidence: jax.Array


def look(block, counts, alpha, gamma):
    norm = shares(block, exp_digamma(gamma))
    some = counts > 0
    logs = jnp.where(some, counts * jnp.log(jnp.where(some, norm, 1)), 0).sum(-1)
    kl = of_dirichlets(alpha, gamma, mean_log(gamma))
    return Look(gamma, norm, logs + kl - counts.sum(-1) * digamma(gamma.sum(-1)))


class Arranged(NamedTuple):
    """Documents class by class of length: order (n,), where each class ends (c,), and words and
    counts (n, L) in that order, with rows below them so that every block is a slice."""

    order: jax.Array
    end: jax.Array
    words: jax.Array
    counts: jax.Array


def arranged(words, counts, k: int) -> Arranged:
    """What every sweep over documents with k topics has in common."""
    n = words.shape[0]
    lengths, rows = layout(words.shape, k)
    if rows == [n]:
        return Arranged(jnp.arange(n), jnp.full(1, n), words, counts)
    (order, _, end), _ = in_classes(counts, lengths, jnp.ones(n, bool))
    below = ((0, max(rows)), (0, 0))
    words, counts = (jnp.pad(jnp.asarray(leaf)[order], below) for leaf in (words, counts))
    return Arranged(order, end, words, counts)


def over_blocks(found, data: Table, units: Arranged, weights):
    """(γ (n, k), `Words`) of the `Look`s that `found(block, counts, idx, inside, left)` has, where
    idx are places in the order of the units."""
    order, end = units.order, units.end
    n, k = order.shape[0], data.alpha.shape[0]
    lengths, rows = layout((n, units.words.shape[1]), k)
    weights = weights[order]

    def visited(carry, idx, inside, length, alone):
        total, gamma, evidence = carry
        shape = idx.shape[0], length
        words, counts = (
            jax.lax.dynamic_slice(leaf, (idx[0], 0), shape) for leaf in (units.words, units.counts)
        )
        left = 0 if rows == [n] else inside.sum() // LEFT  # of those here: the last are few
        seen = found(entries(data.table, words), counts, idx, inside, left)
        ratio = counts / jnp.where(seen.norm > 0, seen.norm, 1)
        e = exp_digamma(seen.gamma) * jnp.where(inside, weights[idx], 0)[:, None]
        at = jnp.where(inside, idx, n)
        gamma = gamma.at[at].set(seen.gamma, mode="drop")
        evidence = evidence.at[at].set(seen.evidence, mode="drop")
        return added(total, e, words, ratio), gamma, evidence

    dtype = data.table.dtype
    empty = jnp.zeros(data.table.shape, dtype), jnp.zeros((n, k), dtype), jnp.zeros(n, dtype)
    place = jnp.arange(n)
    if rows == [n]:
        total, gamma, evidence = visited(empty, place, place >= 0, lengths[0], True)
    else:
        start = jnp.concatenate([jnp.zeros(1, end.dtype), end[:-1]])
        parts = visit(visited, (place, start, end), lengths, rows, empty)
        total = sum(part[0] for part in parts)
        which = jnp.sum(place[:, None] >= end[:-1], axis=1)
        gamma, evidence = by_class(which, empty[1:], [part[1:] for part in parts])
        gamma, evidence = (leaf.at[order].set(leaf) for leaf in (gamma, evidence))
    return gamma, Words((total * data.table).T, evidence)


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


def added(total, e, words, ratio):
    """total (v, k) + Σ_w e_wk Σ_l ratio_wl [words_wl = word]."""
    (w, length), v = words.shape, total.shape[0]
    if jax.default_backend() == "cpu" or v > SPARSE * length:
        cells = (e[:, None, :] * ratio[:, :, None]).reshape(-1, e.shape[1])
        return total.at[words.reshape(-1)].add(cells)
    dense = jnp.zeros((w, v), e.dtype).at[jnp.arange(w)[:, None], words].add(ratio)
    return total + jnp.matmul(dense.T, e, precision=Precision.HIGHEST)


def layout(shape, k: int):
    """The lengths of the classes of documents (n, L), rising, and the rows of a block of each."""
    n, longest = shape
    lengths = [longest]
    while len(lengths) < CLASSES and lengths[-1] / GRID >= SHORTEST:
        lengths.append(int(lengths[-1] / GRID))
    lengths = lengths[::-1]
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
