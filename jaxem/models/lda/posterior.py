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

from jaxem.models.lda.blocks import (
    Block,
    BlockValues,
    Table,
    add_cells,
    block_values,
    stepped_gamma,
)
from jaxem.models.lda.classes import (
    Arranged,
    arranged,
    by_class,
    cells,
    class_layout,
    class_of_documents,
    select_by_class,
    visit_classes,
)
from jaxem.numerics import tuning


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
    lengths, rows = class_layout(data)
    state = (gamma, jnp.zeros(n, jnp.int32), jnp.ones(n, bool))
    if rows == [n]:
        return stepped_block(Block.of(data, data.words, data.counts), tol, most_steps, 0, state)[0]

    class_of = class_of_documents(data, lengths)

    def visit_block(state, idx, inside, i, is_only_block):
        words, counts = cells(data, idx, i, lengths[i])
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
        order, live_class = by_class(class_of, len(lengths), state[2])
        return select_by_class(live_class, state, visit_classes(visit_block, order, rows, state))

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
    units = arranged(data.words, data.counts, data.place, gamma.shape[1])
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
        both, first = jnp.stack([previous, stepped]), jnp.where(from_cold, 0, 1)

        def better(i, best):
            """The better of two γ for every document. In a loop, so that it is compiled once, and
            XLA does not compute F anew for every cell."""
            values = block_values(block, both[i])
            is_better = (i == first) | (values.evidence >= best.evidence)
            gamma, norm = (
                jnp.where(is_better[:, None], new, old)
                for new, old in ((values.gamma, best.gamma), (values.norm, best.norm))
            )
            evidence = jnp.where(is_better, values.evidence, best.evidence)
            return BlockValues(gamma, norm, block.are_safe(norm), evidence)

        shapes = jax.eval_shape(block_values, block, previous)
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.fori_loop(first, 2, better, none)

    return over_blocks(step_block, data, units, weights)


def over_blocks(block_function, data: Table, units: Arranged, weights):
    """(γ (n, k), `Words`) of all documents, from the `BlockValues` of every block.

    block_function: (block, idx (w,), inside (w,), allowed) → `BlockValues`. idx are positions in
    the order of `units`, inside says which of them are documents of this block, and allowed is how
    many documents may stop before they have converged.
    """
    order, end = units.order, units.end
    n, k = order.shape[0], data.alpha.shape[0]
    lengths, rows = class_layout(data)
    weights = weights[order]

    def visit_block(carry, idx, inside, i, is_only_block):
        total, gamma, evidence = carry
        if units.words is None:
            words, counts = cells(data, order[idx], i, lengths[i])
            counts = jnp.where(inside[:, None], counts, 0)  # other rows may hold anything
        else:
            shape = idx.shape[0], lengths[i]
            words, counts = (
                jax.lax.dynamic_slice(leaf, (idx[0], 0), shape)
                for leaf in (units.words, units.counts)
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
        total, gamma, evidence = visit_block(empty, position, position >= 0, 0, True)
    else:
        starts = jnp.concatenate([jnp.zeros(1, end.dtype), end[:-1]])
        chains = None if data.place is None else tuning.PARALLEL_CHUNKS
        carries = visit_classes(visit_block, (position, starts, end), rows, empty, chains)
        total = sum(part[0] for part in carries)
        chain_of = jnp.sum(position[:, None] >= end[:-1], axis=1) % len(carries)
        gamma, evidence = select_by_class(chain_of, empty[1:], [part[1:] for part in carries])
        gamma, evidence = (leaf.at[order].set(leaf) for leaf in (gamma, evidence))
    return gamma, Words(total.T, evidence)
