"""What follows from the chain of a model and the bank of its emissions: q, scores and paths."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxem.models.hmm import paths
from jaxem.models.hmm.posterior import of_paths, smoothed
from jaxem.numerics import chains
from jaxem.protocol.model import Model


class Chained(Model):
    """The base of models with `k` states, a `bank` of emissions, and `chain(params, stack)`, the
    `chains.Chain` of a stack of sequences."""

    def rows_before(self, x):
        """The sequences, each row with the rows before it that the bank conditions on."""
        return x.lagged(self.domain.lags)

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
        """The q of so many paths drawn from p(z | x)."""
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
        """An array (n, t, ...) for `paths`, of sequences of one padded length."""
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
            rows = chain.backward(found, is_last)[0]
        return jnp.moveaxis(rows, 2, 0)

    def filter(self, params, x):
        """p(z_t | x_1 … x_t), a list of arrays (t_i, k)."""
        return paths.filtered(self, params, x)

    def smooth(self, params, x):
        """p(z_t | all rows of the sequence), a list of arrays (t_i, k)."""
        return paths.smoothed(self, params, x)

    def viterbi(self, params, x):
        """The most probable path of states, a list of integer arrays (t_i,)."""
        return paths.best(self, params, x)

    def draw(self, key, params, x):
        """Paths of states drawn from p(z | x), a list of integer arrays (t_i,)."""
        return paths.drawn(self, key, params, x)

    def forecast(self, params, x, steps: int, inputs=None):
        """A `Forecast`: the probabilities of the states in the rows after every sequence. inputs
        (n, steps, g): of the last row of each and of the rows that follow but the last."""
        return paths.forecast(self, params, x, steps, inputs)

    def log_prob(self, params, x):
        """log p(sequence | params), (n,)."""
        x = self.rows_before(x)
        return x.to_units([chains.total(f.evidence) for f in self._filtered(params, x)[1]])
