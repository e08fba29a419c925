"""Recursions of hidden semi-Markov chains, for many sequences at once: time first, sequences last.

A segment in state i lasts d rows, 1 to L, with probability p_i(d), and then moves to state j with
probability A_ij. The last segment may be cut off by the end of the sequence. The chain of the
states (i, e), where e = 0 … L − 1 rows of the segment came before the row, is a Markov chain: the
segment ends there with probability h_i(e) = p_i(e + 1) / P_i(d > e), and else goes on to (i, e + 1)
(Yu 2010). A step takes k² + k·L operations.

Shapes: t rows of time, k states, L elapsed times, n sequences. logs (t, k, n) are log densities of
the rows, 0 where a row is missing or padding. Paths are of the numbers i·L + e.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import chains
from jaxem.numerics.chains import Filtered, Smoothed
from jaxem.numerics.special import divided


class SegmentSums(NamedTuple):
    """Expected numbers: moves (k, k, n) from the state of a segment to that of the next one; ended
    and stayed (k, L, n), the rows after which a segment ended and those after which it went on."""

    moves: Any
    ended: Any
    stayed: Any


class Segments(NamedTuple):
    """initial (k, 1): p(z) of the first segment; transition (k, k, 1): from the state of the first
    axis to that of the second; ends, stays (k, L): the probabilities that a segment ends after a
    row, and that it goes on."""

    initial: Any
    transition: Any
    ends: Any
    stays: Any
    inputs: Any = None
    """None: the chain does not change in time."""

    def power(self, power):
        """The chain with the probability of every path raised to a power."""

        def raised(p):
            return jnp.where(p > 0, jnp.where(p > 0, p, 1) ** power, 0)

        return Segments(*map(raised, self[:4]))

    def begin(self, logs):
        """p(z) (k, L, n) of the first row."""
        _, k, n = logs.shape
        first = jnp.broadcast_to(self.initial, (k, n)).astype(logs.dtype)
        return jnp.zeros((k, self.ends.shape[1], n), logs.dtype).at[:, 0].set(first)

    def forward(self, logs, first=None) -> Filtered:
        """The filter, with predicted and filtered rows (t, k, L, n). first: p(z) of the first row,
        None: that of `begin`."""
        first = self.begin(logs) if first is None else first

        def step(predicted, logs):
            likelihood, largest = chains.relative(predicted.sum(1), logs)
            joint = predicted * likelihood[:, None]
            total = joint.sum((0, 1))
            filtered = joint / jnp.where(total > 0, total, 1)
            return self.onward(filtered), (predicted, filtered, jnp.log(total) + largest)

        return Filtered(*jax.lax.scan(step, first, logs)[1])

    def backward(self, filter_, is_last, after=None) -> Smoothed:
        """The smoother, with `SegmentSums` as its pairs. is_last (t, n): whether a row is the last
        one of its sequence; what follows is padding. after: the `Smoothed.ratio` of the rows that
        follow, None where there are none."""
        matrix, stays, ends = self.transition, self.stays[:, :-1, None], self.ends[..., None]
        shape, dtype = filter_.filtered.shape[1:], filter_.filtered.dtype
        k, length, n = shape

        def step(carry, row):
            ratio, (moves, ended, stayed) = carry
            predicted, filtered, is_last = row
            ratio = jnp.where(is_last, 0, ratio)
            end = filtered * chains.moved_back(ratio[:, 0], matrix)[:, None]
            stay = filtered[:, :-1] * ratio[:, 1:]
            left = (filtered * ends).sum(1)
            sums = SegmentSums(moves + left[:, None] * ratio[:, 0], ended + end, stayed + stay)
            marginal = (end * ends).at[:, :-1].add(stay * stays)
            marginal = jnp.where(is_last, filtered, marginal)
            total = marginal.sum((0, 1))
            marginal = marginal / jnp.where(total > 0, total, 1)
            return (chains.quotient(marginal, predicted), sums), marginal.sum(1)

        zeros = [jnp.zeros(s, dtype) for s in ((k, k, n), shape, (k, length - 1, n))]
        rows = (filter_.predicted, filter_.filtered, is_last)
        carry = (jnp.zeros(shape, dtype) if after is None else after, SegmentSums(*zeros))
        (ratio, sums), marginals = jax.lax.scan(step, carry, rows, reverse=True)
        stayed = jnp.pad(sums.stayed * stays, ((0, 0), (0, 1), (0, 0)))
        return Smoothed(
            marginals, SegmentSums(sums.moves * matrix, sums.ended * ends, stayed), ratio
        )

    def best_path(self, logs, inside):
        """(the most probable path (t, n), integers; its log p(path, x) (n,)): Viterbi's algorithm.

        inside (t, n): False for padding, whose state is that of the row before it.
        """
        _, k, n = logs.shape
        length = self.ends.shape[1]
        matrix, ends, stays = (jnp.log(a) for a in (self.transition, self.ends, self.stays))
        begin = jnp.log(jnp.broadcast_to(self.initial, (k, n))) + logs[0]
        first = jnp.full((k, length, n), -jnp.inf, logs.dtype).at[:, 0].set(begin)
        level = chains.largest_of(begin)

        def step(score, row):
            logs, inside = row
            ended = score + ends[..., None]
            elapsed = jnp.argmax(ended, axis=1)
            joint = ended.max(1)[:, None] + matrix
            state = jnp.argmax(joint, axis=0)
            origin = state * length + jnp.take_along_axis(elapsed, state, axis=0)
            stayed = score[:, :-1] + stays[:, :-1, None]
            moved = jnp.concatenate([joint.max(0)[:, None], stayed], 1) + logs[:, None]
            rise = jnp.where(inside, chains.largest_of(moved.reshape(-1, n)), 0)
            return jnp.where(inside, moved - rise, score), (origin, rise)

        score, (origins, rises) = jax.lax.scan(step, first - level, (logs[1:], inside[1:]))
        score = score.reshape(-1, n)

        def back(at, row):
            origin, inside = row
            before = jnp.take_along_axis(origin, (at // length)[None], axis=0)[0]
            before = jnp.where(at % length > 0, at - 1, before)
            return jnp.where(inside, before, at), at

        last = jnp.argmax(score, axis=0)
        begin, path = jax.lax.scan(back, last, (origins, inside[1:]), reverse=True)
        value = chains.total(jnp.concatenate([level[None], rises])) + score.max(0)
        return jnp.concatenate([begin[None], path]), value

    def drawn_path(self, key, filtered, is_last):
        """Paths (t, n) drawn from p(path | x), from the filtered rows (t, k, L, n)."""
        t, _, length, n = filtered.shape
        uniforms = jax.random.uniform(key, (t, n), filtered.dtype)
        ends, matrix = self.ends[..., None], self.transition[..., 0]

        def step(at, row):
            filtered, is_last, uniform = row
            onward = filtered * ends * matrix[:, at // length][:, None]
            mass = jnp.where(is_last, filtered, onward).reshape(-1, n)
            cumulative = jnp.cumsum(mass, axis=0)
            drawn = jnp.sum(cumulative < uniform * cumulative[-1], axis=0)
            drawn = jnp.minimum(drawn, len(mass) - 1)
            at = jnp.where(is_last | (at % length == 0), drawn, at - 1)
            return at, at

        rows = (filtered, is_last, uniforms)
        return jax.lax.scan(step, jnp.zeros(n, int), rows, reverse=True)[1]

    def onward(self, state, given=None):
        """p(z_{t+1}) (k, L, n) from p(z_t) (k, L, n)."""
        begun = chains.moved((state * self.ends[..., None]).sum(1), self.transition)
        stayed = state[:, :-1] * self.stays[:, :-1, None]
        return jnp.concatenate([begun[:, None], stayed], 1)

    def states(self, rows):
        """p(z_t) (t, k, n) of filtered or predicted rows."""
        return rows.sum(2)

    def visited(self, path):
        """The states of a path (t, n)."""
        return path // self.ends.shape[1]

    def of_path(self, path, is_moved, dtype):
        """(marginals (t, k, n), `SegmentSums`) of paths (t, n). is_moved (t, n): whether a row of
        the sequence follows."""
        k, length = self.ends.shape
        n, numbers = path.shape[1], jnp.arange(path.shape[1])
        state, elapsed = path // length, path % length
        marginals = jax.nn.one_hot(state, k, axis=1, dtype=dtype)
        state, next_state, elapsed, is_new = state[:-1], state[1:], elapsed[:-1], elapsed[1:] == 0
        ends, stays = (jnp.where(is_moved[:-1] & a, 1, 0).astype(dtype) for a in (is_new, ~is_new))
        zeros = jnp.zeros((k, length, n), dtype)
        moves = jnp.zeros((k, k, n), dtype).at[state, next_state, numbers].add(ends)
        ended, stayed = (zeros.at[state, elapsed, numbers].add(a) for a in (ends, stays))
        return marginals, SegmentSums(moves, ended, stayed)


def hazard_logits(ratios):
    """z (L − 1, k), the logits of 1 − h, of durations 1 … L with log ratios of probabilities log
    p(d + 1) − log p(d) (L − 1, k). The last duration has no logit: every segment ends there.

    1/h(d) = 1 + ρ/h(d + 1) with the ratio ρ, so z(d) = log ρ + log(1 + exp z(d + 1)).
    """

    def step(rest, ratio):
        z = rest + ratio
        return jax.nn.softplus(z), z

    return jax.lax.scan(step, jnp.zeros_like(ratios[0]), ratios, reverse=True)[1]


def hazards(probabilities):
    """(h, 1 − h), both (k, L), of the probabilities (k, L) of durations 1 … L: 1 and 0 from the
    longest one on that is possible."""
    tail = jnp.flip(jnp.cumsum(jnp.flip(probabilities, 1), axis=1), 1)
    is_possible = tail > 0
    tail = jnp.where(is_possible, tail, 1)
    beyond = jnp.where(is_possible[:, 1:], tail[:, 1:], 0)
    ends = jnp.where(is_possible, divided(probabilities, tail), 1)
    return ends, divided(jnp.pad(beyond, ((0, 0), (0, 1))), tail)
