"""The mean-field posterior of documents, q(θ_d) = Dirichlet(γ_d), by coordinate ascent.

Given γ the best q(z) is φ_lk ∝ exp(ψ(γ_k)) · table[word l, k], and given φ the best γ is
α_k + Σ_l counts_l φ_lk. A step computes both. Documents are taken in blocks of similar length that
fit a cache. The loop over a block stops when few of its documents have not converged; those of all
blocks are then packed into new blocks.

A cell of a document is one of its distinct words with its count.

Axes: `n` documents, `l` cells, `k` topics, `v` words of the vocabulary, `w` documents of a block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxem.models.lda.blocks import Block, Table, add_cells, block_values, stepped_gamma
from jaxem.numerics import tuning
from jaxem.numerics.tree import select


class Words(NamedTuple):
    """Sums over the words of the documents.

    topics (k, v): Σ w·counts·φ; evidence (n,): F of each document at γ and the best φ, in nats.
    """

    topics: jax.Array
    evidence: jax.Array


class LDAPosterior(NamedTuple):
    """The variational posterior of documents.

    gamma (n, k): q(θ_d) = Dirichlet(gamma_d). shares (n, L, k): q(z) of every cell; None: the best
    one given gamma, ∝ exp(ψ(gamma_k)) · exp(E[log topics_k,word]).
    """

    gamma: Any
    shares: Any = None

    @property
    def responsibilities(self):
        """E[θ] (n, k): the share of every topic in each document."""
        return self.gamma / self.gamma.sum(-1, keepdims=True)


@sequential_vmap
def converged_gamma(data: Table, gamma, tol, most_steps):
    """γ (n, k) after 1 to `most_steps` steps from `gamma`.

    A document stops when the mean change of its γ is at most its tol (n,). The result of a document
    does not depend on the others.
    """
    n = gamma.shape[0]
    lengths, rows = layout(data.words.shape, gamma.shape[1])
    state = (gamma, jnp.zeros(n, jnp.int32), jnp.ones(n, bool))
    if rows == [n]:
        return stepped_block(Block.of(data, data.words, data.counts), tol, most_steps, 0, state)[0]

    def visit_block(state, idx, inside, length, is_only_block):
        words, counts = cells(data, idx, length)
        allowed = jnp.where(is_only_block, 0, idx.shape[0] // tuning.UNCONVERGED_DIVISOR)
        gamma, steps, live = (leaf[idx] for leaf in state)
        live_state = (gamma, steps, live & inside)
        block = Block.of(data, words, counts)
        stepped = stepped_block(block, tol[idx], most_steps, allowed, live_state)
        rows_to_set = jnp.where(inside, idx, n)
        return tuple(
            a.at[rows_to_set].set(b, mode="drop") for a, b in zip(state, stepped, strict=True)
        )

    def step_packed(state):
        order, class_of = sorted_by_class(data.counts, lengths, state[2])
        return select_by_class(
            class_of, state, visit_classes(visit_block, order, lengths, rows, state)
        )

    return jax.lax.while_loop(lambda state: jnp.any(state[2]), step_packed, state)[0]


def stepped_block(block, tol, most_steps, allowed, state):
    """The state of a block after steps until at most `allowed` documents have not converged.

    The state is (γ (w, k), the number of steps (w,), whether a document has not converged (w,)).
    """

    def step(state):
        gamma, steps, live = state
        stepped = stepped_gamma(block, gamma)
        steps = steps + live
        still_live = live & (jnp.abs(stepped - gamma).mean(-1) > tol) & (steps < most_steps)
        return jnp.where(live[:, None], stepped, gamma), steps, still_live

    return jax.lax.while_loop(lambda state: state[2].sum() > allowed, step, state)


@sequential_vmap
def sums_at_gamma(data: Table, gamma, weights) -> Words:
    """The `Words` of documents at γ (n, k), with weights (n,)."""
    units = arranged(data.words, data.counts, gamma.shape[1])
    gamma = gamma[units.order]

    def values_at_gamma(block, idx, inside, allowed):
        return block_values(block, gamma[idx])

    return over_blocks(values_at_gamma, data, units, weights)[1]


@sequential_vmap
def one_pass(data: Table, units, gamma, cold, from_cold, tol, most_steps, weights):
    """(γ (n, k), the `Words` at it) after 1 to `most_steps` steps, in one pass over the documents.

    The steps begin at `gamma`. Where `from_cold` is True they begin at `cold`, and a document whose
    F is then lower than at `gamma` keeps `gamma`. units: the documents in the order of `arranged`.
    A block stops when few of its documents change by more than tol (n,), and is not visited again.
    """
    gamma, cold, tol = (leaf[units.order] for leaf in (gamma, cold, tol))

    def step_block(block, idx, inside, allowed):
        previous = gamma[idx]
        state = jnp.where(from_cold, cold[idx], previous), jnp.zeros(idx.shape, jnp.int32), inside
        stepped = stepped_block(block, tol[idx], most_steps, allowed, state)[0]

        def is_better():
            # F stays inside this branch: XLA would fuse it with its users and compute it per cell.
            at_previous, at_stepped = (block_values(block, g).evidence for g in (previous, stepped))
            return at_stepped >= at_previous

        is_accepted = jax.lax.cond(from_cold, is_better, lambda: inside)
        return block_values(block, jnp.where(is_accepted[:, None], stepped, previous))

    return over_blocks(step_block, data, units, weights)


class Arranged(NamedTuple):
    """Documents sorted by class of length.

    order (n,): the documents, class by class. end (c,): the position after the last document of
    each class. words, counts (n + w, L): in that order, followed by rows of 0, so that every block
    is a slice.
    """

    order: jax.Array
    end: jax.Array
    words: jax.Array
    counts: jax.Array


def arranged(words, counts, k: int) -> Arranged:
    """The documents in the order in which every pass with k topics visits them."""
    n = words.shape[0]
    lengths, rows = layout(words.shape, k)
    if rows == [n]:
        return Arranged(jnp.arange(n), jnp.full(1, n), words, counts)
    (order, _, end), _ = sorted_by_class(counts, lengths, jnp.ones(n, bool))
    padding = ((0, max(rows)), (0, 0))
    words, counts = (jnp.pad(jnp.asarray(leaf)[order], padding) for leaf in (words, counts))
    return Arranged(order, end, words, counts)


def over_blocks(block_function, data: Table, units: Arranged, weights):
    """(γ (n, k), `Words`) of all documents, from the `BlockValues` of every block.

    block_function: (block, idx (w,), inside (w,), allowed) → `BlockValues`. idx are positions in
    the order of `units`, inside says which of them are documents of this block, and allowed is how
    many documents may stop before they have converged.
    """
    order, end = units.order, units.end
    n, k = order.shape[0], data.alpha.shape[0]
    lengths, rows = layout((n, units.words.shape[1]), k)
    weights = weights[order]

    def visit_block(carry, idx, inside, length, is_only_block):
        total, gamma, evidence = carry
        shape = idx.shape[0], length
        words, counts = (
            jax.lax.dynamic_slice(leaf, (idx[0], 0), shape) for leaf in (units.words, units.counts)
        )
        # The last block of a class may hold few documents, so they are counted.
        allowed = 0 if rows == [n] else inside.sum() // tuning.UNCONVERGED_DIVISOR
        block = Block.of(data, words, counts)
        values = block_function(block, idx, inside, allowed)
        total = add_cells(total, block, values, jnp.where(inside, weights[idx], 0))
        rows_to_set = jnp.where(inside, idx, n)
        gamma = gamma.at[rows_to_set].set(values.gamma, mode="drop")
        evidence = evidence.at[rows_to_set].set(values.evidence, mode="drop")
        return total, gamma, evidence

    dtype = data.table.dtype
    empty = jnp.zeros(data.table.shape, dtype), jnp.zeros((n, k), dtype), jnp.zeros(n, dtype)
    position = jnp.arange(n)
    if rows == [n]:
        total, gamma, evidence = visit_block(empty, position, position >= 0, lengths[0], True)
    else:
        starts = jnp.concatenate([jnp.zeros(1, end.dtype), end[:-1]])
        carries = visit_classes(visit_block, (position, starts, end), lengths, rows, empty)
        total = sum(part[0] for part in carries)
        class_of = jnp.sum(position[:, None] >= end[:-1], axis=1)
        gamma, evidence = select_by_class(class_of, empty[1:], [part[1:] for part in carries])
        gamma, evidence = (leaf.at[order].set(leaf) for leaf in (gamma, evidence))
    return gamma, Words(total.T, evidence)


def layout(shape, k: int):
    """(the length of each class of documents, ascending; the number of documents of its blocks).

    shape: (n, L) of the documents.
    """
    n, longest = shape
    lengths = [longest]
    shortest, classes = tuning.SHORTEST, tuning.LENGTH_CLASSES
    # One very long document must not pad all others to a length of the same order.
    ratio = (longest / (shortest * tuning.LENGTH_SPAN)) ** (1 / max(classes - 1, 1))
    ratio = max(tuning.LENGTH_RATIO, ratio)
    while len(lengths) < classes and lengths[-1] / ratio >= shortest:
        lengths.append(int(lengths[-1] / ratio))
    lengths = lengths[::-1]
    if tuning.platform() == "cpu":
        fitting = [tuning.DOCUMENT_NUMBERS // (k * length) for length in lengths]
        rows = [min(max(tuning.LEAST_DOCUMENTS, r), tuning.MOST_DOCUMENTS) for r in fitting]
    else:
        rows = [tuning.ACCELERATOR_DOCUMENTS] * len(lengths)
    if n <= min(rows):
        return [longest], [n]
    return lengths, [min(n, r) for r in rows]


def sorted_by_class(counts, lengths, live):
    """((order (n,), start (c,), end (c,)), class of each document (n,)).

    order[start[i]:end[i]] are the live documents of class i; those that are not live come last.
    """
    column = jnp.arange(1, counts.shape[1] + 1)
    n_cells = jnp.max(jnp.where(counts > 0, column, 0), axis=1)
    class_of = jnp.sum(n_cells[:, None] > jnp.asarray(lengths[:-1], int)[None], axis=1)
    class_of = jnp.where(live, class_of, len(lengths))
    count = jnp.sum(class_of[:, None] == jnp.arange(len(lengths)), axis=0)
    end = jnp.cumsum(count)
    return (jnp.argsort(class_of), end - count, end), class_of


def select_by_class(class_of, previous, trees):
    """Rows (n, ...) of the tree of their class in `trees`, of `previous` where they have none."""
    for i, tree in enumerate(trees):
        previous = select(class_of == i, tree, previous)
    return previous


def visit_classes(function, order, lengths, rows, carry):
    """The carry of each class, after `carry = function(carry, idx, inside, length, is_only_block)`
    for each of its blocks.

    idx (w,): the documents of a block. inside (w,): which of them are to be visited. Every class
    begins with the same carry and depends on no other, so that a CPU can run two at a time.
    """
    order, starts, ends = order
    carries = []
    for i, (length, w) in enumerate(zip(lengths, rows, strict=True)):
        start, end = starts[i], ends[i]

        def visit_block(i, carry, start=start, end=end, length=length, w=w):
            position = start + i * w + jnp.arange(w)
            idx = order[jnp.minimum(position, order.shape[0] - 1)]
            return function(carry, idx, position < end, length, end - start <= w)

        carries.append(jax.lax.fori_loop(0, (end - start + w - 1) // w, visit_block, carry))
    return carries


def cells(data: Table, idx, length: int):
    """Words and counts (w, length) of the documents idx (w,)."""

    def rows(leaf):
        return jax.vmap(lambda i: jax.lax.dynamic_slice(leaf, (i, 0), (1, length))[0])(idx)

    return rows(data.words), rows(data.counts)
