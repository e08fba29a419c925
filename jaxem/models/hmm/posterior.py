"""The posterior of the states of a chain, from the recursions over every stack of sequences."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import chains


class HMMPosterior(NamedTuple):
    """The posterior of the states.

    rows (r, k): p(z_t | x) of every row of `Sequences.stacks`, one stack after the other; first
    (n, k): of the first rows; transitions (n, k, k): the expected number of transitions, or
    the `GateStatistics` or the `SegmentSums` of every sequence; emissions: the bank's posterior of
    every row given each state.
    """

    rows: Any
    first: Any
    transitions: Any
    emissions: Any


class HMMStatistics(NamedTuple):
    """Weighted sums over sequences: of first rows (k,), of transitions, and the bank's."""

    first: Any
    transitions: Any
    emissions: Any


def smoothed(chain_of, logs, inner, x):
    """(the `HMMPosterior`, log p(x) (n,)), from log densities (t, k, m). chain_of: the
    `chains.Chain` of a stack."""
    parts, evidence, transitions = [], [], []
    for part, stack in zip(logs, x.stacks(), strict=True):
        chain = chain_of(stack)
        found = chain.forward(part)
        smooth = chain.backward(found, stack.is_last.T)
        parts.append(smooth.marginals)
        transitions.append(smooth.pairs)
        evidence.append(chains.total(jnp.where(stack.inside.T, found.evidence, 0)))
    return _q(parts, transitions, inner, x), x.to_units(evidence)


def of_paths(chain_of, paths, inner, x):
    """The `HMMPosterior` of paths (t, m) alone."""
    marginals, transitions = [], []
    for path, stack in zip(paths, x.stacks(), strict=True):
        is_moved = (stack.inside & ~stack.is_last).T
        states, pairs = chain_of(stack).of_path(path, is_moved, x.dtype)
        transitions.append(pairs)
        marginals.append(states)
    return _q(marginals, transitions, inner, x)


def _q(marginals, transitions, inner, x):
    """The `HMMPosterior` from marginals (t, k, m) of every stack and sums of its
    transitions, a tree of arrays (..., m)."""
    rows, first = [], []
    for part, stack in zip(marginals, x.stacks(), strict=True):
        part = jnp.moveaxis(part, 2, 0)  # (m, t, k)
        first.append(jnp.where(stack.length[:, None] > 0, part[:, 0], 0))
        rows.append(jnp.where(stack.inside[..., None], part, 0).reshape(-1, part.shape[-1]))
    transitions = jax.tree.map(
        lambda *parts: x.to_units([jnp.moveaxis(part, -1, 0) for part in parts]), *transitions
    )
    return HMMPosterior(jnp.concatenate(rows), x.to_units(first), transitions, inner)
