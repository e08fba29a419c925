"""Rules for q, the E-step: hard, tempered, incremental and stochastic.

They work for models with a finite latent variable, and for those that define `hardened`, `tempered`
and `sampled`, the q of these rules.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.options import integers
from jaxem.methods.acceleration import Chart
from jaxem.methods.em import Exact, Expectation, summed
from jaxem.methods.stationary import StationaryMap
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import is_traced, over_units, pytree, select
from jaxem.passes.chunks import Sums
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.model import name_of
from jaxem.protocol.posterior import responsibilities_of, with_responsibilities
from jaxem.protocol.returned import maximized, require_evidence


def require_finite(model, rule) -> None:
    """TypeError unless a model has the finite latent variable that a rule for q is for."""
    if not has(model, FiniteLatents):
        raise TypeError(
            f"{type(rule).__name__} is for models that define log_joint(params, x) -> (n, k), and "
            f"{name_of(model)} does not: use e_step=jaxem.Exact()"
        )


@pytree
class Hard(Exact):
    """Classification EM: every unit belongs to its most probable component alone.

    The objective is F at that q, the classification log-likelihood Σ_i w_i max_k log p(x_i, k | θ);
    it never falls. `Result.log_likelihood` is still log p(x | θ). Source: Celeux & Govaert 1992.
    """

    measures_evidence = False

    def expect(self, model, params, x, weights, memory):
        if defines(model, "hardened"):
            return Expectation(*model.hardened(params, x))
        require_finite(model, self)
        joint = model.log_joint(params, x)
        r = jax.nn.one_hot(jnp.argmax(joint, axis=-1), joint.shape[-1], dtype=joint.dtype)
        return Expectation(with_responsibilities(model.posterior(params, x)[0], r), joint.max(-1))


@pytree(static=("steps",))
class Tempered(Exact):
    """Deterministic annealing: q ∝ p(x, z | θ)^β, with β rising to 1.

    At a fixed β no step lowers F_β(q, θ) = E_q[log p(x, z | θ)] + H(q)/β. After each temperature a
    small random step is added to params, so that components that have become equal can separate.
    The objective is log p(x | θ) at every step. It may fall before β = 1, and a fit can end as
    CONVERGED at β = 1 only. Source: Ueda & Nakano 1998.

    Args:
      schedule: the values of β, increasing; the value after the last one is 1.
      steps: evaluations at each value.
      nudge: the length of the random step after each value, in standard errors of an estimate from
        one unit.
      seed: an int, of the random steps.

    Raises ValueError where a β is not above 0, TypeError or ValueError where steps is no int of 1
    or more.
    """

    schedule: Any = tuple(0.1 * 1.3**i for i in range(9))
    steps: int = 20
    nudge: Any = 0.02
    seed: Any = 0

    steady = False

    def stationary(self, model, closed):
        return StationaryMap(closed)

    def __post_init__(self):
        integers(self, 1, "steps")
        if is_traced(self.schedule):
            return
        if np.ndim(self.schedule) != 1 or not all(beta > 0 for beta in self.schedule):
            raise ValueError(
                f"schedule must be a sequence of values above 0, got {self.schedule!r}: the "
                "default rises from 0.1 to 1"
            )

    def start(self, model, params, x, weights):
        return jnp.asarray(0, jnp.int32)

    def expect(self, model, params, x, weights, memory):
        q, evidence = model.posterior(params, x)
        last = len(self.schedule)
        betas = jnp.asarray([*self.schedule, 1], evidence.dtype)
        beta = betas[jnp.minimum(memory // self.steps, last)]
        if defines(model, "tempered"):
            q = model.tempered(params, x, beta)
        else:
            require_finite(model, self)
            q = with_responsibilities(q, normalize(beta * model.log_joint(params, x))[0])
        return Expectation(q, evidence, memory + 1, memory <= last * self.steps)

    def onward(self, model, proposal, memory):
        chart = Chart(model, proposal)
        key = jax.random.fold_in(jax.random.key(self.seed), memory - 1)
        noise = jax.random.normal(key, chart.origin.shape, chart.origin.dtype)
        lengths = chart.lengths
        lengths = jnp.where(lengths > 0, lengths, jnp.inf)
        perturbed = chart.params(chart.origin + self.nudge * noise / lengths)
        due = (memory % self.steps == 0) & (memory <= len(self.schedule) * self.steps)
        return select(due, perturbed, proposal)


@pytree(static=("draws",))
class Stochastic(Exact):
    """Sampled latent values in place of the posterior: SEM with one draw, Monte Carlo EM with more.

    The objective is log p(x | θ). A sampled step may lower it: such a fall is not reported, and no
    sampled step ends the fit. After `steps` evaluations the E-step is exact and the fit can end as
    CONVERGED. Without `steps` the fit ends as MAX_ITER, with the last params. Sources: Celeux &
    Diebolt 1985; Wei & Tanner 1990.

    Args:
      draws: how many latent values are drawn for every unit.
      steps: the number of evaluations with a sampled E-step; None: all.
      seed: an int, of the draws.

    Raises TypeError or ValueError where draws is no int of 1 or more, or steps none of 0 or more.
    """

    draws: int = 1
    steps: Any = None
    seed: Any = 0

    steady = False

    def __post_init__(self):
        integers(self, 1, "draws")
        if self.steps is not None:
            integers(self, 0, "steps")

    def stationary(self, model, closed):
        return None if self.steps is None else StationaryMap(closed)  # the last steps are exact

    def start(self, model, params, x, weights):
        return jnp.asarray(0, jnp.int32)

    def expect(self, model, params, x, weights, memory):
        q, evidence = model.posterior(params, x)
        key = jax.random.fold_in(jax.random.key(self.seed), memory)
        if defines(model, "sampled"):
            drawn = model.sampled(key, params, x, self.draws)
        else:
            r = sampled(key, responsibilities_of(q), self.draws)
            drawn = with_responsibilities(q, r)
        if self.steps is None:
            return Expectation(drawn, evidence, memory + 1, jnp.asarray(True))
        drawn = select(memory < self.steps, drawn, q)
        return Expectation(drawn, evidence, memory + 1, memory <= self.steps)


def sampled(key, r, draws: int):
    """The frequencies (n, k) of `draws` latent values of every unit, drawn from r (n, k)."""
    cumulative = jnp.cumsum(r, axis=-1)

    def add(i, count):
        u = jax.random.uniform(jax.random.fold_in(key, i), r.shape[:1], r.dtype)
        z = (u[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)
        return count + jax.nn.one_hot(z, r.shape[1], dtype=r.dtype)

    return jax.lax.fori_loop(0, draws, add, jnp.zeros_like(r)) / draws


@pytree(static=("blocks", "sweeps"))
class Incremental(Exact):
    """Partial E-steps: an M-step after the E-step of every block of units.

    An evaluation makes 1 + `sweeps` passes over the data. The first is an exact E-step of all
    units, which computes log p(x | θ). The others go block by block: the E-step of a block replaces
    its statistics in the totals, and an M-step follows. No step lowers F(q, θ). Every evaluation
    begins at the posterior q, where F is the log-likelihood, so the log-likelihood never falls.
    Totals are summed over the blocks at every M-step, and rounding errors do not accumulate. The
    model's `statistics(params, x, q, weights)` must be additive across q of different params, as
    those of exponential families are. Source: Neal & Hinton 1998.

    Args:
      blocks: the number of blocks; units i, i + blocks, ... are in one block.
      sweeps: passes block by block in an evaluation.

    Raises TypeError or ValueError where one is no int of 1 or more; `WrongReturn`, a TypeError, as
    `EM` does.
    """

    blocks: int = 16
    sweeps: int = 4

    def __post_init__(self):
        integers(self, 1, "blocks", "sweeps")

    def stationary(self, model, closed):
        return StationaryMap(closed)

    def collect(self, model, params, x, weights, memory):
        """(`Sums`, memory): the totals after an evaluation, and log p(x | params)."""
        n, blocks = weights.shape[0], min(self.blocks, weights.shape[0])
        data, block_weights = parted((x, weights), n, blocks)

        def block_e_step(p, i):
            block = over_units(lambda a: a[i], data)
            q, evidence = model.posterior(p, block)
            require_evidence(model, evidence, block_weights[i])
            return model.statistics(params, block, q, block_weights[i]), evidence

        stats, evidence = jax.lax.map(lambda i: block_e_step(params, i), jnp.arange(blocks))

        def totals(stats):
            # Not by differences: those of a component that loses its units are rounding errors.
            return jax.tree.map(lambda a: a.sum(0), stats)

        def update_block(step, carry):
            p, stats, _ = carry
            i = step % blocks
            updated, _ = block_e_step(p, i)
            stats = jax.tree.map(lambda old, a: old.at[i].set(a), stats, updated)
            total = totals(stats)
            return maximized(model, params, total), stats, total

        total = totals(stats)
        carry = (maximized(model, params, total), stats, total)
        *_, total = jax.lax.fori_loop(0, self.sweeps * blocks, update_block, carry)
        evidence = jnp.where(block_weights > 0, evidence, 0).T.reshape(-1)[:n]
        return Sums(total, *summed(weights, evidence)), memory


def parted(tree, n: int, blocks: int):
    """Data (n, ...) and weights as (blocks, rows, ...). Row i is in block i % blocks. The blocks
    are filled up with copies of the first row, of weight 0."""
    x, weights = tree

    def part(leaf, fill):
        missing = -n % blocks
        padding = jnp.broadcast_to(fill, (missing, *leaf.shape[1:])).astype(leaf.dtype)
        return jnp.concatenate([leaf, padding]).reshape(-1, blocks, *leaf.shape[1:]).swapaxes(0, 1)

    return over_units(lambda a: part(a, a[:1]), x), part(weights, 0)
