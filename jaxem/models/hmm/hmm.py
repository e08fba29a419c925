"""Hidden Markov models over any bank of emissions."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxem.data.arrays import as_array
from jaxem.data.options import integer, one_of
from jaxem.models.gate import SoftmaxGate
from jaxem.models.hmm.chained import Chained
from jaxem.models.hmm.prior import ChainPrior
from jaxem.models.hmm.starts import (
    bank_of,
    followers,
    kept_positive,
    normalised,
    start,
    start_by_parts,
    start_in_cycle,
)
from jaxem.models.hmm.stationary import best_transition, stationary
from jaxem.numerics import chains
from jaxem.numerics.tree import is_traced, pytree
from jaxem.protocol.derived import whitened
from jaxem.protocol.held import averaged
from jaxem.protocol.model import name_of
from jaxem.protocol.priors import require_kind
from jaxem.protocol.spaces import REAL, SIMPLEX


@pytree(eq=False)
class HMMParams:
    """initial (k,): p(z_1); transition (k, k): p(z_{t+1} | z_t), rows summing to 1, or with a
    `SoftmaxGate` its coefficients (k, k, 1 + g); emissions: the params of the bank."""

    initial: Any
    transition: Any
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
        the sequences. The inputs of row t act on the transition from row t to row t + 1.
      prior: a `ChainPrior` of the initial and transition probabilities, or None for maximum
        likelihood.

    Data: `Sequences`; weights are per sequence. A missing row contributes nothing. A transition
    probability of 0 stays 0, so that params with zeros fix the structure. So do the starts
    init="left_to_right", from state 0 to the last one, which is not left, and init="cyclic".
    `fit(HMM(Normal(), k=2), Sequences([x0, x1]), key=0)` fits two sequences.

    Memory of a fit: about ten arrays of rows × states. On a CPU, where the log density of the bank
    is linear in features (normal, Poisson, categorical), each has at most 2**23 numbers, since
    longer sequences are passed in blocks of rows. Else they are of all rows.

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
        object.__setattr__(self, "emissions", bank_of(self.emissions))
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
    def takes_inputs(self):
        return self.transitions is not None

    def init(self, key, x, weights):
        """The emissions are those of a mixture at its default start, and transitions those between
        its components in time; half of the probability of every row is spread evenly."""
        initial, transition, emissions = self._free(start(self, key, x, weights))
        if self.transitions is not None:
            transition = self.transitions.constant(transition, x.widths[1])
        return HMMParams(initial, transition, emissions)

    def template(self, is_cyclic):
        name = "cyclic" if is_cyclic else "left_to_right"
        if self.transitions is not None:
            raise ValueError(
                f"init={name!r} needs transitions of probability 0, and those of SoftmaxGate are "
                "above 0: leave init=None, or transitions=None"
            )
        if self.initial == "stationary" and not is_cyclic:
            raise ValueError(
                f"init={name!r} begins in the first state, and its stationary distribution is the "
                'last one alone: leave initial="free"'
            )
        return super().template(is_cyclic)

    def _free(self, begin, allowed=None):
        """(initial, transition, emissions) from a `ChainStart`; allowed: transitions (k, k), 1 or
        0, or None for all."""
        even = jnp.full((self.k, self.k), 1 / self.k, begin.pairs.dtype)
        first, pairs, shares = begin.first, begin.pairs, even
        if allowed is not None:
            shares, pairs = normalised(allowed.astype(pairs.dtype), even), pairs * allowed
        transition = (normalised(pairs, shares) + shares) / 2
        if self.initial == "stationary":
            return stationary(transition), transition, begin.emissions
        initial = (normalised(first, even[0]) + even[0]) / 2
        return initial, transition, begin.emissions

    def _cyclic(self, key, x, weights):
        begin = start_in_cycle(self, key, x, weights)
        return HMMParams(*self._free(begin, followers(self.k, True, has_stays=True)))

    def _left_to_right(self, key, x, weights):
        """Emissions from k parts of every sequence, and the stays of their mean length."""
        emissions, length = start_by_parts(self, key, x, weights)
        moves, one = 1 / jnp.maximum(length, 2), jnp.eye(self.k, dtype=weights.dtype)
        rows = followers(self.k, False, has_stays=True) * jnp.where(one > 0, 1 - moves, moves)
        return HMMParams(one[0], normalised(rows, one), emissions)

    def sample(self, key, params, n: int, length: int = 100, inputs=None):
        """As in `SemiMarkov`: n sequences of `length` rows. inputs (n, length, g), needed with a
        `SoftmaxGate` and for it alone: those of row t act on the transition to row t + 1, and the
        `Sequences` carry them. ValueError where they are missing, or of another shape."""
        if (inputs is None) == self.takes_inputs:
            raise ValueError(
                f"{name_of(self)} has transitions that depend on inputs: give "
                f"inputs=... of shape {self._shape_of_inputs(params, n, length)}"
                if self.takes_inputs
                else f"inputs are given, {name_of(self)} takes none: give "
                "transitions=jaxem.SoftmaxGate(), or leave them out"
            )
        if inputs is not None:
            inputs, expected = as_array(inputs, "inputs"), self._shape_of_inputs(params, n, length)
            if inputs.shape != expected:
                raise ValueError(f"inputs must have shape {expected}, got {inputs.shape}")
            if not is_traced(inputs) and not np.isfinite(inputs).all():
                raise ValueError("inputs hold values that are not finite: give finite numbers")
        return self._sequences(key, params, n, length, inputs)

    def _shape_of_inputs(self, params, n, length):
        return n, length, params.transition.shape[-1] - self.transitions.intercept

    def _path(self, keys, params, n, length, inputs=None):
        state, z = jax.random.categorical(keys[0], jnp.log(params.initial), shape=(n,)), None
        if self.transitions is not None:
            z = jnp.moveaxis(self.transitions.covariates(jnp.asarray(inputs)), 1, 0)  # (t, n, m)

        def step(state, now):
            key, z = now
            rows = params.transition[state]
            logits = jnp.log(rows) if z is None else (rows * z[:, None]).sum(-1)
            return jax.random.categorical(key, logits), state

        return jax.lax.scan(step, state, (jax.random.split(keys[1], length), z))[1].T

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

    def _tied(self, held):
        is_free = held.transition.free and held.initial.free
        is_plain = self.initial == "free" and self.transitions is None
        if not (is_free or is_plain):
            return None
        if is_free:
            return lambda stats: stats
        leaders = held.transition.leaders
        return lambda stats: stats._replace(transitions=averaged(leaders, stats.transitions))

    def _assembled(self, params, stats, emissions):
        found = self._estimated(params, stats, emissions)
        initial, transition = found.initial, found.transition
        if self.initial == "free":
            initial = kept_positive(initial, params.initial)
        if self.transitions is None:
            transition = kept_positive(transition, params.transition)
        return HMMParams(initial, transition, emissions)

    def _estimated(self, params, stats, emissions):
        """The params of an M-step, before entries that underflow are kept above 0."""
        first, pairs = stats.first, stats.transitions
        if self.transitions is not None:
            transition = self.transitions.maximize(params.transition, pairs)
            return HMMParams(normalised(first, params.initial), transition, emissions)
        if self.prior is not None:
            first, pairs = self.prior.counts(first, pairs, params)
        if self.initial == "stationary":
            first = stats.first
            transition = best_transition(params.transition, first, pairs)
            return HMMParams(stationary(transition), transition, emissions)
        transition = normalised(pairs, params.transition)
        return HMMParams(normalised(first, params.initial), transition, emissions)

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
        return super().degenerate(params)

    def _rows(self, stats):
        pairs = stats.transitions if self.transitions is None else stats.transitions.count
        return stats.first.sum() + pairs.sum()

    def standardize(self, x, weights):
        found = super().standardize(x, weights)
        if self.transitions is None:
            return found
        scale = stop_gradient(x.largest_inputs())
        self.transitions.require_width(len(scale))
        data = found.data.with_inputs(lambda inputs: inputs / scale)
        gate = self.transitions.standardized(scale)
        model = dataclasses.replace(found.model, transitions=gate)
        return found._replace(model=model, data=data, units=(found.units, scale))

    def inward(self, units, params):
        if self.transitions is None:
            return super().inward(units, params)
        params = super().inward(units[0], params)
        transition = self.transitions.rescaled(params.transition, units[1])
        return dataclasses.replace(params, transition=transition)

    def outward(self, units, params):
        if self.transitions is None:
            params = super().outward(units, params)
            if self.initial == "free":
                return params
            return dataclasses.replace(params, initial=stationary(params.transition))
        params = super().outward(units[0], params)
        transition = self.transitions.rescaled(params.transition, 1 / units[1])
        return dataclasses.replace(params, transition=transition)


INITIAL = ("free", "stationary")
