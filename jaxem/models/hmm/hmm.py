"""Hidden Markov models over any bank of emissions."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxem.data.options import integer, one_of
from jaxem.data.sequences import Sequences
from jaxem.models.gate import SoftmaxGate
from jaxem.models.hmm.chained import Chained
from jaxem.models.hmm.domain import SequencesDomain
from jaxem.models.hmm.fused import fused_pass
from jaxem.models.hmm.prior import ChainPrior
from jaxem.models.hmm.stationary import best_transition, stationary
from jaxem.models.mixture import Mixture
from jaxem.numerics import chains
from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import Sampled, defines, has
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.derived import whitened
from jaxem.protocol.held import averaged
from jaxem.protocol.model import Bank, Model, name_of
from jaxem.protocol.priors import require_kind
from jaxem.protocol.restriction import restricted
from jaxem.protocol.spaces import REAL, SIMPLEX
from jaxem.protocol.starts import Start
from jaxem.protocol.units import inward, outward, standardized
from jaxem.wrappers.adopted import AdoptedBank


@pytree(eq=False)
class HMMParams:
    """initial (k,): p(z_1); transition (k, k): p(z_{t+1} | z_t), rows summing to 1, or with a
    `SoftmaxGate` its coefficients (k, k, 1 + g); emissions: the params of the bank."""

    initial: Any
    transition: Any
    emissions: Any


class HMMStatistics(NamedTuple):
    first: Any
    transitions: Any
    emissions: Any


@pytree(static=("k", "initial"))
class HMM(Chained):
    """A hidden Markov model of k states: z_1 ~ initial, z_{t+1} ~ transition[z_t], and row t is
    drawn from component z_t of a bank.

    Args:
      emissions: a bank, such as `Normal()`, `Poisson()` or `Product(...)`.
      k: the number of states, an int of 1 or more.
      initial: "free", or "stationary": the stationary distribution of the transition matrix.
      transitions: None, or a `SoftmaxGate`: transition probabilities that depend on the inputs of
        the sequences, those of row t on the transition from row t to row t + 1.
      prior: a `ChainPrior` of the initial and transition probabilities, or None for maximum
        likelihood.

    Data: `Sequences`; weights are per sequence. A missing row contributes nothing. A transition
    probability of 0 stays 0, so that params with zeros fix the structure, such as left to right.

    Raises TypeError or ValueError where an argument is not one of these. Source: Rabiner 1989.
    """

    emissions: Any
    k: int
    initial: str = "free"
    transitions: SoftmaxGate | None = None
    prior: ChainPrior | None = None

    def __post_init__(self):
        object.__setattr__(self, "k", integer(self.k, "k", 1))
        one_of(self.initial, "initial", INITIAL)
        object.__setattr__(self, "emissions", _bank(self.emissions))
        require_kind(self, ChainPrior)
        if self.transitions is None:
            return
        if not isinstance(self.transitions, SoftmaxGate):
            raise TypeError(
                f"transitions must be jaxem.SoftmaxGate(...) or None, got {self.transitions!r:.60}"
            )
        if self.prior is not None or self.initial == "stationary":
            raise ValueError(
                "transitions that depend on inputs have no stationary distribution, and their "
                'prior is that of SoftmaxGate: leave initial="free" and prior=None'
            )

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
            lags=inner.lags,
            bank=self.emissions,
            inputs=self.transitions is not None,
        )

    def init(self, key, x, weights):
        """The emissions are those of a mixture at its default start, and transitions those between
        its components in time; half of every row is spread evenly."""
        x = self.rows_before(x)
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
        if self.transitions is not None:
            transition = self.transitions.constant(transition, x.widths[1])
        return HMMParams(initial, transition, params.components)

    def sample(self, key, params, n: int, length: int = 100):
        """n sequences of so many rows, as `Sequences`. NotImplementedError where transitions depend
        on inputs, and where the bank has no draws of its own, as `Autoregression`."""
        if self.transitions is not None or not has(self.bank, Sampled):
            reason = "its transitions depend on inputs"
            if self.transitions is None:
                reason = f"{name_of(self.bank)} does not define sample(key, params, z)"
            raise NotImplementedError(f"{name_of(self)} draws no sequences here: {reason}")
        first_key, path_key, rows_key = jax.random.split(key, 3)
        logs = jnp.log(params.initial), jnp.log(params.transition)
        state = jax.random.categorical(first_key, logs[0], shape=(n,))

        def step(state, key):
            return jax.random.categorical(key, logs[1][state]), state

        z = jax.lax.scan(step, state, jax.random.split(path_key, length))[1].T
        rows = self.bank.sample(rows_key, params.emissions, z.reshape(-1))
        return Sequences(rows.reshape(n, length, -1))

    def chain(self, params, stack):
        """The `chains.Chain` of a stack of sequences."""
        initial, gate = params.initial, self.transitions
        if self.initial == "stationary":  # an accelerator moves both
            initial = stationary(params.transition)
        initial = initial[:, None]
        if gate is None:
            return chains.Chain(initial, params.transition[..., None])
        inputs = jnp.moveaxis(gate.covariates(stack.inputs), 0, 2)  # (t, m, n)
        matrix = partial(gate.probabilities, params.transition)
        return chains.Chain(initial, matrix, inputs, gate.summed(params.transition))

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
        inner = restricted(self.bank, held.emissions)
        is_free = held.transition.free and held.initial.free
        is_plain = self.initial == "free" and self.transitions is None
        if inner is None or not (is_free or is_plain):
            return None
        if is_free:
            return lambda params, stats: self._assembled(
                params, stats, inner(params.emissions, stats.emissions)
            )

        def maximize(params, stats):
            emissions = inner(params.emissions, stats.emissions)
            transitions = averaged(held.transition.leaders, stats.transitions)
            return self._assembled(params, stats._replace(transitions=transitions), emissions)

        return maximize

    def _assembled(self, params, stats, emissions):
        found = self._estimated(params, stats, emissions)
        if self.transitions is not None:
            return dataclasses.replace(found, initial=kept_positive(found.initial, params.initial))
        return dataclasses.replace(
            found,
            initial=kept_positive(found.initial, params.initial),
            transition=kept_positive(found.transition, params.transition),
        )

    def _estimated(self, params, stats, emissions):
        """The params of an M-step, before entries that underflow are kept above 0."""
        first, pairs = stats.first, stats.transitions
        if self.transitions is not None:
            transition = self.transitions.maximize(params.transition, pairs)
            return HMMParams(_normalised(first, params.initial), transition, emissions)
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
        if self.transitions is not None:
            return inner + self.transitions.log_prior(params.transition)
        if self.prior is None:
            return inner
        initial = params.initial if self.initial == "free" else None
        return inner + self.prior.log_density(initial, params.transition)

    def spaces(self, params):
        initial = SIMPLEX if self.initial == "free" else REAL
        transition = SIMPLEX if self.transitions is None else REAL
        return HMMParams(initial, transition, self.bank.spaces(params.emissions))

    def n_parameters(self, params) -> int:
        """The number of free parameters. A probability of exactly 0 is none."""
        inner = self.bank.n_parameters(params.emissions)
        is_free = np.asarray(params.transition) > 0
        free = np.maximum(is_free.sum(-1) - 1, 0).sum()
        if self.transitions is not None:
            free = params.transition[:, 1:].size
        if self.initial == "free":
            free += max((np.asarray(params.initial) > 0).sum() - 1, 0)
        return inner + int(free)

    def whitened(self, params, step):
        even = jnp.full(self.k, 1 / self.k, params.transition.dtype)
        share = even if self.transitions else (stationary(params.transition) + even) / 2
        root = jnp.sqrt(share)

        def weighted(leaf):
            is_banked = leaf.shape[:1] == (self.k,)
            return leaf * root.reshape(-1, *(1,) * (leaf.ndim - 1)) if is_banked else leaf

        emissions = whitened(self.bank, params.emissions, step.emissions)
        metric = 1 / (4 * self.k) if self.transitions else SIMPLEX.metric(params.transition)
        transition = step.transition * jnp.sqrt(metric)
        initial = step.initial * 0  # it counts for one row of a sequence
        return HMMParams(initial, weighted(transition), jax.tree.map(weighted, emissions))

    def degenerate(self, params):
        if self.transitions is not None:
            return jnp.any(self.bank.degenerate(params.emissions))
        eps = jnp.finfo(params.transition.dtype).eps
        others = ~jnp.eye(self.k, dtype=bool)
        is_entered = jnp.any((params.transition > eps) & others, axis=0)
        is_lost = ~is_entered & (params.initial < eps)
        return jnp.any(self.bank.degenerate(params.emissions)) | jnp.any(is_lost)

    def _size_of_terms(self, params, stats):
        pairs = stats.transitions if self.transitions is None else stats.transitions.count
        rows = stats.first.sum() + pairs.sum()
        return self.bank._size_of_terms(params.emissions, stats.emissions) + ROW_ROUNDING * rows

    def standardize(self, x, weights):
        row_weights = x.row_weights(weights)
        inner = standardized(self.bank, x.flat(), row_weights)
        # The mean over all sequences, so that it is one number: only their lengths differ.
        counted = self.rows_before(x).row_weights(weights)
        total = jnp.where(counted > 0, counted * _along(inner.log_volume, counted), 0).sum()
        scale, data = None, x.with_flat(inner.data)
        if self.transitions is not None:
            scale = stop_gradient(x.largest_inputs())
            data = data.with_inputs(lambda inputs: inputs / scale)
        return inner._replace(
            model=dataclasses.replace(self, emissions=inner.model),
            data=data,
            units=(inner.units, scale),
            log_volume=total / safe(weights.sum()),
        )

    def inward(self, units, params):
        return self._converted(params, inward(self.bank, units[0], params.emissions), units[1])

    def outward(self, units, params):
        emissions = outward(self.bank, units[0], params.emissions)
        scale = None if units[1] is None else 1 / units[1]
        return self._converted(params, emissions, scale)

    def _converted(self, params, emissions, scale):
        transition = params.transition
        if self.transitions is not None:
            transition = self.transitions.rescaled(transition, scale)
        return dataclasses.replace(params, transition=transition, emissions=emissions)


ROW_ROUNDING = 4.0
"""The rounding error of a row, whose probabilities are normalised anew, in those of the number 1
(100 float32 fits of 120 counts without structure: 18 ended as DECREASED without it, with it
none)."""

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


def _along(volume, rows):
    """log volumes, one number or one a row, for as many rows: with rows before them, all of one."""
    return volume if jnp.ndim(volume) == 0 or volume.shape == rows.shape else volume[: len(rows)]


def kept_positive(probabilities, previous):
    """Probabilities of which those that were above 0 stay so where they underflow: a probability of
    exactly 0 is one that was given, and no free parameter."""
    limits = jnp.finfo(probabilities.dtype)
    least = jnp.maximum(probabilities, limits.tiny / limits.eps)
    return jnp.where(previous > 0, least, probabilities)


def _normalised(counts, otherwise):
    """Rows of counts divided by their sums; those of `otherwise` where a row is empty."""
    total = counts.sum(-1)
    return jnp.where(is_empty(total)[..., None], otherwise, counts / safe(total)[..., None])
