"""Starts of chains and the probabilities that they share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.models.mixture import Mixture
from jaxem.numerics.special import divided
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.model import Bank, Model
from jaxem.protocol.starts import EVEN_PART, Start
from jaxem.wrappers.adopted import AdoptedBank

CUT_RANGE = 0.25
"""The most by which the ends of the parts of a sequence move, in lengths of a part, so that
restarts differ."""


class ChainStart(NamedTuple):
    """The params of a mixture of the bank; the weight of its components in first rows (k,), and
    that of pairs of them in rows that follow each other (k, k)."""

    emissions: Any
    first: Any
    pairs: Any


def start(model, key, x, weights):
    """The `ChainStart` of a mixture of the bank at its default start."""
    return _of_mixture(model, key, model.rows_before(x), weights)[0]


def start_in_cycle(model, key, x, weights):
    """That of `start`, with components in the order of a cycle: from the most frequent one of first
    rows, each is followed by the most frequent one after it of those that are left. The emissions
    are then those of an M-step."""
    x = model.rows_before(x)
    found, r = _of_mixture(model, key, x, weights)

    def follow(i, order):
        counts = jnp.where(i == 0, found.first, found.pairs[order[i - 1]])
        is_left = ~jnp.any((order == jnp.arange(model.k)[:, None]), axis=1)
        return order.at[i].set(jnp.argmax(jnp.where(is_left, counts, -1)))

    order = jax.lax.fori_loop(0, model.k, follow, jnp.full(model.k, -1))
    emissions = _emissions(model, jax.random.fold_in(key, 2), x, r[:, order], weights)
    return ChainStart(emissions, found.first[order], found.pairs[order][:, order])


def start_by_parts(model, key, x, weights):
    """(emissions, the mean length of a part): every sequence is cut into k parts of about one
    length, and component j is estimated from part j of each; a part of every row is spread
    evenly."""
    x, k = model.rows_before(x), model.k
    shift = jax.random.uniform(key, (k - 1,), weights.dtype, -CUT_RANGE, CUT_RANGE)
    cuts = (jnp.arange(1, k) + shift) / k
    parts = []
    for stack in x.stacks():
        middles = jnp.arange(stack.observed.shape[1]) + 0.5
        elapsed = middles / jnp.maximum(stack.length, 1)[:, None]  # (m, t)
        parts.append((elapsed[..., None] > cuts).sum(-1).reshape(-1))
    is_own = jnp.concatenate(parts)[:, None] == jnp.arange(k)
    r = (1 - EVEN_PART) * is_own.astype(weights.dtype) + EVEN_PART / k
    length = weights @ x.length.astype(weights.dtype) / safe(weights.sum())
    return _emissions(model, jax.random.fold_in(key, 2), x, r, weights), length / k


def followers(k, is_cyclic, has_stays):
    """The transitions (k, k) of a template, 0 or 1: to the next state, from the last one to the
    first, or to itself where that is left to right; and, with stays, from every state to itself."""
    allowed = np.eye(k, k, 1)
    allowed[-1, 0 if is_cyclic else -1] = 1
    return np.maximum(allowed, np.eye(k)) if has_stays else allowed


def _of_mixture(model, key, x, weights):
    """(`ChainStart`, responsibilities of the rows of `x.flat`): of a mixture of the bank at its
    default start."""
    rows, mixture, row_weights = _mixture(model, x, weights)
    params = Start.default(mixture, rows).params(mixture, key, rows, row_weights)
    r, _ = mixture.posterior(params, rows)
    observed = r.responsibilities * (row_weights > 0)[:, None]
    pairs, first = 0, 0
    for part, w in zip(x.split(observed), x.from_units(weights), strict=True):
        pairs += jnp.einsum("n,nti,ntj->ij", w, part[:, :-1], part[:, 1:], precision="highest")
        first += w @ part[:, 0]
    return ChainStart(params.components, first, pairs), r.responsibilities


def _emissions(model, key, x, responsibilities, weights):
    """The emissions of an M-step at responsibilities of the rows of `x.flat`."""
    rows, mixture, row_weights = _mixture(model, x, weights)
    return mixture.from_responsibilities(key, rows, responsibilities, row_weights).components


def _mixture(model, x, weights):
    """(rows, a mixture of the bank, weights of the rows)."""
    row_weights = x.row_weights(weights)
    # A mixture has no empty data; missing rows have the values of an observed one.
    row_weights = jnp.where(row_weights.sum() > 0, row_weights, 1)
    return x.flat(), Mixture(model.bank, model.k), row_weights


def bank_of(bank):
    """The bank of emissions; TypeError unless it is one."""
    is_class = isinstance(bank, type)
    if not is_class and not isinstance(bank, Model) and defines(bank, "posterior"):
        return AdoptedBank(bank)
    if is_class or not isinstance(bank, Bank):
        name = bank.__name__ if is_class else type(bank).__name__
        remedy = f"write {name}(...)" if is_class else f"lift one model, jaxem.Each({name}(...))"
        raise TypeError(f"emissions must be a bank such as jaxem.Normal(), got {name}: {remedy}")
    return bank


def kept_positive(probabilities, previous):
    """Probabilities of which those that were above 0 stay so where they underflow: a probability of
    exactly 0 is one that was given, and no free parameter. It has no slope, by which it could rise.
    """
    limits = jnp.finfo(probabilities.dtype)
    least = jnp.maximum(probabilities, limits.tiny / limits.eps)
    return jnp.where(previous > 0, least, 0)


def normalised(counts, otherwise):
    """Rows of counts divided by their sums; those of `otherwise` where a row is empty."""
    total = counts.sum(-1)
    shares = divided(counts, safe(total)[..., None])
    return jnp.where(is_empty(total)[..., None], otherwise, shares)
