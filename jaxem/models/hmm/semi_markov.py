"""Hidden semi-Markov models with explicit durations, over any bank of emissions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.options import integer, one_of
from jaxem.models.hmm.chained import Chained
from jaxem.models.hmm.durations import KINDS
from jaxem.models.hmm.starts import (
    bank_of,
    followers,
    kept_positive,
    normalised,
    start,
    start_by_parts,
    start_in_cycle,
)
from jaxem.models.hmm.stationary import stationary
from jaxem.numerics.segments import Segments
from jaxem.numerics.tree import pytree
from jaxem.protocol.derived import whitened
from jaxem.protocol.held import averaged, is_held
from jaxem.protocol.spaces import SIMPLEX

LEAST_START = 1.5
"""The least mean duration of a start."""


@pytree(eq=False)
class SemiMarkovParams:
    """initial (k,): p(state of the first segment); transition (k, k): p(state of the next segment),
    rows summing to 1, with a zero diagonal by default; durations: with "poisson" the means (k,) of
    a duration less 1, with "negative_binomial" `DurationParams`, with "categorical" probabilities
    (k, longest); emissions: the params of the bank."""

    initial: Any
    transition: Any
    durations: Any
    emissions: Any


@pytree(static=("k", "durations", "longest"))
class SemiMarkov(Chained):
    """A hidden semi-Markov model of k states: a segment in state i lasts d rows with probability
    p_i(d), then the next one begins in state j with probability transition[i, j]; row t is drawn
    from component z_t of a bank.

    The first segment begins in the first row. The last one may be cut off by the end of the
    sequence: it counts with the probability of lasting at least that long.

    Args:
      emissions: a bank, such as `Normal()`, `Poisson()` or `Product(...)`.
      k: the number of states, an int of 2 or more.
      durations: "poisson": d − 1 is Poisson; "negative_binomial": d − 1 is negative binomial; both
        limited to d = 1 … longest, and divided by the probability of these. "categorical": any
        probabilities of d = 1 … longest.
      longest: the most rows of a segment, an int of 2 or more. Time and memory grow with it.

    Data: `Sequences`; weights are per sequence. A missing row contributes nothing, and time passes.
    A transition or initial probability of 0 stays 0: params with other zeros, or with a diagonal
    above 0, are taken as they are. init="left_to_right": from state 0 to the last one, whose
    segments follow each other to the end, so that its durations do not count: freeze them for
    gradients and BIC, jaxem.Restricted(model, "durations[2]"); init="cyclic": each state is
    followed by the next one.

    Raises TypeError or ValueError where an argument is not one of these. Source: Yu 2010.
    """

    emissions: Any
    k: int
    durations: str = "poisson"
    longest: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "k", integer(self.k, "k", 2))
        one_of(self.durations, "durations", KINDS)
        if self.longest is None:
            raise TypeError(
                "longest must be an int of 2 or more, got none: give the most rows that a segment "
                "can last, such as longest=50"
            )
        object.__setattr__(self, "longest", integer(self.longest, "longest", 2))
        object.__setattr__(self, "emissions", bank_of(self.emissions))

    @property
    def _states(self):
        return self.k * self.longest

    @property
    def _most_start(self):
        """The largest mean duration of a start."""
        return max(LEAST_START, self.longest / 2)

    @property
    def _kind(self):
        return KINDS[self.durations](self.longest)

    def init(self, key, x, weights):
        """The emissions are those of a mixture at its default start. Transitions and durations
        follow from its components in time, as if those were a Markov chain; half of the
        probability of every row of transitions is spread evenly."""
        others = 1 - jnp.eye(self.k, dtype=weights.dtype)
        return self._free(start(self, key, x, weights), others)

    def _free(self, begin, allowed):
        """Params from a `ChainStart`; allowed: the transitions (k, k) between segments, 1 or 0."""
        even = jnp.full((self.k, self.k), 1 / self.k, begin.pairs.dtype)
        stay = jnp.diagonal(normalised(begin.pairs, even))
        mean = 1 / jnp.maximum(1 - stay, 1 / self._most_start)
        shares = allowed.astype(even.dtype) / allowed.sum(1, keepdims=True)
        transition = (normalised(begin.pairs * allowed, shares) + shares) / 2
        initial = (normalised(begin.first, even[0]) + even[0]) / 2
        return SemiMarkovParams(initial, transition, self._durations(mean), begin.emissions)

    def _durations(self, mean):
        """The params of durations of about these means (k,)."""
        return self._kind.start(jnp.clip(mean, LEAST_START, self._most_start))

    def _cyclic(self, key, x, weights):
        begin = start_in_cycle(self, key, x, weights)
        return self._free(begin, followers(self.k, True, has_stays=False))

    def _left_to_right(self, key, x, weights):
        """Emissions from k parts of every sequence, and durations of their mean length."""
        emissions, length = start_by_parts(self, key, x, weights)
        allowed = jnp.asarray(followers(self.k, False, has_stays=False), weights.dtype)
        initial = jnp.eye(self.k, dtype=weights.dtype)[0]
        durations = self._durations(jnp.full(self.k, length))
        return SemiMarkovParams(initial, allowed, durations, emissions)

    def chain(self, params, stack):
        """The `segments.Segments` of a stack of sequences."""
        factors = self._kind.hazards(params.durations)
        return Segments(params.initial[:, None], params.transition[..., None], *factors)

    def _path(self, keys, params, n, length, inputs=None):
        initial, transition = jnp.log(params.initial), jnp.log(params.transition)
        ends, _ = self._kind.hazards(params.durations)
        state = jax.random.categorical(keys[0], initial, shape=(n,))

        def step(carry, key):
            state, elapsed = carry
            end_key, next_key = jax.random.split(key)
            is_end = jax.random.uniform(end_key, (n,), ends.dtype) < ends[state, elapsed]
            following = jax.random.categorical(next_key, transition[state])
            after = jnp.where(is_end, following, state), jnp.where(is_end, 0, elapsed + 1)
            return after, state

        begin = state, jnp.zeros_like(state)
        return jax.lax.scan(step, begin, jax.random.split(keys[1], length))[1].T

    def _assembled(self, params, stats, emissions):
        sums = stats.transitions
        initial = normalised(stats.first, params.initial)
        transition = normalised(sums.moves, params.transition)
        return SemiMarkovParams(
            kept_positive(initial, params.initial),
            kept_positive(transition, params.transition),
            self._kind.maximize(params.durations, sums.ended, sums.stayed),
            emissions,
        )

    def _tied(self, held):
        """Durations of whole states may be fixed or tied."""
        rows = [h.rows for h in jax.tree.leaves(held.durations, is_leaf=is_held)]
        if any(r is None or not all(map(np.array_equal, r, rows[0])) for r in rows):
            return None
        leaders = rows[0][1]

        def tied(stats):
            moves, ended, stayed = stats.transitions
            moves = averaged(held.transition.leaders, moves)
            counts = (averaged(leaders, ended), averaged(leaders, stayed))
            return stats._replace(transitions=stats.transitions._make((moves, *counts)))

        return tied

    def spaces(self, params):
        emissions = self.bank.spaces(params.emissions)
        return SemiMarkovParams(SIMPLEX, SIMPLEX, self._kind.spaces(), emissions)

    def n_parameters(self, params) -> int:
        """The number of free parameters. A probability of exactly 0 is none."""
        initial, transition = (np.asarray(a) > 0 for a in (params.initial, params.transition))
        free = max(initial.sum() - 1, 0) + np.maximum(transition.sum(-1) - 1, 0).sum()
        durations = self._kind.n_parameters(params.durations)
        return self.bank.n_parameters(params.emissions) + durations + int(free)

    def whitened(self, params, step):
        _, stays = self._kind.hazards(params.durations)
        mean = 1 + jnp.cumprod(stays, axis=1).sum(1)
        lasting = stationary(params.transition) * mean
        share = (lasting / lasting.sum() + 1 / self.k) / 2  # of rows
        rows, segments = jnp.sqrt(share), jnp.sqrt(share / mean)

        def weighted(root, leaf):
            is_by_state = leaf.shape[:1] == (self.k,)
            return leaf * root.reshape(-1, *(1,) * (leaf.ndim - 1)) if is_by_state else leaf

        durations = self._kind.whitened(params.durations, step.durations)
        emissions = whitened(self.bank, params.emissions, step.emissions)
        transition = step.transition * jnp.sqrt(SIMPLEX.metric(params.transition))
        return SemiMarkovParams(
            step.initial * 0,  # it counts for one row of a sequence
            weighted(segments, transition),
            jax.tree.map(lambda leaf: weighted(segments, leaf), durations),
            jax.tree.map(lambda leaf: weighted(rows, leaf), emissions),
        )

    def _rows(self, stats):
        sums = stats.transitions
        return stats.first.sum() + sums.ended.sum() + sums.stayed.sum()
