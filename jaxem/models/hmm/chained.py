"""What follows from the chain of a model and the bank of its emissions: q, scores and paths."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from jaxem.data.options import integer
from jaxem.data.sequences import Sequences
from jaxem.models.hmm import paths
from jaxem.models.hmm.domain import SequencesDomain
from jaxem.models.hmm.fused import fused_pass
from jaxem.models.hmm.posterior import HMMStatistics, of_paths, smoothed
from jaxem.numerics import chains
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import safe
from jaxem.protocol.model import Model, name_of
from jaxem.protocol.restriction import restricted
from jaxem.protocol.units import inward, outward, standardized

ROW_ROUNDING = 4.0
"""The rounding error of a row, whose probabilities are normalised anew, in those of the number 1
(100 float32 fits of 120 counts without structure: 18 ended as DECREASED without it, with it
none)."""


class Chained(Model):
    """The base of models with `k` states and a bank of `emissions`.

    A model defines `chain(params, stack)`, the `chains.Chain` or `segments.Segments` of a stack of
    sequences; `_assembled(params, stats, emissions)`, the params of an M-step with those of its
    emissions; `_tied(held)`, a function of the statistics that shares those of tied params, None
    where the M-step has no closed form; `_rows(stats)`, the number of rows; `_path(keys, params,
    n, length, inputs)`, states (n, length), by inputs (n, length, g) or None; and the starts
    `_left_to_right` and `_cyclic`, functions of (key, x, weights).
    """

    takes_inputs = None
    """Whether the sequences have inputs; None: never."""

    @property
    def bank(self):
        """The bank of the emissions."""
        return self.emissions

    @property
    def domain(self):
        inner = self.bank.domain
        return SequencesDomain(
            inner.words,
            components=self._states,
            remedy=inner.remedy,
            discrete=inner.discrete,
            least=1,
            lags=inner.lags,
            bank=self.bank,
            inputs=self.takes_inputs,
        )

    @property
    def _states(self) -> int:
        """The number of states of the chain."""
        return self.k

    def rows_before(self, x):
        """The sequences x, each row with the rows before it that the bank conditions on."""
        return x.lagged(self.domain.lags)

    def template(self, is_cyclic):
        """A function of (key, x, weights) that returns params to start from, whose states follow
        each other from left to right or, where is_cyclic, in a cycle. ValueError where the model
        has no such structure."""
        return self._cyclic if is_cyclic else self._left_to_right

    def posterior(self, params, x):
        x = self.rows_before(x)
        inner, logs = self._logs(params, x)
        return smoothed(partial(self.chain, params), logs, inner, x)

    def tempered(self, params, x, power):
        """The q ∝ p(z, x | params)^power."""
        x = self.rows_before(x)
        inner, logs = self._logs(params, x)

        def chain(stack):
            return self.chain(params, stack).power(power)

        return smoothed(chain, [power * part for part in logs], inner, x)[0]

    def hardened(self, params, x):
        """(the q of the most probable path alone, log p(path, x | params) (n,))."""
        x, chain = self.rows_before(x), partial(self.chain, params)
        inner, logs = self._logs(params, x)
        pairs = zip(logs, x.stacks(), strict=True)
        found = [chain(stack).best_path(part, stack.inside.T) for part, stack in pairs]
        value = x.to_units(
            [jnp.where(s.length > 0, v, 0) for (_, v), s in zip(found, x.stacks(), strict=True)]
        )
        return of_paths(chain, [path for path, _ in found], inner, x), value

    def sampled(self, key, params, x, draws: int):
        """The q of `draws` paths drawn from p(z | x)."""
        x, chain = self.rows_before(x), partial(self.chain, params)
        inner, filtered = self._filtered(params, x)

        def draw(i):
            keys = jax.random.split(jax.random.fold_in(key, i), len(filtered))
            drawn = [
                chain(stack).drawn_path(key, found.filtered, stack.is_last.T)
                for key, found, stack in zip(keys, filtered, x.stacks(), strict=True)
            ]
            return of_paths(chain, drawn, (), x)

        def add(i, total):
            return jax.tree.map(jnp.add, total, draw(i))

        total = jax.lax.fori_loop(1, draws, add, draw(0))
        return jax.tree.map(lambda a: a / draws, total)._replace(emissions=inner)

    def _logs(self, params, x):
        """(the bank's posterior of every row, log densities (t, k, m) of every stack)."""
        inner, logs = self.bank.posterior(params.emissions, x.flat())
        found = []
        for part, stack in zip(x.split(logs), x.stacks(), strict=True):
            observed = stack.observed & stack.inside
            found.append(jnp.moveaxis(jnp.where(observed[..., None], part, 0), 0, 2))
        return inner, found

    def _filtered(self, params, x):
        """(the bank's posterior of every row, the `chains.Filtered` of every stack)."""
        inner, logs = self._logs(params, x)
        found = []
        for part, stack in zip(logs, x.stacks(), strict=True):
            filtered = self.chain(params, stack).forward(part)
            evidence = jnp.where(stack.inside.T, filtered.evidence, 0)
            found.append(filtered._replace(evidence=evidence))
        return inner, found

    def answer(self, what, params, x, key=None):
        """An array (n, t, ...) for `paths`, of sequences x of one padded length. what:
        "filtered", "smoothed", "best", "drawn" or "last"."""
        x = self.rows_before(x)
        stack = x.padded()
        chain, is_last = self.chain(params, stack), stack.is_last.T
        if what == "best":
            logs = self._logs(params, x)[1][0]
            return chain.visited(chain.best_path(logs, stack.inside.T)[0]).T
        found = self._filtered(params, x)[1][0]
        if what == "drawn":
            return chain.visited(chain.drawn_path(key, found.filtered, is_last)).T
        if what == "last":
            return chains.last_state(found.filtered, is_last)
        rows = chain.states(found.filtered)
        if what == "smoothed":
            rows = chain.backward(found, is_last).marginals
        return jnp.moveaxis(rows, 2, 0)

    def filter(self, params, x):
        """p(z_t | x_1 … x_t) of `Sequences` x, a list of arrays (t_i, k) (Rabiner 1989)."""
        return paths.filtered(self, params, x)

    def smooth(self, params, x):
        """p(z_t | all rows of the sequence) of `Sequences` x, a list of arrays (t_i, k)."""
        return paths.smoothed(self, params, x)

    def viterbi(self, params, x):
        """The most probable path of states of `Sequences` x, a list of integer arrays (t_i,)
        (Viterbi 1967)."""
        return paths.best(self, params, x)

    def draw(self, key, params, x):
        """Paths of states drawn from p(z | x), a list of integer arrays (t_i,)."""
        return paths.drawn(self, key, params, x)

    def forecast(self, params, x, steps: int, inputs=None):
        """A `Forecast`: the probabilities of the states in the rows after every sequence. inputs
        (n, steps, g): those of the last row of each sequence and of the first steps − 1 rows after
        it."""
        return paths.forecast(self, params, x, steps, inputs)

    def log_prob(self, params, x):
        """log p(sequence | params) of every sequence of x, (n,)."""
        x = self.rows_before(x)
        return x.to_units([chains.total(f.evidence) for f in self._filtered(params, x)[1]])

    def sample(self, key, params, n: int, length: int = 100):
        """n sequences of `length` rows, as `Sequences`. NotImplementedError where the bank defines
        no draws.

        With `Autoregression` the first `lags` rows of a sequence are all the fixed point of the
        regression of the first state, and the states begin after them."""
        return self._sequences(key, params, n, length)

    def _sequences(self, key, params, n, length, inputs=None):
        lags, bank = self.domain.lags, self.bank
        name = "sample_next" if lags else "sample"
        if not defines(bank, name):
            raise NotImplementedError(
                f"{name_of(self)} draws no sequences here: {name_of(bank)} does not define {name}"
            )
        n, length = integer(n, "n", 1), integer(length, "length", 1 + lags)
        params = jax.tree.map(jnp.asarray, params)
        *keys, rows_key = jax.random.split(key, 3)
        acting = None if inputs is None else inputs[:, lags:]
        z = self._path(keys, params, n, length - lags, acting)
        if not lags:
            rows = bank.sample(rows_key, params.emissions, z.reshape(-1))
            return Sequences(rows.reshape(n, length, -1), inputs)
        first = bank.fixed_point(params.emissions, z[:, 0])

        def step(before, now):
            key, z = now
            row = bank.sample_next(key, params.emissions, z, before)
            before = jnp.concatenate([row, before[:, : -row.shape[1]]], 1)
            return before, row

        row_keys = jax.random.split(rows_key, length - lags)
        rows = jax.lax.scan(step, jnp.tile(first, lags), (row_keys, z.T))[1]
        begin = jnp.repeat(first[:, None], lags, 1)
        return Sequences(jnp.concatenate([begin, jnp.moveaxis(rows, 0, 1)], 1), inputs)

    def fused(self, x):
        return fused_pass(self, x, HMMStatistics)

    def statistics(self, params, x, q, weights):
        x = self.rows_before(x)
        rows = q.rows * x.row_weights(weights)[:, None]
        return HMMStatistics(
            jnp.einsum("n,nk->k", weights, q.first, precision="highest"),
            jax.tree.map(
                lambda a: jnp.tensordot(weights, a, 1, precision="highest"), q.transitions
            ),
            self.bank.statistics(params.emissions, x.flat(), q.emissions, rows),
        )

    def maximize(self, params, stats):
        emissions = self.bank.maximize(params.emissions, stats.emissions)
        return self._assembled(params, stats, emissions)

    def restricted(self, held):
        """Any restriction of probabilities is exact: `Restricted.restrict` changes the free ones of
        a row. Rows that are tied share their counts."""
        inner, tied = restricted(self.bank, held.emissions), self._tied(held)
        if inner is None or tied is None:
            return None
        return lambda params, stats: self._assembled(
            params, tied(stats), inner(params.emissions, stats.emissions)
        )

    def degenerate(self, params):
        eps = jnp.finfo(params.transition.dtype).eps
        others = ~jnp.eye(self.k, dtype=bool)
        is_entered = jnp.any((params.transition > eps) & others, axis=0)
        is_lost = ~is_entered & (params.initial < eps)
        return jnp.any(self.bank.degenerate(params.emissions)) | jnp.any(is_lost)

    def _size_of_terms(self, params, stats):
        inner = self.bank._size_of_terms(params.emissions, stats.emissions)
        return inner + ROW_ROUNDING * self._rows(stats)

    def standardize(self, x, weights):
        row_weights = x.row_weights(weights)
        inner = standardized(self.bank, x.flat(), row_weights)
        # The mean over all sequences, so that it is one number: only their lengths differ.
        counted = self.rows_before(x).row_weights(weights)
        total = jnp.where(counted > 0, counted * _along(inner.log_volume, counted), 0).sum()
        return inner._replace(
            model=dataclasses.replace(self, emissions=inner.model),
            data=x.with_flat(inner.data),
            log_volume=total / safe(weights.sum()),
        )

    def inward(self, units, params):
        emissions = inward(self.bank, units, params.emissions)
        return dataclasses.replace(params, emissions=emissions)

    def outward(self, units, params):
        emissions = outward(self.bank, units, params.emissions)
        return dataclasses.replace(params, emissions=emissions)


def _along(volume, rows):
    """log volumes, one number or one a row, for as many rows: with rows before them, all of one."""
    return volume if jnp.ndim(volume) == 0 or volume.shape == rows.shape else volume[: len(rows)]
