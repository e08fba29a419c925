"""Models with several discrete latent variables a unit, and q as a product over them (mean field).

log p(x, z | θ) is evaluated at one-hot z or at probabilities in place of z. If it is linear in
every latent variable given the others, except for terms of one variable alone, then

    E_q[log p | z_m = k] = log p(x, z_m = k, the others' probabilities) + a constant, and
    E_q[log p] = log p(x, q) + Σ_m (Σ_k q_mk log p(x, z_m = k, the others') − log p(x, q)),

both exactly, with one evaluation for each state of each variable.

Axes: `n` units, `m` latent variables of each, `k` states of the largest.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.special import safe_entr
from jaxem.numerics.tree import float_dtype, pytree, select
from jaxem.protocol.capabilities import defines
from jaxem.protocol.posterior import expectation
from jaxem.protocol.units import standardized
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopted import Adopted

LONG, TRIES = 1000, 4
"""A posterior without a given q: the most sweeps, and the number of first q that are tried."""

FEW = 32
"""The number of units at which the linearity of log p is checked."""


@pytree
class Factored(Adopted):
    """A user's model with `latents(x)` and `log_joint(params, x, z)`, as a free energy."""

    log_joint = None
    __repr__ = Adopted.__repr__

    def _defines(self, name):
        """All that the model defines but `posterior`: the best product gives only a bound on the
        evidence."""
        return name != "posterior" and super()._defines(name)

    def standardize(self, x, weights):
        inner = standardized(self.inner, x, weights)
        return inner._replace(model=Factored(inner.model))

    def states(self, x):
        """Booleans (m, k), which states each latent variable has, from the shapes of x."""
        name = type(self.inner).__name__
        try:
            counts = [operator.index(count) for count in self.inner.latents(x)]
        except TypeError as error:
            raise TypeError(f"{name}.latents must return ints, one a latent variable") from error
        if not counts or min(counts) < 1:
            raise ValueError(
                f"{name}.latents must return how many states each latent variable has, 1 or more, "
                f"got {tuple(counts)}"
            )
        return np.arange(max(counts)) < np.array(counts)[:, None]

    def log_joint_at(self, params, x, z):
        """log p(x, z | params) per unit (n,), for z (n, m, k)."""
        value = self.inner.log_joint(params, x, z)
        if jnp.shape(value) != z.shape[:1]:
            name, got = type(self.inner).__name__, f"{jnp.shape(value)} for z of shape {z.shape}"
            raise TypeError(f"{name}.log_joint must return shape (n,), a number a unit, got {got}")
        return value.astype(z.dtype)

    def init_q(self, params, x):
        """The first q (n, m, k): the model's own, or random and the same in all units."""
        states, (n, dtype) = self.states(x), _size(x)
        if not defines(self.inner, "init_q"):
            return self._drawn(0, n, states, dtype)
        q = jnp.asarray(self.inner.init_q(params, x), dtype)
        if q.shape != (n, *states.shape):
            raise TypeError(
                f"{type(self.inner).__name__}.init_q must return shape (n, m, k) = "
                f"{(n, *states.shape)}, got {q.shape}"
            )
        return q

    def free_energy(self, params, x, q):
        """F(q, params) per unit (n,), without any term dropped, for probabilities q (n, m, k)."""
        q = jnp.asarray(q)
        mean = self.log_joint_at(params, x, q)

        @jax.checkpoint
        def own_terms(j):
            return expectation(q[:, j], self.given(params, x, q, j)) - mean

        return mean + jax.lax.map(own_terms, jnp.arange(q.shape[1])).sum(0) + entropy(q)

    def given(self, params, x, q, j):
        """log p(x, z_j, the others as in q) for every state of latent variable j, (n, k)."""
        states = self.states(x)
        # A state that the latent variable lacks is evaluated as its first state.
        state_index = jnp.asarray(np.where(states, np.arange(states.shape[1]), 0))
        corners = jnp.eye(states.shape[1], dtype=q.dtype)[state_index[j]]
        return jax.vmap(lambda z: self.log_joint_at(params, x, q.at[:, j].set(z)), out_axes=1)(
            corners
        )

    def one_sweep(self, params, x, q):
        """(q, F (n,)) after one sweep: the distribution of every latent variable in turn is set to
        the maximiser of F given the others."""
        states = jnp.asarray(self.states(x))

        def update(j, carry):
            q, own_terms, _ = carry
            given = self.given(params, x, q, j)
            best = jax.nn.softmax(jnp.where(states[j], given, -jnp.inf), axis=-1)
            q = q.at[:, j].set(best)
            mean = self.log_joint_at(params, x, q)
            return q, own_terms + expectation(best, given) - mean, mean

        zero = jnp.zeros(q.shape[0], q.dtype)
        q, own_terms, mean = jax.lax.fori_loop(0, q.shape[1], update, (q, zero, zero))
        return q, mean + own_terms + entropy(q)

    def ascended(self, params, x, q, tol, most: int):
        """(q, F (n,)) after 1 to `most` sweeps, until no entry of q changes by more than tol."""

        def step(carry):
            q, _, _, count = carry
            updated, value = self.one_sweep(params, x, q)
            return updated, value, jnp.max(jnp.abs(updated - q)), count + 1

        def is_unfinished(carry):
            return (carry[3] < most) & (carry[2] > tol)

        infinite = jnp.asarray(jnp.inf, q.dtype)
        carry = (q, jnp.zeros(q.shape[0], q.dtype), infinite, jnp.asarray(0))
        q, value, *_ = jax.lax.while_loop(is_unfinished, step, carry)
        return q, value

    def posterior(self, params, x):
        """Converged q (n, m, k) and F (n,): unit by unit the best from `TRIES` first q."""
        n, dtype = _size(x)
        states = self.states(x)
        first = [self.init_q(params, x)]
        first += [self._drawn(i, n, states, dtype) for i in range(1, TRIES)]

        def ascend(q):
            return self.ascended(params, x, q, jnp.finfo(dtype).eps ** 0.7, LONG)

        converged = jax.lax.map(ascend, jnp.stack(first))
        best, value = jax.tree.map(lambda a: a[0], converged)
        for i in range(1, TRIES):
            q, other_value = jax.tree.map(lambda a: a[i], converged)  # noqa: B023
            best, value = select(other_value > value, (q, other_value), (best, value))
        return best, value

    def log_prob(self, params, x):
        """F (n,), a lower bound on log p(x | params)."""
        return self.posterior(params, x)[1]

    def exact(self, params, x):
        """Whether log p is linear in z as mean field needs: a check at a few units and random q."""
        states, (n, dtype) = self.states(x), _size(x)
        x = jax.tree.map(lambda a: a[:FEW], x)
        n = min(n, FEW)
        one, two = (self._drawn(i, n, states, dtype) for i in (1, 2))

        def own_terms(q, j):
            given, mean = self.given(params, x, q, j), self.log_joint_at(params, x, q)
            return expectation(q[:, j], given) - mean, jnp.abs(given).max(-1) + jnp.abs(mean)

        def deviation(j):
            (a, size), (b, _) = own_terms(one, j), own_terms(two.at[:, j].set(one[:, j]), j)
            return jnp.max(jnp.abs(a - b) / (1 + size))

        worst = jax.lax.map(deviation, jnp.arange(states.shape[0])).max()
        return worst <= 1e3 * jnp.finfo(dtype).eps

    def refusal(self):
        """The error message where `exact` is False."""
        return (
            f"{type(self.inner).__name__}.log_joint(params, x, z) is not linear in every z[:, m] "
            "given the others, up to terms of one of them alone, or not finite at probabilities: "
            "write interactions as products of z; without any, return (n, k) for all k joint states"
        )

    def _drawn(self, seed: int, n: int, states, dtype):
        """Random distributions (n, m, k), the same in all units."""
        q = np.random.default_rng(seed).exponential(size=states.shape) * states
        return jnp.broadcast_to(jnp.asarray(q / q.sum(-1, keepdims=True), dtype), (n, *q.shape))


def entropy(q):
    """−Σ_m Σ_k q_mk log q_mk per unit (n,)."""
    return safe_entr(q).sum((-2, -1))


def factored(model):
    """The `Factored` model under any wrappers, or None."""
    while not isinstance(model, Factored) and isinstance(model, Wrapper):
        model = model.wrapped
    return model if isinstance(model, Factored) else None


def _size(x):
    return jax.tree.leaves(x)[0].shape[0], float_dtype(x)
