"""Recursions of hidden Markov chains, for many sequences at once: time first, sequences last.

Shapes: t rows of time, k states, n sequences. logs (t, k, n) are log densities of the rows, 0 where
a row is missing or padding.

Probabilities are normalised at every row (Rabiner 1989), and the log densities of a row are taken
relative to the largest one among states that are possible there. So no sequence is lost because a
state that cannot occur explains a row better by far.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient

from jaxem.numerics import chain_forms, long_chains, parallel_chains
from jaxem.numerics.special import divided

MANY_STATES = 16
"""States from which a matrix product is faster than a sum in elementwise code (1,000 rows of 256
sequences, 16 states, one core: 13 to 30 ms)."""

BLOCK = 256
"""Rows that are summed before their sum is added to that of others."""

SUMS = {
    False: (partial(jnp.sum, axis=0), partial(jnp.max, axis=0)),
    True: (long_chains.sum_by_term, long_chains.largest_by_term),
}
"""Sums and maxima over states, by whether they are written term by term."""


class Filtered(NamedTuple):
    """predicted (t, k, n): p(z_t | x_1 … x_{t−1}); filtered (t, k, n): p(z_t | x_1 … x_t);
    evidence (t, n): log p(x_t | x_1 … x_{t−1})."""

    predicted: Any
    filtered: Any
    evidence: Any


class Smoothed(NamedTuple):
    """marginals (t, k, n): p(z_t | x); pairs: the expected sums of pairs of states that follow each
    other; ratio (k, n): p(z_1 | x) / p(z_1), of the first row."""

    marginals: Any
    pairs: Any
    ratio: Any


class Chain(NamedTuple):
    """initial (k, n) or (k, 1): p(z) of the first row. transition: an array (k, k, n) or (k, k, 1),
    from the state of the first axis to that of the second; or, where it changes in time, a function
    of the entries of inputs, a tree of arrays (t, ...), of which that of row t leads to row t + 1.
    pairs: a function of p(z_t, z_{t+1} | x) (k, k, n) and the entry of inputs, to be summed over
    time; None: the pairs themselves are summed."""

    initial: Any
    transition: Any
    inputs: Any = None
    pairs: Any = None

    def matrix(self, given):
        """The transition from a row with these inputs."""
        return self.transition(given) if callable(self.transition) else self.transition

    def power(self, power):
        """The chain with every probability raised to a power."""

        def raised(p):
            return jnp.where(p > 0, jnp.where(p > 0, p, 1) ** power, 0)

        changes = callable(self.transition)
        transition = (
            (lambda given: raised(self.transition(given))) if changes else (raised(self.transition))
        )
        return self._replace(initial=raised(self.initial), transition=transition)

    def begin(self, logs):
        """p(z) (k, n) of the first row."""
        return jnp.broadcast_to(self.initial, logs.shape[1:]).astype(logs.dtype)

    def forward(self, logs, first=None) -> Filtered:
        """The filter. first: p(z) of the first row, None: that of `begin`."""
        first = self.begin(logs) if first is None else first
        if chain_forms.takes_levels(*logs.shape):
            filtered = parallel_chains.filtered(self, logs, first)
            ahead = jax.vmap(self.onward)(filtered, self.inputs)
            return _filtered(jnp.concatenate([first[None], ahead[:-1]]), logs)

        def step(predicted, row):
            logs, given = row
            filtered, evidence = conditioned(predicted, logs)
            return self.onward(filtered, given), (predicted, filtered, evidence)

        def by_row(logs):
            return jax.lax.scan(step, first, (logs, self.inputs))[1]

        if chain_forms.is_long(*logs.shape):
            alone = long_chains.predicted(self, logs, first, lambda logs: by_row(logs)[0])
            return _filtered(alone, logs)
        return Filtered(*by_row(logs))

    def backward(self, filter_, is_last, after=None) -> Smoothed:
        """The smoother. is_last (t, n): whether a row is the last one of its sequence; what follows
        is padding. after: the `Smoothed.ratio` of the rows that follow, None where there are
        none."""
        ratio = jnp.zeros_like(filter_.filtered[0]) if after is None else after
        rows = (filter_.predicted, filter_.filtered, self, is_last, ratio, moved_back)
        if chain_forms.takes_levels(*filter_.filtered.shape):
            return Smoothed(*parallel_chains.smoothed(*rows))
        inputs, pairs = self.inputs, self.pairs
        is_fixed = not callable(self.transition) and pairs is None
        if is_fixed and chain_forms.is_long(*filter_.filtered.shape):
            return Smoothed(*long_chains.smoothed(*rows))

        def step(carry, row):
            ratio, sums = carry
            predicted, filtered, is_last, given = row
            ratio = jnp.where(is_last, 0, ratio)
            matrix = self.matrix(given)
            pair = filtered[:, None] * ratio
            if not is_fixed:
                pair = pair * matrix
            marginal = filtered * moved_back(ratio, matrix)
            marginal = jnp.where(is_last, filtered, marginal)
            total = marginal.sum(0)
            marginal = marginal / jnp.where(total > 0, total, 1)
            part = pair if pairs is None else pairs(pair, given)
            sums = jax.tree.map(jnp.add, sums, part)
            return (quotient(marginal, predicted), sums), marginal

        def first_sums(filtered, given):
            pair = filtered[:, None] * filtered * self.matrix(given)
            return pair if pairs is None else pairs(pair, given)

        rows = (filter_.filtered[0], jax.tree.map(lambda a: a[0], inputs))
        zero = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(first_sums, *rows)
        )
        rows = (filter_.predicted, filter_.filtered, is_last, inputs)
        (ratio, sums), marginals = jax.lax.scan(step, (ratio, zero), rows, reverse=True)
        return Smoothed(marginals, sums * self.transition if is_fixed else sums, ratio)

    def best_path(self, logs, inside):
        """(the most probable path (t, n), integers; its log p(z, x) (n,)): Viterbi's algorithm.

        inside (t, n): False for padding, whose state is that of the row before it.
        """
        k = logs.shape[1]
        states = jnp.arange(k)[:, None]
        first = jnp.log(self.begin(logs)) + logs[0]
        level = largest_of(first)

        def step(score, row):
            logs, inside, given = row
            joint = score[:, None] + jnp.log(self.matrix(given))
            origin = jnp.where(inside, jnp.argmax(joint, axis=0), states)
            moved = joint.max(0) + logs
            rise = jnp.where(inside, largest_of(moved), 0)
            return jnp.where(inside, moved - rise, score), (origin, rise)

        before = jax.tree.map(lambda a: a[:-1], self.inputs)
        rows = (logs[1:], inside[1:], before)
        score, (origins, rises) = jax.lax.scan(step, first - level, rows)
        last = jnp.argmax(score, axis=0)

        def back(state, origin):
            return jnp.take_along_axis(origin, state[None], axis=0)[0], state

        begin, path = jax.lax.scan(back, last, origins, reverse=True)
        value = total(jnp.concatenate([level[None], rises])) + score.max(0)
        return jnp.concatenate([begin[None], path]), value

    def drawn_path(self, key, filtered, is_last):
        """Paths (t, n) drawn from p(z | x), from the filtered states (t, k, n)."""
        t, _, n = filtered.shape
        uniforms = jax.random.uniform(key, (t, n), filtered.dtype)

        def step(state, row):
            filtered, is_last, given, uniform = row
            matrix = self.matrix(given)
            if matrix.shape[-1] == 1:
                onward = matrix[:, state, 0]
            else:
                onward = jnp.take_along_axis(matrix, state[None, None], axis=1)[:, 0]
            mass = jnp.where(is_last, filtered, filtered * onward)
            cumulative = jnp.cumsum(mass, axis=0)
            state = jnp.sum(cumulative < uniform * cumulative[-1], axis=0)
            return jnp.minimum(state, mass.shape[0] - 1), state

        rows = (filtered, is_last, self.inputs, uniforms)
        _, path = jax.lax.scan(step, jnp.zeros(n, int), rows, reverse=True)
        return path

    def onward(self, state, given=None):
        """p(z_{t+1}) (k, n) from p(z_t) (k, n) and the inputs of row t."""
        return moved(state, self.matrix(given))

    def states(self, rows):
        """p(z_t) (t, k, n) of filtered or predicted rows."""
        return rows

    def visited(self, path):
        """The states of a path (t, n)."""
        return path

    def of_path(self, path, is_moved, dtype):
        """(marginals (t, k, n), the sums of pairs) of paths (t, n). is_moved (t, n): whether a row
        of the sequence follows."""
        states = jax.nn.one_hot(path, len(self.initial), axis=1, dtype=dtype)
        origins = jnp.where(is_moved[:-1, None], states[:-1], 0)
        if self.pairs is None:
            return states, jnp.einsum("tin,tjn->ijn", origins, states[1:], precision="highest")
        given = jax.tree.map(lambda a: a[:-1], self.inputs)
        pairs = jax.vmap(self.pairs)(origins[:, :, None] * states[1:, None], given)
        return states, jax.tree.map(lambda a: a.sum(0), pairs)


def last_state(filtered, is_last):
    """The filtered state (k, n) of the last row of every sequence."""
    is_last = is_last.reshape(len(filtered), *(1,) * (filtered.ndim - 2), -1)
    return jnp.sum(jnp.where(is_last, filtered, 0), axis=0)


def largest_of(values):
    """The largest of values (k, n) along the first axis, 0 where all are −∞."""
    largest = values.max(0)
    return jnp.where(jnp.isfinite(largest), largest, 0)


def total(evidence):
    """Σ_t (n,) of values (t, n), by blocks, so that rounding errors grow like √t."""
    t = evidence.shape[0]
    if t > BLOCK:
        evidence = jnp.pad(evidence, ((0, -t % BLOCK), (0, 0)))
        evidence = evidence.reshape(-1, BLOCK, evidence.shape[1])
        if evidence.shape[-1] == 1:  # as a product (CPU, 100,000 rows: 1.8 to 0.1 ms)
            ones = jnp.ones(BLOCK, evidence.dtype)
            evidence = jnp.matmul(evidence[..., 0], ones, precision=Precision.HIGHEST)[:, None]
        else:
            evidence = evidence.sum(1)
    return evidence.sum(0)


def conditioned(predicted, logs, by_term=False):
    """(p(z | x) (k, n), log p(x) (n,)) of a row, from p(z) and log p(x | z). by_term: whether sums
    over states are written term by term."""
    sum_over, most_over = SUMS[by_term]
    likelihood, largest = relative(predicted, logs, most_over)
    joint = predicted * likelihood
    total = sum_over(joint)
    return joint / jnp.where(total > 0, total, 1), jnp.log(total) + largest


def relative(predicted, logs, most_over=SUMS[False][1]):
    """(p(x | z) (k, n) relative to the largest one of states z that are possible, its log (n,))."""
    is_possible = predicted > 0
    largest = stop_gradient(most_over(jnp.where(is_possible, logs, -jnp.inf)))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.exp(jnp.where(is_possible, logs - largest, -jnp.inf)), largest


def _filtered(predicted, logs):
    """The `Filtered` of predicted states (t, k, n)."""
    rows = (jnp.moveaxis(predicted, 1, 0), jnp.moveaxis(logs, 1, 0))
    filtered, evidence = conditioned(*rows, by_term=True)
    return Filtered(predicted, jnp.moveaxis(filtered, 0, 1), evidence)


def moved(state, matrix):
    """p(z_{t+1}) (k, n) from p(z_t) (k, n)."""
    if len(matrix) < MANY_STATES:
        return _weighted_sum(state, matrix)
    if matrix.shape[-1] == 1:
        return jnp.matmul(matrix[..., 0].T, state, precision=Precision.HIGHEST)
    return jnp.sum(state[:, None] * matrix, axis=0)


def moved_back(ratio, matrix):
    """Σ_j matrix_ij · ratio_j (k, n), from values of the next row."""
    is_shared = matrix.shape[-1] == 1
    if is_shared and len(matrix) >= MANY_STATES:
        return jnp.matmul(matrix[..., 0], ratio, precision=Precision.HIGHEST)
    if len(matrix) < MANY_STATES and matrix.shape[-1] == ratio.shape[-1]:
        return _weighted_sum(ratio, jnp.swapaxes(matrix, 0, 1))
    return jnp.sum(matrix * ratio, axis=1)


def _weighted_sum(weights, matrix):
    """Σ_i weights_i · matrix_i, term by term: XLA emits slow code for the sum along the first axis
    of a product of 4,096 numbers or more (CPU, 200 rows of 1,000 sequences with 3 states: 11.8 to
    1.1 ms)."""
    total = weights[0] * matrix[0]
    for i in range(1, len(matrix)):
        total = total + weights[i] * matrix[i]
    return total


def quotient(numerator, denominator):
    """A quotient that is 0 where the denominator is."""
    is_zero = denominator <= 0
    return jnp.where(is_zero, 0, divided(numerator, jnp.where(is_zero, 1, denominator)))
