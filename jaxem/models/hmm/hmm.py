"""Hidden Markov models over any bank of emissions."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.data.options import integer, one_of
from jaxem.data.sequences import Sequences
from jaxem.models.hmm import paths
from jaxem.models.hmm.domain import SequencesDomain
from jaxem.models.hmm.fused import fused_pass
from jaxem.models.hmm.posterior import of_paths, smoothed
from jaxem.models.hmm.prior import ChainPrior
from jaxem.models.hmm.stationary import best_transition, stationary
from jaxem.models.mixture import Mixture
from jaxem.numerics import chains
from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.derived import whitened
from jaxem.protocol.held import averaged
from jaxem.protocol.model import Bank, Model
from jaxem.protocol.priors import require_kind
from jaxem.protocol.restriction import restricted
from jaxem.protocol.spaces import REAL, SIMPLEX
from jaxem.protocol.starts import Start
from jaxem.protocol.units import inward, outward, standardized
from jaxem.wrappers.adopted import AdoptedBank


@pytree(eq=False)
class HMMParams:
    """initial (k,): p(z_1); transition (k, k): p(z_{t+1} | z_t), rows summing to 1; emissions: the
    params of the bank."""

    initial: Any
    transition: Any
    emissions: Any


class HMMStatistics(NamedTuple):
    first: Any
    transitions: Any
    emissions: Any


@pytree(static=("k", "initial"))
class HMM(Model):
    """A hidden Markov model of k states: z_1 ~ initial, z_{t+1} ~ transition[z_t], and row t is
    drawn from component z_t of a bank.

    Args:
      emissions: a bank, such as `Normal()`, `Poisson()` or `Product(...)`.
      k: the number of states, an int of 1 or more.
      initial: "free", or "stationary": the stationary distribution of the transition matrix.
      prior: a `ChainPrior` of the initial and transition probabilities, or None for maximum
        likelihood.

    Data: `Sequences`; weights are per sequence. A missing row contributes nothing. A transition
    probability of 0 stays 0, so that params with zeros fix the structure, such as left to right.

    Raises TypeError or ValueError where an argument is not one of these. Source: Rabiner 1989.
    """

    emissions: Any
    k: int
    initial: str = "free"
    prior: ChainPrior | None = None

    def __post_init__(self):
        object.__setattr__(self, "k", integer(self.k, "k", 1))
        one_of(self.initial, "initial", INITIAL)
        object.__setattr__(self, "emissions", _bank(self.emissions))
        require_kind(self, ChainPrior)

    @property
    def bank(self):
        """The bank of the emissions."""
        return self.emissions

    @property
    def domain(self):
        inner = self.emissions.domain
        return SequencesDomain(
            inner.words,
            components=self.k,
            remedy=inner.remedy,
            discrete=inner.discrete,
            least=1,
            bank=self.emissions,
        )

    def init(self, key, x, weights):
        """The emissions are those of a mixture at its default start, and transitions those between
        its components in time; half of every row is spread evenly."""
        rows, mixture = x.flat(), Mixture(self.emissions, self.k)
        row_weights = x.row_weights(weights)
        # A mixture has no empty data; missing rows have the values of an observed one.
        row_weights = jnp.where(row_weights.sum() > 0, row_weights, 1)
        params = Start.default(mixture, rows).params(mixture, key, rows, row_weights)
        r, _ = mixture.posterior(params, rows)
        r = r.responsibilities * (row_weights > 0)[:, None]
        pairs, first = 0, 0
        for part, w in zip(x.split(r), x.from_units(weights), strict=True):
            pairs += jnp.einsum("n,nti,ntj->ij", w, part[:, :-1], part[:, 1:], precision="highest")
            first += w @ part[:, 0]
        even = jnp.full((self.k, self.k), 1 / self.k, weights.dtype)
        transition = (_normalised(pairs, even) + even) / 2
        if self.initial == "stationary":
            return HMMParams(stationary(transition), transition, params.components)
        initial = (_normalised(first, even[0]) + even[0]) / 2
        return HMMParams(initial, transition, params.components)

    def posterior(self, params, x):
        inner, logs = self._logs(params, x)
        return smoothed(self.chain(params), logs, inner, x)

    def tempered(self, params, x, power):
        """The q ∝ p(z, x | params)^power."""
        inner, logs = self._logs(params, x)
        chain = tuple(
            jnp.where(a > 0, jnp.where(a > 0, a, 1) ** power, 0) for a in self.chain(params)
        )
        return smoothed(chain, [power * part for part in logs], inner, x)[0]

    def hardened(self, params, x):
        """(the q of the most probable path alone, log p(path, x | params) (n,))."""
        inner, logs = self._logs(params, x)
        chain = self.chain(params)
        pairs = zip(logs, x.stacks(), strict=True)
        found = [chains.best_path(*chain, part, stack.inside.T) for part, stack in pairs]
        value = x.to_units(
            [jnp.where(s.length > 0, v, 0) for (_, v), s in zip(found, x.stacks(), strict=True)]
        )
        return of_paths([path for path, _ in found], inner, x, self.k), value

    def sampled(self, key, params, x, draws: int):
        """The q of so many paths drawn from p(z | x)."""
        inner, filtered = self._filtered(params, x)
        transition = self.chain(params)[1]

        def draw(i):
            keys = jax.random.split(jax.random.fold_in(key, i), len(filtered))
            drawn = [
                chains.drawn_path(key, found.filtered, transition, stack.is_last.T)
                for key, found, stack in zip(keys, filtered, x.stacks(), strict=True)
            ]
            return of_paths(drawn, (), x, self.k)

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
        chain = self.chain(params)
        found = []
        for part, stack in zip(logs, x.stacks(), strict=True):
            filtered = chains.forward(*chain, part)
            evidence = jnp.where(stack.inside.T, filtered.evidence, 0)
            found.append(filtered._replace(evidence=evidence))
        return inner, found

    def answer(self, what, params, x, key=None):
        """An array (n, t, ...) for `paths`, of sequences of one padded length."""
        inside, is_last = x.padded().inside.T, x.padded().is_last.T
        chain = self.chain(params)
        if what == "best":
            logs = self._logs(params, x)[1][0]
            return chains.best_path(*chain, logs, inside)[0].T
        found = self._filtered(params, x)[1][0]
        if what == "drawn":
            return chains.drawn_path(key, found.filtered, chain[1], is_last).T
        if what == "last":
            return chains.last_state(found.filtered, is_last).T
        rows = found.filtered
        if what == "smoothed":
            rows = chains.backward(found, chain[1], is_last)[0]
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

    def forecast(self, params, x, steps: int):
        """A `Forecast`: the probabilities of the states in the rows after every sequence."""
        return paths.forecast(self, params, x, steps)

    def sample(self, key, params, n: int, length: int = 100):
        """n sequences of so many rows, as `Sequences`."""
        first_key, path_key, rows_key = jax.random.split(key, 3)
        logs = jnp.log(params.initial), jnp.log(params.transition)
        state = jax.random.categorical(first_key, logs[0], shape=(n,))

        def step(state, key):
            return jax.random.categorical(key, logs[1][state]), state

        z = jax.lax.scan(step, state, jax.random.split(path_key, length))[1].T
        rows = self.bank.sample(rows_key, params.emissions, z.reshape(-1))
        return Sequences(rows.reshape(n, length, -1))

    def chain(self, params):
        """(initial (k, 1), transition (k, k, 1)) for `chains`."""
        return params.initial[:, None], params.transition[..., None]

    def fused(self, x):
        return fused_pass(self, x, HMMStatistics)

    def statistics(self, params, x, q, weights):
        rows = q.rows * x.row_weights(weights)[:, None]
        return HMMStatistics(
            jnp.einsum("n,nk->k", weights, q.first, precision="highest"),
            jnp.einsum("n,nij->ij", weights, q.transitions, precision="highest"),
            self.bank.statistics(params.emissions, x.flat(), q.emissions, rows),
        )

    def maximize(self, params, stats):
        emissions = self.bank.maximize(params.emissions, stats.emissions)
        return self._assembled(params, stats, emissions)

    def restricted(self, held):
        """Any restriction of probabilities is exact: `Restricted.restrict` changes the free ones of
        a row. Rows that are tied share their counts."""
        inner = restricted(self.bank, held.emissions)
        is_free = held.transition.free and held.initial.free
        if inner is None or (self.initial == "stationary" and not is_free):
            return None

        def maximize(params, stats):
            emissions = inner(params.emissions, stats.emissions)
            transitions = averaged(held.transition.leaders, stats.transitions)
            return self._assembled(params, stats._replace(transitions=transitions), emissions)

        return maximize

    def _assembled(self, params, stats, emissions):
        first, pairs = stats.first, stats.transitions
        if self.prior is not None:
            first, pairs = self.prior.counts(first, pairs, params)
        if self.initial == "stationary":
            first = stats.first
            transition = best_transition(params.transition, first, pairs)
            return HMMParams(stationary(transition), transition, emissions)
        transition = _normalised(pairs, params.transition)
        return HMMParams(_normalised(first, params.initial), transition, emissions)

    def log_prior(self, params):
        inner = self.bank.log_prior(params.emissions)
        if self.prior is None:
            return inner
        initial = params.initial if self.initial == "free" else None
        return inner + self.prior.log_density(initial, params.transition)

    def log_prob(self, params, x):
        """log p(sequence | params), (n,)."""
        return x.to_units([chains.total(f.evidence) for f in self._filtered(params, x)[1]])

    def spaces(self, params):
        initial = SIMPLEX if self.initial == "free" else REAL
        return HMMParams(initial, SIMPLEX, self.bank.spaces(params.emissions))

    def n_parameters(self, params) -> int:
        """The number of free parameters. A probability of exactly 0 is none."""
        inner = self.bank.n_parameters(params.emissions)
        free = jnp.sum(jnp.maximum(jnp.sum(params.transition > 0, -1) - 1, 0))
        if self.initial == "free":
            free += jnp.maximum(jnp.sum(params.initial > 0) - 1, 0)
        return inner + int(free)

    def whitened(self, params, step):
        share = (stationary(params.transition) + 1 / self.k) / 2
        root = jnp.sqrt(share)

        def weighted(leaf):
            is_banked = leaf.shape[:1] == (self.k,)
            return leaf * root.reshape(-1, *(1,) * (leaf.ndim - 1)) if is_banked else leaf

        emissions = whitened(self.bank, params.emissions, step.emissions)
        transition = step.transition * jnp.sqrt(SIMPLEX.metric(params.transition))
        initial = step.initial * 0  # it counts for one row of a sequence
        return HMMParams(initial, weighted(transition), jax.tree.map(weighted, emissions))

    def degenerate(self, params):
        eps = jnp.finfo(params.transition.dtype).eps
        others = ~jnp.eye(self.k, dtype=bool)
        is_entered = jnp.any((params.transition > eps) & others, axis=0)
        is_lost = ~is_entered & (params.initial < eps)
        return jnp.any(self.bank.degenerate(params.emissions)) | jnp.any(is_lost)

    def _size_of_terms(self, params, stats):
        return self.bank._size_of_terms(params.emissions, stats.emissions)

    def standardize(self, x, weights):
        row_weights = x.row_weights(weights)
        inner = standardized(self.bank, x.flat(), row_weights)
        # The mean over all sequences, so that it is one number: only their lengths differ.
        total = jnp.where(row_weights > 0, row_weights * inner.log_volume, 0).sum()
        return inner._replace(
            model=dataclasses.replace(self, emissions=inner.model),
            data=x.with_flat(inner.data),
            log_volume=total / safe(weights.sum()),
        )

    def inward(self, units, params):
        return dataclasses.replace(params, emissions=inward(self.bank, units, params.emissions))

    def outward(self, units, params):
        return dataclasses.replace(params, emissions=outward(self.bank, units, params.emissions))


INITIAL = ("free", "stationary")


def _bank(bank):
    """The bank of emissions; TypeError unless it is one."""
    is_class = isinstance(bank, type)
    if not is_class and not isinstance(bank, Model) and defines(bank, "posterior"):
        return AdoptedBank(bank)
    if is_class or not isinstance(bank, Bank):
        name = bank.__name__ if is_class else type(bank).__name__
        remedy = f"write {name}(...)" if is_class else f"lift one model, jaxem.Each({name}(...))"
        raise TypeError(f"emissions must be a bank such as jaxem.Normal(), got {name}: {remedy}")
    return bank


def _normalised(counts, otherwise):
    """Rows of counts divided by their sums; those of `otherwise` where a row is empty."""
    total = counts.sum(-1)
    return jnp.where(is_empty(total)[..., None], otherwise, counts / safe(total)[..., None])
