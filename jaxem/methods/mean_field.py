"""Mean-field EM: q is a product over several discrete latent variables, updated one by one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.data.options import integers
from jaxem.methods.em import Exact, Expectation
from jaxem.methods.stationary import SLACK, TIGHT, StationaryMap
from jaxem.numerics.tree import float_dtype, pytree
from jaxem.protocol.hyperparameters import finite_number
from jaxem.wrappers.adopt import adopt
from jaxem.wrappers.factored import LONG, factored


class MeanFieldMemory(NamedTuple):
    """q (n, m, k), and whether mean-field updates are exact for this model (`Factored.exact`)."""

    q: Any
    exact: Any


@pytree(static=("sweeps",))
class MeanField(Exact):
    """Coordinate ascent on F(q, θ) over q(z) = Π_m q_m(z_m): q_m ∝ exp E[log p(x, z | θ)], the
    expectation over all other latent variables, for one m after the other.

    For models with `latents(x)`, the number of states of each of m latent variables, a tuple of
    ints that depends on shapes alone, and `log_joint(params, x, z)` (n,), the log joint at z
    (n, m, k), one-hot along k, the largest of these. It must also accept probabilities in place of
    one-hot z, and be linear in every z[:, m] given the others, up to terms of one of them alone:
    then all expectations are exact. Products of z are linear in this sense, also squares; an
    exponential of a sum of z is not. Other models are refused: with a TypeError or, under `jit`,
    with the status NONFINITE.

    q is carried from one E-step to the next. The first is the model's `init_q(params, x)` (n, m, k)
    if it has one; else random, the same in all fits and units. The objective is F without any term
    dropped. It never falls and is at most log p(x | θ), as is Result.log_likelihood. Source:
    Saul, Jaakkola & Jordan 1996; Ghahramani & Jordan 1997.

    Args:
      sweeps: the most sweeps of an E-step. A sweep updates every latent variable once, and
        evaluates `log_joint` k + 1 times for each.
      tol: the E-step ends when a sweep changes no probability by more.

    Raises TypeError or ValueError where sweeps is no int of 1 or more, or tol no number of 0 or
    more.
    """

    sweeps: int = 20
    tol: Any = 1e-3

    measures_evidence = False
    steady = False
    several = True

    def __post_init__(self):
        integers(self, 1, "sweeps")
        finite_number(self.tol, "tol")

    def stationary(self, model, closed):
        return ProductMap(closed)

    def start(self, model, params, x, weights):
        model = factored(model)
        return MeanFieldMemory(model.init_q(params, x), model.exact(params, x))

    def expect(self, model, params, x, weights, memory):
        q, value = factored(model).ascended(params, x, memory.q, self.tol, self.sweeps)
        value = jnp.where(memory.exact, value, jnp.nan)
        spread = (1 + q.shape[1]) ** 0.5  # errors of as many evaluations of log p, at random signs
        return Expectation(q, value, memory._replace(q=q), spread=spread)

    def infer(self, model, params, x, q=None):
        """(q (n, m, k), F (n,)) at given params: sweeps until q has converged. q: the first one, or
        None for the model's."""
        model, x = factored(adopt(model)), jax.tree.map(jnp.asarray, x)
        q = model.init_q(params, x) if q is None else jnp.asarray(q, float_dtype(x))
        return model.ascended(params, x, q, jnp.finfo(q.dtype).eps ** 0.7, 50 * self.sweeps)


@dataclass(frozen=True)
class ProductMap(StationaryMap):
    """The map of mean field: q_1, q_2, … and then θ, each maximises F given the others."""

    def q_of(self, state):
        return state.method.e_step.q

    def converge_q(self, problem, params, q):
        model, x = factored(problem.climbed), problem.data
        tol = jnp.finfo(q.dtype).eps ** TIGHT
        q, _ = model.ascended(params, x, q, tol, LONG)
        return q, jnp.max(jnp.abs(model.one_sweep(params, x, q)[0] - q)) <= SLACK * tol

    def step(self, problem, params, q, scale):
        q, _ = factored(problem.climbed).one_sweep(params, problem.data, q)
        return self._improved(problem, params, q, scale), q

    def value(self, problem, params, q):
        return factored(problem.climbed).free_energy(params, problem.data, q)

    def _q(self, problem, params, q):
        return q
