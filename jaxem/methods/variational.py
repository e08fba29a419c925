"""Variational EM: q is of a parametric family, and its params are moved up the free energy."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem.data.arrays import as_weights
from jaxem.data.options import integers
from jaxem.methods.em import Exact, Expectation
from jaxem.methods.stationary import StationaryMap, summed_over
from jaxem.numerics.curvature import Curvature
from jaxem.numerics.descent import descend, initial_state, lbfgs, require_transform
from jaxem.numerics.tree import float_dtype, pytree
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.model import IMPOSSIBLE
from jaxem.protocol.posterior import with_responsibilities
from jaxem.wrappers.adopt import adopt


class VariationalMemory(NamedTuple):
    """The params of q, and the optimizer's state."""

    q: Any
    optimizer: Any


@pytree(static=("steps",))
class Variational(Exact):
    """Steps of an optax transformation up F(q, θ) in the params of q, never down.

    The family of q is that of the model's `init_q` and `free_energy`. For finite latent variables
    it has all distributions, as logits (n, k), and the first is the posterior at the start. q and
    the optimizer's state are carried from one E-step to the next: n·k numbers and more in memory
    for every restart and data set, from the beginning of the call. The objective is F at that q,
    which never falls: a step that would lower it is halved until it does not. Result.log_likelihood
    is log p(x | θ) where the model can compute it, else F.

    Args:
      transform: an optax transformation; keep one object, since two equal ones compile twice. None:
        L-BFGS.
      steps: steps in an E-step, each of one or a few passes over the data.

    Raises TypeError for another transform, TypeError or ValueError where steps is no int of 1 or
    more. Source: Jordan, Ghahramani, Jaakkola & Saul 1999.
    """

    transform: Any = None
    steps: int = 10

    measures_evidence = False
    steady = False

    def __post_init__(self):
        integers(self, 1, "steps")
        require_transform(self.transform)

    def stationary(self, model, closed):
        if defines(model, "posterior") or has(model, FiniteLatents):
            return StationaryMap(closed)
        return GradientMap(closed)

    def start(self, model, params, x, weights):
        if has(model, FiniteLatents):
            q = jnp.maximum(model.log_joint(params, x), IMPOSSIBLE)
        else:
            q = model.init_q(params, x)
        return VariationalMemory(q, initial_state(self._transform, ravel_pytree(q)[0]))

    def expect(self, model, params, x, weights, memory):
        flat, unravel = ravel_pytree(memory.q)

        def loss(vector):
            value = self._value(model, params, x, unravel(vector))
            return -jnp.sum(jnp.where(weights > 0, weights * value, 0)).astype(vector.dtype)

        flat, optimizer = descend(self._transform, loss, flat, memory.optimizer, self.steps)
        q = unravel(flat)
        value, memory = self._value(model, params, x, q), VariationalMemory(q, optimizer)
        if has(model, FiniteLatents):
            q = with_responsibilities(model.posterior(params, x)[0], jax.nn.softmax(q, axis=-1))
        return Expectation(q, value, memory)

    def infer(self, model, params, x, q=None, weights=None):
        """(q, F per unit (n,)) after `steps` steps at given params.

        q: the first one, a tree as of `init_q` or logits (n, k); None: the model's. weights (n,):
        as in `fit`, for a q that units share, such as an encoder; None: all 1.
        """
        model, x = adopt(model), jax.tree.map(jnp.asarray, x)
        n = jax.tree.leaves(x)[0].shape[0]
        weights = jnp.ones(n) if weights is None else as_weights(weights, n, float_dtype(x))
        memory = self.start(model, params, x, weights)
        if q is not None:
            memory = memory._replace(q=q)
        expectation = self.expect(model, params, x, weights, memory)
        return expectation.memory.q, expectation.value

    def _value(self, model, params, x, q):
        """F per unit (n,)."""
        if not has(model, FiniteLatents):
            return model.free_energy(params, x, q).astype(float_dtype(x))
        log_q = jax.nn.log_softmax(q, axis=-1)
        r = jnp.exp(log_q)
        joint = model.log_joint(params, x)
        return jnp.where(r > 0, r * (jnp.where(r > 0, joint, 0) - log_q), 0).sum(-1)

    @property
    def _transform(self):
        return lbfgs() if self.transform is None else self.transform


@dataclass(frozen=True)
class GradientMap(StationaryMap):
    """The map of models with a free energy alone: q and θ move at once, along the gradients of
    F."""

    def q_of(self, state):
        return state.method.e_step.q

    def scale(self, problem, params, q):
        flat, unravel = ravel_pytree(q)
        of_q = Curvature.of(lambda vector: _total(problem, params, unravel(vector)), flat)
        return super().scale(problem, params, q), of_q, flat

    def step(self, problem, params, q, scale):
        of_params, of_q, flat_at_start = scale
        flat, unravel = ravel_pytree(q)
        slope = jax.grad(lambda vector: _total(problem, params, unravel(vector)))(flat)
        updated = unravel(jnp.where(of_q.alive, flat + of_q.times(slope), flat_at_start))
        return self._improved(problem, params, q, of_params), updated

    def value(self, problem, params, q):
        return problem.climbed.free_energy(params, problem.data, q)

    def _q(self, problem, params, q):
        return q


def _total(problem, params, q):
    """F of all units."""
    value = problem.climbed.free_energy(params, problem.data, q)
    return summed_over(problem, value).astype(problem.weights.dtype)
