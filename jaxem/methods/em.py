"""EM: the map of the parameters, and the objective at the parameters at which it is applied.

The map is made of a rule for q, the E-step, and a rule for θ, the M-step. This module has the exact
rules; `e_steps` and `m_steps` have others.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.numerics.rounding import ROUNDING
from jaxem.numerics.tree import float_dtype, is_floating, pytree, select
from jaxem.passes.chunks import Sums, row_sum
from jaxem.passes.collect import collect, is_large, unprepared
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.returned import (
    maximized,
    require_evidence,
    require_params,
    require_scalar_prior,
)
from jaxem.protocol.spaces import return_time

AUTO = "auto"
"""The name of an accelerator of slow climbs alone."""


class Signal(NamedTuple):
    """What a stopping rule uses of a step beside its objective. A field that is None is not used.

    gain: the increase of the objective, for methods whose steps are of several kinds; NaN for a
    step whose increase is no measure of convergence. to_come: the method's estimate of the gain
    that remains. error: the bound on the error of `gain`, where the method knows the gain more
    accurately than the objective. restarted: whether the objective is another function than at
    earlier steps, such as at another temperature, so that the two cannot be compared. return_steps:
    the number of steps such as this one in which an entry that grows from nearly 0 regains its
    size. is_slow: of a step that is accelerated only where a climb is slow, whether it is.
    accelerated: the signal that counts where it is, in place of the others.
    """

    gain: Any = None
    to_come: Any = None
    error: Any = None
    restarted: Any = None
    return_steps: Any = None
    is_slow: Any = None
    accelerated: Any = None


class Evaluation(NamedTuple):
    """The result of one pass over the data at `params`.

    proposal: the params to evaluate next, a tree, M(params) by exact EM. objective: log-likelihood
    + log prior AT params, in nats. magnitude: Σ w·(|log p(x)| + 1), to which the objective's
    rounding error is proportional. memory: the state that the method carries to the next
    evaluation. accepted: whether params are kept; None: always. signal: for the stopping rule.
    """

    proposal: Any
    objective: Any
    magnitude: Any
    memory: Any = ()
    accepted: Any = None
    signal: Signal = Signal()

    @property
    def noise(self):
        """The bound on the rounding error of the objective, in nats."""
        return ROUNDING * jnp.finfo(self.objective.dtype).eps * self.magnitude


class Expectation(NamedTuple):
    """The result of an E-step at params.

    q: the distribution of the latent variables. value: F(q, params) per unit (n,), in nats. memory:
    the state of the rule for q after it. restarted: as in `Signal`. spread: the
    rounding error of F, as a multiple of that of one evaluation of log p.
    """

    q: Any
    value: Any
    memory: Any = ()
    restarted: Any = None
    spread: float = 1.0


@pytree
class Exact:
    """The exact maximiser of F over q (the posterior) or over θ (the model's own M-step).

    Source: Dempster, Laird & Rubin 1977.

    Attributes of every rule: `steady`, whether the rule is the same map at every evaluation, which
    accelerators need. Attributes of a rule for q: `measures_evidence`, whether the objective that
    it reports is the log-likelihood, not a free energy below it; `several`, whether it is for
    models with several latent variables.
    """

    measures_evidence = True
    steady = True
    several = False

    def stationary(self, model, closed):
        """A `StationaryMap` with the fixed points of fits by this rule for q, or None where none is
        known. closed: whether the model has an M-step in closed form."""
        from jaxem.methods.stationary import StationaryMap  # plain fits start sooner without it

        return StationaryMap(closed) if type(self) is Exact else None

    def start(self, model, params, x, weights):
        """The state of the rule before the first evaluation of a climb."""
        return ()

    def expect(self, model, params, x, weights, memory) -> Expectation:
        """q at params, and F(q, params) per unit (n,)."""
        return Expectation(*model.posterior(params, x))

    def onward(self, model, proposal, memory):
        """The params to evaluate next. proposal: those of the M-step; memory: that after the
        E-step."""
        return proposal

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after the M-step, which does not lower F. params: those at which q was
        computed."""
        return maximized(model, params, model.statistics(params, x, q, weights)), memory


class Given(NamedTuple):
    """What an M-step takes that makes passes over the data itself: data, weights (n,) and q."""

    x: Any
    weights: Any
    q: Any


def has_stationary_map(rule) -> bool:
    """Whether a rule names a map that has the fixed points of fits by this rule."""
    return callable(getattr(rule, "stationary", None))


def collects(e_step) -> bool:
    """Whether a rule for q defines `collect(model, params, x, weights, memory) -> (Sums, memory)`
    in place of `expect`. It can be combined with the exact M-step only."""
    return callable(getattr(e_step, "collect", None))


class Memory(NamedTuple):
    """The state of each part of a method between evaluations."""

    e_step: Any
    m_step: Any
    accelerator: Any


@pytree
class EM:
    """Coordinate ascent on the free energy F(q, θ) (Neal & Hinton 1998).

    Args:
      e_step: the rule for q, the distribution of the latent variables: `Exact()`, `Hard()`,
        `Tempered()`, `Incremental()`, `Stochastic()`, `Constrained(...)`, `Variational()` or
        `MeanField()`.
      m_step: the rule for θ, the params: `Exact()`, `Gradient(...)` or `Blocks(...)`. A model that
        has no M-step of its own takes `Gradient()` where this is `Exact()`.
      accelerator: "auto": plain EM for the first dozen steps, and for as long as the rate of
        convergence promises an end within about 30 more, then `SQUAREM()`; plain throughout where a
        rule changes from step to step, where tol is 0, and with criterion="change". None: plain EM.
        `SQUAREM()` or `Anderson()`: from the first step on.

    To fix, freeze or tie params, restrict the model with `jaxem.Restricted`.

    Raises TypeError where the parts cannot be combined, and `WrongReturn`, a TypeError, where a
    function of a user's model returns another shape or dtype than it must.
    """

    e_step: Any = Exact()
    m_step: Any = Exact()
    accelerator: Any = AUTO

    def __post_init__(self):
        for name, needed in (("e_step", "expect"), ("m_step", "improve")):
            rule = getattr(self, name)
            is_rule = callable(getattr(rule, needed, None)) or (name == "e_step" and collects(rule))
            if isinstance(rule, type) or not is_rule:
                raise TypeError(f"{name} must be a rule such as jaxem.Exact(), got {rule!r}")
        if _is_e_step_only(self.m_step):
            raise TypeError(
                f"{type(self.m_step).__name__} is a rule for q: use EM(e_step={self.m_step!r})"
            )
        accelerator = self.always
        is_type = isinstance(accelerator, type)
        if accelerator is not None and (
            is_type or not callable(getattr(accelerator, "advance", None))
        ):
            raise TypeError(
                'accelerator must be "auto", None, jaxem.SQUAREM() or jaxem.Anderson(), got '
                f"{accelerator!r}"
            )
        unsteady = [r for r in (self.e_step, self.m_step) if not r.steady]
        if accelerator is not None and unsteady:
            raise TypeError(
                f"{type(unsteady[0]).__name__} changes from step to step: an accelerator needs one "
                "map; use accelerator=None"
            )
        if collects(self.e_step) and not isinstance(self.m_step, Exact):
            raise TypeError(f"{type(self.e_step).__name__} needs the exact M-step")

    @property
    def always(self):
        """The accelerator of every step, or None."""
        return None if self.accelerator == AUTO else self.accelerator

    @property
    def later(self):
        """The accelerated method for climbs that are slow with this one, or None."""
        if self.accelerator != AUTO or not (self.e_step.steady and self.m_step.steady):
            return None
        from jaxem.methods.acceleration import SQUAREM  # a quick fit does not import it

        return EM(self.e_step, self.m_step, SQUAREM())

    def without_later(self):
        """This method without the acceleration of slow climbs."""
        return EM(self.e_step, self.m_step, None) if self.accelerator == AUTO else self

    @property
    def climbs_likelihood(self) -> bool:
        """Whether the objective is the log-likelihood + log prior."""
        return self.e_step.measures_evidence

    @property
    def plain(self) -> bool:
        """Whether both rules are exact: textbook EM, whose passes may be cut into chunks."""
        return type(self.e_step) is Exact and type(self.m_step) is Exact

    @property
    def prepares(self) -> bool:
        """Whether passes over the data take them as `Prepared`."""
        return self.plain or getattr(self.e_step, "prepares", False)

    def start(self, model, params, x=None, weights=None):
        """The state of the method before the first evaluation of a climb. x, weights: needed by
        `Variational`."""
        use_steps = self.gains_from_steps(model, x) and is_floating(params)
        accelerator = _gain_from_steps() if use_steps else self.always
        accelerator_memory = () if accelerator is None else accelerator.start(model, params)
        if self.later is not None:
            accelerator_memory = accelerator_memory, self.later.always.start(model, params)
        args = (model, params, x, weights)
        return Memory(self.e_step.start(*args), self.m_step.start(*args), accelerator_memory)

    def evaluate(self, model, params, x, weights, memory=(), is_slow=None, total=None):
        """The `Evaluation` of an E-step and an M-step, with the accelerator's choice of the next
        params. is_slow: whether a climb that begins without an accelerator is now accelerated;
        None: it is not. total: Σw, None where it is to be computed."""
        memory = memory or self.start(model, params, x, weights)
        evaluation = self.map(model, params, x, weights, memory)
        memory = evaluation.memory

        def advanced(accelerator, state):
            sum_of_weights = weights.sum() if total is None else total
            rows = sum_of_weights * model.domain.rows(unprepared(x))
            return accelerator.advance(model, params, evaluation, state, rows)

        if self.later is not None:
            if is_slow is None:
                return evaluation
            plain_state, state = memory.accelerator
            plain = evaluation._replace(memory=())
            if plain_state:
                plain = advanced(_gain_from_steps(), plain_state)
            evaluation = _either(is_slow, plain, advanced(self.later.always, state), state)
        elif self.always is not None:
            evaluation = advanced(self.always, memory.accelerator)
        elif memory.accelerator:
            evaluation = advanced(_gain_from_steps(), memory.accelerator)
        else:
            return evaluation
        return evaluation._replace(memory=memory._replace(accelerator=evaluation.memory))

    def gains_from_steps(self, model, x) -> bool:
        """Whether gains are also computed from the steps of params (`GainFromSteps`). With many
        units in float32, the gains of the objective are below its rounding error long before
        convergence."""
        if self.always is not None or not self.plain or x is None:
            return False
        return float_dtype(x) == jnp.float32 and is_large(model, x)

    def map(self, model, params, x, weights, memory=()) -> Evaluation:
        """One E-step and one M-step: the EM map at params."""
        memory = memory or self.start(model, params, x, weights)
        return self.update(model, params, *self.collect(model, params, x, weights, memory))

    def collect(self, model, params, x, weights, memory):
        """The E-step at params: (`Sums` over all units, the memory after it, `Signal.restarted`).

        Sums of parts of the data add up to those of all data. Their statistics are the input of the
        M-step: those of the model or, where the M-step makes passes over the data itself, `Given`.
        """
        if self.plain:
            return collect(model, params, x, weights), memory, None
        if collects(self.e_step):
            sums, e_memory = self.e_step.collect(model, params, x, weights, memory.e_step)
            return sums, memory._replace(e_step=e_memory), None
        expectation = self.e_step.expect(model, params, x, weights, memory.e_step)
        require_evidence(model, expectation.value, weights)
        if isinstance(self.m_step, Exact):
            statistics = model.statistics(params, x, expectation.q, weights)
        else:
            statistics = Given(x, weights, expectation.q)
        evidence, magnitude = summed(weights, expectation.value)
        sums = Sums(statistics, evidence, expectation.spread * magnitude)
        return sums, memory._replace(e_step=expectation.memory), expectation.restarted

    def update(self, model, params, sums, memory, restarted=None) -> Evaluation:
        """The M-step from sums and restarted, what `collect` returned at params."""
        magnitude = sums.magnitude
        if isinstance(self.m_step, Exact):
            proposal = maximized(model, params, sums.statistics)
            of_terms = stop_gradient(model._size_of_terms(params, sums.statistics))
            magnitude = jnp.maximum(magnitude, jnp.asarray(of_terms, magnitude.dtype))
        else:
            given = sums.statistics
            args = (model, params, given.x, given.weights, given.q, memory.m_step)
            proposal, m_memory = self.m_step.improve(*args)
            require_params(model, params, proposal)
            memory = memory._replace(m_step=m_memory)
        proposal = self.e_step.onward(model, proposal, memory.e_step)
        evaluation = measured(model, params, sums.evidence, magnitude, proposal, memory)
        return evaluation._replace(signal=evaluation.signal._replace(restarted=restarted))

    def stationary(self, model, x):
        """A `StationaryMap` with the fixed points of fits by this method, or None where no map is
        known for one of the two rules."""
        if not has_stationary_map(self.m_step) or not has_stationary_map(self.e_step):
            return None
        return self.m_step.stationary(model, model.closed(x)) and self.e_step.stationary(
            model, model.closed(x)
        )

    def measures(self, n_iter):
        """Whether the objective of step n_iter is that of all units at the params of that step."""
        return True

    def log_likelihood(self, model, params, x, weights):
        """Σ w·log p(x | params), computed where the objective is another quantity and the model can
        compute it, else None."""
        exact = defines(model, "posterior") or has(model, FiniteLatents)
        if self.e_step.measures_evidence or not exact:
            return None
        evidence = model.posterior(params, x)[1]
        return row_sum(weights, jnp.where(weights > 0, evidence, 0))


def _either(is_slow, plain, accelerated, state) -> Evaluation:
    """The accelerated evaluation where a climb is slow, else the plain one. state: of the
    accelerator before the step."""
    return plain._replace(
        proposal=select(is_slow, accelerated.proposal, plain.proposal),
        accepted=accelerated.accepted | ~is_slow,
        signal=plain.signal._replace(is_slow=is_slow, accelerated=accelerated.signal),
        memory=(plain.memory, select(is_slow, accelerated.memory, state)),
    )


def _is_e_step_only(rule) -> bool:
    """Whether a rule changes the E-step of `Exact` and not its M-step."""
    kind = type(rule)
    if kind is Exact or not isinstance(rule, Exact):
        return False
    return kind.improve is Exact.improve and (kind.expect is not Exact.expect or collects(rule))


def _gain_from_steps():
    from jaxem.methods.gain_from_steps import GainFromSteps  # a small fit does not import it

    return GainFromSteps()


def summed(weights, values):
    """Σ w·F and Σ w·(|F| + 1) from the values F (n,) of the units."""
    values = jnp.where(weights > 0, values, 0)
    return row_sum(weights, values), row_sum(weights, jnp.abs(values) + 1)


def measured(model, params, value, magnitude, proposal, memory) -> Evaluation:
    """The `Evaluation` of params at which F is `value` without the log prior. magnitude: as there,
    without the prior."""
    prior = model.log_prior(params)
    require_scalar_prior(model, prior)
    prior = jnp.asarray(prior, value.dtype)
    steps = return_time(model.spaces(params), params, proposal)
    signal = Signal(return_steps=steps)
    return Evaluation(proposal, value + prior, magnitude + jnp.abs(prior), memory, signal=signal)
