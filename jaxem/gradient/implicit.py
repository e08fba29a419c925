"""The gradient through a fit by the implicit function theorem: that of the optimum by the data.

A fit ends at a fixed point of the EM map, θ = M(θ, data), so θ' = (I − J)⁻¹ ∂M/∂data · data' with J
= ∂M/∂θ. I − J = I_complete⁻¹ I_observed (Dempster, Laird & Rubin 1977), whose spectrum is real and
in [0, 1] at a maximum. M projects onto the manifold of params (weights that sum to 1, symmetric
covariances), so θ needs no other coordinates. The derivative of the objective is that at a constant
θ (the envelope theorem).
"""

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient

from jaxem.gradient.krylov import solve
from jaxem.gradient.newton import to_fixed_point
from jaxem.gradient.tangents import DataTangents, zero_tangent
from jaxem.methods.stationary import StationaryMap
from jaxem.numerics import tuning
from jaxem.numerics.tree import in_dtype, merge
from jaxem.passes.chunks import row_sum
from jaxem.protocol.spaces import UnitInterval
from jaxem.protocol.status import Status
from jaxem.solver.problem import Problem
from jaxem.solver.solve import lane_plan, over
from jaxem.wrappers.restricted import with_restrictions


class System(NamedTuple):
    """The quantities of the map at its fixed point that the tangent needs. Not differentiated.

    shift: from params and q to the fixed point, by Newton's method, in `FixedPointCoordinates`.
    inverse: (I − J)⁻¹ there, None where there are many coordinates. ok: whether both can be
    trusted. q_converged: whether q has converged. scale: the constants of the map.
    """

    shift: Any
    inverse: Any
    ok: Any
    q_converged: Any
    scale: Any


@partial(jax.jit, static_argnames=("plan", "rule"))
def attached(numeric, x, weights, best, every, *, plan, rule):
    """The fits of `search`, the best with its gradient, and whether the gradient can be trusted.

    rule: a `gradient.rules.OfFixedPoint`.
    """
    q = ()
    if plan.stationary_map is not None:
        q, best, every = best.q, best.fit, every.fit

    def one(x, weights, best, every, q):
        data = (numeric, x, weights)
        fields = ("params", "log_likelihood", "objective")
        found = tuple(getattr(best, f) for f in (*fields, "status"))
        *attached_values, ok, _ = attach(plan, rule, data, (*found, q))
        # Fixed values have a gradient too.
        model = merge(numeric, plan.structure)[0]
        attached_values[0] = with_restrictions(model, attached_values[0], attached_values[0])
        best = replace(best, **dict(zip(fields, attached_values, strict=True)))
        entropy = with_nan_gradient(data, best.posterior_entropy)
        best = replace(best, posterior_entropy=entropy)
        if plan.restarts == 1:
            return best, jax.tree.map(lambda a: a[None], best), ok
        return best, with_nan_gradient(data, every), ok

    return (jax.vmap(one) if plan.batched else one)(x, weights, best, every, q)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def attach(plan, rule, data, found):
    """A finished fit with the gradient of a rule attached to it.

    Args:
      plan: the `Plan` of the fit.  data: (numeric, x, weights) of one data set.
      found: (params, log_likelihood, objective, status, q), which are not differentiated.

    Returns params, log_likelihood, objective, whether their gradient can be trusted, and q. The
    gradient can be trusted where the fit has converged and, when it is differentiated, I − J is
    regular and a fixed point is near.
    """
    params, log_likelihood, objective, status, q = found
    return params, log_likelihood, objective, status == int(Status.CONVERGED), q


@partial(attach.defjvp, symbolic_zeros=True)
@tuning.differentiated()
def _rule(plan, rule, primals, tangents):
    data, found = primals
    out = attach(plan, rule, data, found)  # second derivatives differentiate this call
    data_tangents = DataTangents(data, tangents[0])
    if not data_tangents.tangents:
        return out, jax.tree.map(zero_tangent, out)
    if rule.refusal is not None:
        raise TypeError(rule.refusal)
    params, _, _, converged, q = out
    params = jax.tree.map(_vanished_as_zero, params)
    constants = stop_gradient((data, params, q))
    if rule.solves or plan.stationary_map is not None:
        system = _without_axis(system_of(plan, rule))(*constants)
    else:
        system = System(0, None, converged, converged, ())
    ok, q_converged = converged & system.ok, converged & system.q_converged

    coordinates = FixedPointCoordinates(plan, *constants, system.scale)
    point = coordinates.flat(params, q) + system.shift
    value_of = partial(value, plan, params=params, q=coordinates.at(point)[1])
    objective = data_tangents.outlet(
        q_converged, data_tangents.where(q_converged)(lambda data: value_of(data))
    )

    by_data = data_tangents.where(ok)(lambda data: coordinates.step(data, point))
    if rule.solves:
        by_data = solve(lambda phi: coordinates.step(data, phi), point, by_data, system.inverse)
    by_data = jnp.where(ok, by_data, 0)
    params_tangent, q_tangent = jax.jvp(coordinates.at, (point,), (by_data,))[1]

    def log_prior(data, params):
        numeric = [in_dtype(leaf, out[2].dtype) for leaf in data[0]]
        return merge(numeric, plan.structure)[0].log_prior(params)

    log_likelihood = objective
    if not isinstance(log_prior(data, params), float):  # 0.0: the model has no prior
        prior_tangent = data_tangents.where(ok)(
            lambda data: jnp.asarray(log_prior(data, params), out[2].dtype)
        )
        prior_tangent += jax.jvp(
            lambda p: jnp.asarray(log_prior(data, p)), (params,), (params_tangent,)
        )[1]
        log_likelihood = objective - data_tangents.outlet(ok, prior_tangent)
    tangents = data_tangents.outlet(ok, params_tangent), log_likelihood, objective, zero_tangent(ok)
    return (*out[:3], ok, q), (*tangents, data_tangents.outlet(ok, q_tangent))


@jax.custom_jvp
def with_nan_gradient(data, fits):
    """Fits whose gradient is not known: it is NaN, so that it is not taken for 0."""
    return fits


@partial(with_nan_gradient.defjvp, symbolic_zeros=True)
def _nan_rule(primals, tangents):
    motion = DataTangents(primals[0], tangents[0])
    held = jax.tree.map(zero_tangent, primals[1])
    return primals[1], motion.outlet(jnp.zeros((), bool), held) if motion.tangents else held


def _stationary_map(plan):
    return StationaryMap() if plan.stationary_map is None else plan.stationary_map


class FixedPointCoordinates:
    """Params and q as one flat vector. Params are in the units of the arithmetic of these data,
    which are not differentiated; each leaf is divided by its root mean square."""

    def __init__(self, plan, data, params, q, scale=()):
        self.plan, self.problem, self.scale = plan, Problem.of(plan, *data, absent=True), scale
        self.stationary_map = _stationary_map(plan)
        inner = self.stationary_map.inward(self.problem, params), q
        origin, self.unravel = ravel_pytree(inner)
        sizes = ravel_pytree(jax.tree.map(lambda a: jnp.full(jnp.shape(a), _size(a)), inner))[0]
        self.sizes = sizes.astype(origin.dtype)

    def flat(self, params, q):
        return self._coordinates((self.stationary_map.inward(self.problem, params), q))

    def at(self, point):
        """(params, q) of a vector, in the units of the data."""
        params, q = self._inner(point)
        return self.stationary_map.outward(self.problem, params), q

    def converge_q(self, params, q):
        """(q iterated to convergence at params, whether it has converged, the constants of the map
        there)."""
        inner = self.stationary_map.inward(self.problem, params)
        q, q_converged = self.stationary_map.converge_q(self.problem, inner, q)
        return q, q_converged, self.stationary_map.scale(self.problem, inner, q)

    def steady(self, point):
        """The stationary map of vectors, for constant data."""
        return self._coordinates(
            self.stationary_map.step(self.problem, *self._inner(point), self.scale)
        )

    def inside(self, point, before):
        """`point` with entries beyond a bound moved just inside it. A bound such as 0 of a
        probability is a fixed point of EM; J just inside shows whether EM moves to the bound or
        away from it."""
        eps, (inner, q) = jnp.finfo(point.dtype).eps, self._inner(point)
        spaces = self.stationary_map.spaces(self.problem, inner)
        leaves = zip(*map(jax.tree.leaves, (spaces, inner)), strict=True)
        kinds = [(s.margin(a) is not None, isinstance(s, UnitInterval), a.size) for s, a in leaves]
        kinds += [(False, False, leaf.size) for leaf in jax.tree.leaves(q)]
        bounded, unit = (np.repeat([k[i] for k in kinds], [k[2] for k in kinds]) for i in (0, 1))
        least = jnp.where(bounded, jnp.minimum(before, eps**2), -jnp.inf)
        most = jnp.where(unit, jnp.maximum(before, (1 - eps) / self.sizes), jnp.inf)
        return jnp.clip(point, least, most)

    @property
    def slope(self):
        """The derivative of `steady` as a function of the vector; None where the model has none,
        and only products with it can be computed."""
        known = self.stationary_map.jacobian(self.problem)
        if known is None or not self.problem.method.plain:
            return None

        def slope(point):
            return known(self._inner(point)[0]) * self.sizes / self.sizes[:, None]

        return slope

    def step(self, data, point):
        """The stationary map of vectors, for data that are differentiated."""
        problem = Problem.of(self.plan, *data, absent=True)
        params, q = self.at(point)
        params, q = self.stationary_map.step(
            problem, self.stationary_map.inward(problem, params), q, self.scale
        )
        return self.flat(self.stationary_map.outward(problem, params), q)

    def _coordinates(self, inner):
        return ravel_pytree(inner)[0] / self.sizes

    def _inner(self, point):
        return self.unravel(point * self.sizes)


def value(plan, data, params, q):
    """The objective, in the units of the data: differentiable by data, at constant params and q."""
    problem, stationary_map = Problem.of(plan, *data, absent=True), _stationary_map(plan)
    weights = problem.weights
    evidence = stationary_map.value(problem, stationary_map.inward(problem, params), q)
    evidence = jnp.where((weights > 0) | jnp.isfinite(evidence), evidence, 0)
    log_likelihood = row_sum(weights, evidence) - problem.volume
    return (log_likelihood + problem.model.log_prior(params)).astype(weights.dtype)


@lru_cache(maxsize=256)
def system_of(plan, rule):
    """A function (data, params, q) -> System, each with a leading axis of data sets, in blocks."""

    def one(args):
        return analyse(plan, rule, *args)

    @custom_vmap
    def systems(data, params, q):
        model = merge(jax.tree.map(lambda a: a[0], data[0]), plan.structure)[0]
        size = jax.tree.leaves(data[1])[0].shape[0]
        width, _ = lane_plan(plan, model, data[1], size)
        return in_blocks(one, (data, params, q), size, width)

    @systems.def_vmap
    def batch(size, batched, *args):
        def spread(leaf, is_batched):
            leaf = leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))
            return leaf.reshape(-1, *leaf.shape[2:])

        out = systems(*jax.tree.map(spread, args, tuple(batched)))
        out = jax.tree.map(lambda a: a.reshape(size, len(a) // size, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return systems


def in_blocks(function, tree, size: int, width: int):
    """`function` of each of `size` entries, in blocks.

    On a CPU a block is an eighth of the lanes of a fit: J takes more memory than a step, and a
    block takes as long as its slowest entry. All blocks are equal, filled up with the last entry,
    since a smaller one would be compiled again.
    """
    if tuning.platform() == "cpu":
        width = min(width, max(4, width // 8))
    blocks = -(-size // width)
    each = -(-size // blocks)
    index = np.minimum(np.arange(blocks * each), size - 1)
    tree = tree if index.size == size else jax.tree.map(lambda a: a[index], tree)
    return jax.tree.map(lambda a: a[:size], over(function, tree, each))


def _without_axis(function):
    """`function` of trees with a leading axis, for trees without it."""

    def call(*args):
        out = function(*jax.tree.map(lambda a: a[None], args))
        return jax.tree.map(lambda a: a[0], out)

    return call


def analyse(plan, rule, data, params, q) -> System:
    """The `System` at params: the fixed point near them, and whether it is isolated and stable.

    A saddle is a fixed point of EM too, but not the limit of a fit: an eigenvalue of J is above 1.
    """
    coordinates = FixedPointCoordinates(plan, data, params, q)
    start = coordinates.flat(params, q)
    q, q_converged, coordinates.scale = coordinates.converge_q(params, q)
    origin = coordinates.flat(params, q)
    if not rule.solves:
        shift, inverse, ok = jnp.zeros_like(origin), None, q_converged
    else:
        shift, inverse, ok = to_fixed_point(
            coordinates.steady, origin, coordinates.inside, coordinates.slope
        )
        ok &= jnp.all(jnp.isfinite(shift)) & q_converged
        inverse = None if inverse is None else jnp.where(ok, inverse, 0)
    shift = jnp.where(ok, shift, 0) + (origin - start)
    return System(shift, inverse, ok, q_converged, coordinates.scale)


def _vanished_as_zero(leaf):
    """A leaf with nearly vanished entries set to 0, their limit. EM shrinks them by a factor a
    step, and the derivative of their logarithm overflows long before they are 0."""
    return jnp.where(jnp.abs(leaf) < jnp.finfo(leaf.dtype).tiny ** 0.25, 0, leaf)


def _size(leaf):
    """The root mean square of a leaf, 1 where that is 0."""
    square = jnp.mean(jnp.square(leaf))
    return jnp.sqrt(jnp.where(square > 0, square, 1))
