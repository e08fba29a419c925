"""EM: one map of the parameters, with the objective at the parameters it started from.

A rule for q and a rule for θ make the map. Here are the exact ones; `posterior_rules` and
`parameter_rules` hold the others.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics.rounding import ROUNDING
from jaxem.numerics.tree import float_dtype, pytree
from jaxem.passes.chunks import Sums, row_sum
from jaxem.passes.collect import collect, is_large
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.spaces import return_time


class Signal(NamedTuple):
    """What a stopping rule should know of a step beside its objective; None where there is nothing
    to know.

    gain: the gain of a step that tells something, else NaN, of methods whose steps are not all
    alike. to_come: the gain that the method expects still to come. error: the bound on the error of
    `gain`, where that is better known than the objective. restarted: whether the objectives of
    earlier steps say nothing about this one, as under another temperature. return_steps: how many
    steps such as this one bring a number back that grows from next to 0 (`spaces.return_time`).
    """

    gain: Any = None
    to_come: Any = None
    error: Any = None
    restarted: Any = None
    return_steps: Any = None


class Evaluation(NamedTuple):
    """What one pass over the data at `params` tells.

    proposal: what to evaluate next, M(params) if exact. objective: log-likelihood + log prior AT
    params. magnitude: Σ w·(|ℓ| + 1), the scale of the objective's rounding. memory: what the method
    remembers. accepted: whether params are kept; None: always. signal: for the stopping rule.
    """

    proposal: Any
    objective: Any
    magnitude: Any
    memory: Any = ()
    accepted: Any = None
    signal: Signal = Signal()

    @property
    def noise(self):
        """How far rounding may move the objective."""
        return ROUNDING * jnp.finfo(self.objective.dtype).eps * self.magnitude


class Expectation(NamedTuple):
    """What a rule for q says at params: q, F(q, params) per unit (n,), what it remembers, and
    `Signal.restarted`."""

    q: Any
    value: Any
    memory: Any = ()
    restarted: Any = None


@pytree
class Exact:
    """The maximiser of F in its coordinate: the posterior for q, the model's own M-step for θ.

    Rules for q say with `measures_evidence` whether the objective they report is the log-likelihood
    (else a free energy below it), and all rules with `steady` whether they are one and the same map
    at every evaluation, as accelerators need; `several`: whether they are for models with several
    latent variables.
    """

    measures_evidence = True
    steady = True
    several = False

    def stationary(self, model, closed):
        """A `StationaryMap` with the fixed points of fits by this rule for q, or None where none is
        known; closed: whether the model has an M-step in closed form."""
        from jaxem.methods.stationary import StationaryMap  # plain fits start sooner without it

        return StationaryMap(closed) if type(self) is Exact else None

    def start(self, model, params, x, weights):
        """What the rule remembers of a climb that has evaluated nothing."""
        return ()

    def expect(self, model, params, x, weights, memory) -> Expectation:
        """q at params, and F there."""
        return Expectation(*model.posterior(params, x))

    def onward(self, model, proposal, memory):
        """What to evaluate next, from what the M-step proposes and the memory after the E-step."""
        return proposal

    def improve(self, model, params, x, weights, q, memory):
        """(params that do not lower F, memory) from those at which q was taken."""
        return model.maximize(params, model.statistics(params, x, q, weights)), memory


class Given(NamedTuple):
    """What an M-step takes that looks at the units again: data, weights (n,) and q."""

    x: Any
    weights: Any
    q: Any


def knows_rest(rule) -> bool:
    """Whether a rule says where fits by it stand still."""
    return callable(getattr(rule, "stationary", None))


def collects(e_step) -> bool:
    """Whether a rule for q writes `collect(model, params, x, weights, memory) -> (Sums, memory)`
    itself, in place of `expect`; it goes with the exact M-step alone."""
    return callable(getattr(e_step, "collect", None))


class Memory(NamedTuple):
    """What each part of a method remembers."""

    e_step: Any
    m_step: Any
    accelerator: Any


@pytree
class EM:
    """Coordinate ascent on the free energy F(q, θ) (Neal & Hinton 1998).

    Args:
      e_step: the rule for q: `Exact()`, `Hard()`, `Tempered()`, `Incremental()`, `Stochastic()`,
        `Constrained(...)`, `Variational()` or `MeanField()`.
      m_step: the rule for θ: `Exact()`, `Gradient(...)` or `Blocks(...)`. A model that has no
        M-step of its own takes `Gradient()` where this is `Exact()`.
      accelerator: None, `SQUAREM()` or `Anderson()`: fewer evaluations of the EM map where it is
        slow.

    Params that are known, kept or equal are no rule but a smaller model: `jaxem.Restricted`.

    Raises TypeError where the parts do not go together.
    """

    e_step: Any = Exact()
    m_step: Any = Exact()
    accelerator: Any = None

    def __post_init__(self):
        for name, needed in (("e_step", "expect"), ("m_step", "improve")):
            rule = getattr(self, name)
            known = callable(getattr(rule, needed, None)) or (name == "e_step" and collects(rule))
            if isinstance(rule, type) or not known:
                raise TypeError(f"{name} must be a rule such as jaxem.Exact(), got {rule!r}")
        unsteady = [r for r in (self.e_step, self.m_step) if not r.steady]
        if self.accelerator is not None and unsteady:
            raise TypeError(
                f"{type(unsteady[0]).__name__} changes from step to step: an accelerator needs one "
                "map; use accelerator=None"
            )
        if collects(self.e_step) and not isinstance(self.m_step, Exact):
            raise TypeError(f"{type(self.e_step).__name__} needs the exact M-step")

    @property
    def plain(self) -> bool:
        """Whether both rules are the exact ones: EM as it was published, in chunks."""
        return type(self.e_step) is Exact and type(self.m_step) is Exact

    @property
    def prepares(self) -> bool:
        """Whether its passes over the data take them as `Prepared`."""
        return self.plain or getattr(self.e_step, "prepares", False)

    def start(self, model, params, x=None, weights=None):
        """What the method remembers of a climb that has evaluated nothing; `Variational` asks for
        the data."""
        foreseen = self.foresees(model, x) and is_floating(params)
        follower = _gain_from_steps() if foreseen else self.accelerator
        last = () if follower is None else follower.start(model, params)
        options = (model, params, x, weights)
        return Memory(self.e_step.start(*options), self.m_step.start(*options), last)

    def evaluate(self, model, params, x, weights, memory=()) -> Evaluation:
        """One E-step and one M-step, and what the accelerator makes of them."""
        memory = memory or self.start(model, params, x, weights)
        seen = self.map(model, params, x, weights, memory)
        if self.accelerator is None and not memory.accelerator:
            return seen
        follower = _gain_from_steps() if self.accelerator is None else self.accelerator
        seen = follower.advance(model, params, seen, memory.accelerator, weights.sum())
        return seen._replace(memory=memory._replace(accelerator=seen.memory))

    def foresees(self, model, x) -> bool:
        """Whether gains are measured by steps too (`GainFromSteps`): with many units in float32
        rounding hides them in the objective long before convergence."""
        if self.accelerator is not None or not self.plain or x is None:
            return False
        return float_dtype(x) == jnp.float32 and is_large(model, x)

    def map(self, model, params, x, weights, memory=()) -> Evaluation:
        """One E-step and one M-step: the EM map at params."""
        memory = memory or self.start(model, params, x, weights)
        return self.update(model, params, *self.collect(model, params, x, weights, memory))

    def collect(self, model, params, x, weights, memory):
        """The E-step at params: (`Sums` over all units, the memory after it, `Signal.restarted`).

        Sums add over parts of the data. Their statistics are what the M-step takes: those of the
        model or, where the M-step looks at the units again, `Given`.
        """
        if self.plain:
            return collect(model, params, x, weights), memory, None
        if collects(self.e_step):
            sums, kept = self.e_step.collect(model, params, x, weights, memory.e_step)
            return sums, memory._replace(e_step=kept), None
        seen = self.e_step.expect(model, params, x, weights, memory.e_step)
        if isinstance(self.m_step, Exact):
            statistics = model.statistics(params, x, seen.q, weights)
        else:
            statistics = Given(x, weights, seen.q)
        sums = Sums(statistics, *summed(weights, seen.value))
        return sums, memory._replace(e_step=seen.memory), seen.restarted

    def update(self, model, params, sums, memory, restarted=None) -> Evaluation:
        """The M-step from what `collect` returned at params."""
        if isinstance(self.m_step, Exact):
            proposal = model.maximize(params, sums.statistics)
        else:
            given = sums.statistics
            options = (model, params, given.x, given.weights, given.q, memory.m_step)
            proposal, kept = self.m_step.improve(*options)
            memory = memory._replace(m_step=kept)
        proposal = self.e_step.onward(model, proposal, memory.e_step)
        seen = measured(model, params, sums.evidence, sums.magnitude, proposal, memory)
        return seen._replace(signal=seen.signal._replace(restarted=restarted))

    def stationary(self, model, x):
        """A `StationaryMap` with the fixed points of fits by this method, or None where none is
        known: both rules must know theirs."""
        if not knows_rest(self.m_step) or not knows_rest(self.e_step):
            return None
        return self.m_step.stationary(model, model.closed(x)) and self.e_step.stationary(
            model, model.closed(x)
        )

    def measures(self, n_iter):
        """Whether the objective of step n_iter was that of all units at the params it kept."""
        return True

    def log_likelihood(self, model, params, x, weights):
        """Σ w·log p(x | params) where the objective holds another value and the model knows it,
        else None."""
        exact = defines(model, "posterior") or has(model, FiniteLatents)
        if self.e_step.measures_evidence or not exact:
            return None
        evidence = model.posterior(params, x)[1]
        return row_sum(weights, jnp.where(weights > 0, evidence, 0))


def is_floating(params) -> bool:
    """Whether all params are real numbers, of which steps have lengths."""
    return all(jnp.issubdtype(jnp.result_type(a), jnp.floating) for a in jax.tree.leaves(params))


def _gain_from_steps():
    from jaxem.methods.gain_from_steps import GainFromSteps  # small fits start sooner without it

    return GainFromSteps()


def summed(weights, value):
    """Σ w·F and Σ w·(|F| + 1) from F per unit (n,)."""
    value = jnp.where(weights > 0, value, 0)
    return row_sum(weights, value), row_sum(weights, jnp.abs(value) + 1)


def measured(model, params, value, magnitude, proposal, memory) -> Evaluation:
    """An `Evaluation` from F without the prior, and the scale of its rounding."""
    prior = jnp.asarray(model.log_prior(params), value.dtype)
    steps = return_time(model.spaces(params), params, proposal)
    signal = Signal(return_steps=steps)
    return Evaluation(proposal, value + prior, magnitude + jnp.abs(prior), memory, signal=signal)
