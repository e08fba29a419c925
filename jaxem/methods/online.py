"""Online EM: an M-step after every minibatch, at averaged statistics with decreasing step sizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.data.options import integer
from jaxem.methods.em import EM, measured
from jaxem.methods.suited import suited
from jaxem.numerics.tree import is_traced, over_units, pytree, select
from jaxem.passes.chunks import row_sum
from jaxem.protocol.capabilities import LocalPosterior, has
from jaxem.protocol.returned import maximized, require_evidence
from jaxem.protocol.status import warn


@pytree
class Decay:
    """The step size (t + offset)^−power of minibatch t = 0, 1, …; offset and power are numbers.

    Convergence needs a power above ½ and at most 1 (Cappé & Moulines 2009).
    Raises ValueError for another power, or an offset below 1.
    """

    offset: Any = 2.0
    power: Any = 0.6

    def __post_init__(self):
        if isinstance(self.power, (int, float)) and not 0.5 < self.power <= 1:
            raise ValueError(f"power must be above 0.5 and at most 1, got {self.power!r}")
        if isinstance(self.offset, (int, float)) and not self.offset >= 1:
            raise ValueError(f"offset must be 1 or more, got {self.offset!r}")

    def __call__(self, t):
        return (t + self.offset) ** -self.power


AVERAGING_POWER = 7
"""Minibatch t has weight t^AVERAGING_POWER in the mean of s, so that two thirds of
the weight are on the last eighth of the minibatches. Nats by which the result is below that of
batch EM after 1, 2, 3 and 5 passes over 100,000 rows, means of two data sets: 107, 2.5, 0.9 and 0.5
with power 3; 26, 6.7, 3.0 and 0.8 with 7; 38, 15, 11 and 2.0 with 15; 80, 45, 31 and 19 with the
last s alone."""


LEAST_UNITS = 2
"""Units for each component in a minibatch below which a fit warns."""


class Average(NamedTuple):
    """Statistics averaged over minibatches, and the total weight of a minibatch, averaged alike."""

    statistics: Any
    mass: Any


class Passes(NamedTuple):
    """The state of `OnlineEM` between passes.

    number: how many passes are done. centre: the params that statistics are centred at. average: s.
    mean: the weighted mean of s over minibatches.
    """

    number: Any
    centre: Any
    average: Any
    mean: Any


@pytree(static=("batch", "passes"))
class OnlineEM:
    """Stepwise EM (Cappé & Moulines 2009; Liang & Klein 2009), an M-step after every minibatch at
    averaged statistics s ← s + γ_t (s(minibatch) − s).

    A step of `fit` is one pass: the units are put in random order and cut into minibatches, each
    used once. s begins at 0; an M-step divides it by the weight of a minibatch, averaged in the
    same way. A pass returns the M-step at the mean of s over all minibatches so far, where later
    ones weigh more (Shamir & Zhang 2013, polynomial-decay averaging). The model needs `statistics`
    and `maximize`, and its statistics must add across q of different params, like those of
    exponential families; in a fit all are centred at the initial params.

    After `passes` passes, steps of exact EM follow, and the fit can end as CONVERGED. Without
    `passes` all steps are online, and it ends as MAX_ITER. A fall of the objective between online
    passes is not reported. `fit` returns the objective of all units at the returned params, so that
    `max_iter=1` is one online pass and one evaluation.

    Args:
      step_size: t → γ_t in (0, 1], from the number t of minibatches so far: a `Decay`, or another
        function, such as an optax schedule. Pass the same object every time: two equal functions
        compile twice.
      batch: the number of units in a minibatch; enough for some dozens of each component.
      passes: the number of online passes; None: all.
      seed: an int, from which the random orders are drawn.

    Raises TypeError where step_size is no function, or batch, passes or seed is no int; ValueError
    where batch or passes is below 1.
    """

    step_size: Any = Decay()
    batch: int = 256
    passes: int | None = None
    seed: Any = 0

    plain = prepares = False
    climbs_likelihood = True
    """Whether the objective is the log-likelihood + log prior, as in `EM`."""
    accelerator = None

    def __post_init__(self):
        if not callable(self.step_size) or isinstance(self.step_size, type):
            raise TypeError(
                f"step_size must be a function t -> step, got {self.step_size!r}: use "
                "jaxem.Decay(offset=2.0, power=0.6)"
            )
        for name in ("batch", "passes"):
            value = getattr(self, name)
            if value is None and name == "passes":
                continue
            integer(value, name, 1)
        if not is_traced(self.seed):
            integer(self.seed, "seed", -(2**63))

    def suited(self, model, x):
        """This method; TypeError where the model has no M-step from its statistics. Warns where
        a minibatch holds fewer than two units a component."""
        if not model.closed(x):
            raise TypeError(
                "OnlineEM averages a model's statistics: define statistics and maximize, or use "
                "jaxem.EM()"
            )
        k, n = model.domain.fewest, jax.tree.leaves(x)[0].shape[0]
        if k > 1 and self.batch < min(LEAST_UNITS * k, n):
            warn(
                f"OnlineEM(batch={self.batch}) has too few units in a minibatch for {k} "
                "components, whose estimates then fail: raise batch, to some dozens of units for "
                "each component",
                stacklevel=4,
            )
        return self

    def stationary(self, model, x):
        """That of exact EM, which ends a fit where `passes` are given."""
        return None if self.passes is None else suited(EM(), model, x).stationary(model, x)

    def start(self, model, params, x, weights):
        """The state before the first pass."""
        args = (params, params, x, weights)
        shapes, _ = jax.eval_shape(lambda *args: _collected(model, *args), *args)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        zeros = Average(zeros, jnp.zeros((), weights.dtype))
        return Passes(jnp.asarray(0, jnp.int32), params, zeros, zeros)

    def evaluate(self, model, params, x, weights, memory=()):
        """One online pass, or after `passes` of them one step of exact EM.

        The objective of an online pass adds the evidence of each unit at the params of its own
        minibatch.
        """
        memory = memory or self.start(model, params, x, weights)
        if self.passes is None:
            return self._online(model, params, x, weights, memory)

        def online():
            return self._online(model, params, x, weights, memory)

        def exact():
            next_state = memory._replace(number=memory.number + 1)
            evaluation = self.map(model, params, x, weights)
            signal = evaluation.signal._replace(restarted=memory.number == self.passes)
            return evaluation._replace(memory=next_state, signal=signal)

        return jax.lax.cond(memory.number < self.passes, online, exact)

    def map(self, model, params, x, weights, memory=()):
        """One step of exact EM."""
        return suited(EM(), model, x).map(model, params, x, weights)

    def measures(self, n_iter):
        """Whether the objective of step n_iter was that of all units at the params it kept."""
        return jnp.asarray(False) if self.passes is None else n_iter >= self.passes

    def log_likelihood(self, model, params, x, weights):
        """None: the objective is the log-likelihood + log prior."""
        return None

    def _online(self, model, params, x, weights, memory):
        """One pass over the minibatches."""
        number, centre, average, mean = memory
        n = weights.shape[0]
        batch = min(self.batch, n)
        count = -(-n // batch)
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        order = jnp.pad(jax.random.permutation(key, n), (0, count * batch - n))

        def minibatch_sums(i, theta):
            """The `Average` of minibatch i with q at params `theta`; (Σ w·F, Σ w·(|F| + 1))."""
            rows = jax.lax.dynamic_slice_in_dim(order, i * batch, batch)
            values_of_minibatch = over_units(lambda a: a[rows], x)
            batch_weights = jnp.where(i * batch + jnp.arange(batch) < n, weights[rows], 0)
            statistics, value = _collected(model, centre, theta, values_of_minibatch, batch_weights)
            value = jnp.where(batch_weights > 0, value, 0)
            sums = Average(statistics, batch_weights.sum())
            return sums, jnp.stack(
                [row_sum(batch_weights, value), row_sum(batch_weights, jnp.abs(value) + 1)]
            )

        def estimate(average, current):
            has_weight = average.mass > 0
            scale = weights.sum() / jnp.where(has_weight, average.mass, 1)
            scaled = jax.tree.map(lambda a: a * scale, average.statistics)
            return select(has_weight, maximized(model, centre, scaled), current)

        def interpolated(target, current, fraction):
            fraction = jnp.clip(jnp.asarray(fraction, weights.dtype), 0, 1)
            return jax.tree.map(
                lambda target, current: current + fraction * (target - current), target, current
            )

        def step(i, carry):
            theta, average, mean, value = carry
            sums, values_of_minibatch = minibatch_sums(i, theta)
            t = number * count + i
            average = interpolated(sums, average, self.step_size(t))
            mean = interpolated(
                average, mean, (AVERAGING_POWER + 1) / (t + (AVERAGING_POWER + 1.0))
            )
            return estimate(average, theta), average, mean, value + values_of_minibatch

        carry = estimate(average, params), average, mean, jnp.zeros(2, weights.dtype)
        _, average, mean, (value, magnitude) = jax.lax.fori_loop(0, count, step, carry)
        next_state = Passes(number + 1, centre, average, mean)
        evaluation = measured(model, params, value, magnitude, estimate(mean, params), next_state)
        signal = evaluation.signal._replace(restarted=jnp.asarray(True))
        return evaluation._replace(signal=signal)


def _collected(model, centre, params, x, weights):
    """(statistics, F (n,)) of a minibatch: q at `params`, statistics about the params `centre`,
    which those of many minibatches have in common. A q without a closed form begins anew."""
    if has(model, LocalPosterior):
        _, statistics, value = model.improve_q(params, x, model.init_q(params, x), weights)
        return statistics, value
    q, value = model.posterior(params, x)
    require_evidence(model, value, weights)
    return model.statistics(centre, x, q, weights), value
