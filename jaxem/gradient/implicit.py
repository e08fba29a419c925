"""The gradient through a fit: a function of the data, not of the road that led to the optimum.

A fit ends at a fixed point of the EM map, θ = M(θ, data), so θ' = (I − J)⁻¹ ∂M/∂data · data' with
J = ∂M/∂θ. I − J = I_complete⁻¹ I_observed (Dempster, Laird & Rubin 1977), whose spectrum is real
and in [0, 1] at a maximum, and M projects whatever is off the manifold (weights that do not sum to
1, covariances that are not symmetric), so θ is taken as it is. The objective moves as if θ stood
still (the envelope theorem).
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
    """What the tangent needs of J, none of it differentiated.

    shift: the way from params and q to the fixed point, by Newton, in the coordinates of the
    `Chart`. inverse: (I − J)⁻¹ there, None where the coordinates are many. ok: whether both can be
    trusted. q_converged: whether q has converged. scale: the constants of the map.
    """

    shift: Any
    inverse: Any
    ok: Any
    q_converged: Any
    scale: Any


@partial(jax.jit, static_argnames=("plan", "rule"))
def attached(numeric, x, weights, best, every, *, plan, rule):
    """Fits as `search` returns them, the best with its gradient, and whether that can be trusted.

    rule: a `gradient.rules.AtTheEnd`.
    """
    q = ()
    if plan.stationary_map is not None:
        q, best, every = best.q, best.fit, every.fit

    def one(x, weights, best, every, q):
        data = (numeric, x, weights)
        fields = ("params", "log_likelihood", "objective")
        found = tuple(getattr(best, f) for f in (*fields, "status"))
        *new, ok, _ = attach(plan, rule, data, (*found, q))
        new[0] = with_restrictions(
            merge(numeric, plan.structure)[0], new[0], new[0]
        )  # fixed values move too
        best = replace(best, **dict(zip(fields, new, strict=True)))
        if plan.restarts == 1:
            return best, jax.tree.map(lambda a: a[None], best), ok
        return best, barred(data, every), ok

    return (jax.vmap(one) if plan.batched else one)(x, weights, best, every, q)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def attach(plan, rule, data, found):
    """A finished fit with the gradient of a rule attached to it.

    Args:
      plan: the `Plan` it was found with.  data: (numeric, x, weights) of one data set.
      found: (params, log_likelihood, objective, status, q); has no gradient of its own.

    Returns params, log_likelihood, objective, whether their gradient can be trusted, and q: that
    the fit converged and, while it is differentiated, that I − J is regular and the fixed point
    near.
    """
    params, log_likelihood, objective, status, q = found
    return params, log_likelihood, objective, status == int(Status.CONVERGED), q


@partial(attach.defjvp, symbolic_zeros=True)
def _rule(plan, rule, primals, tangents):
    data, found = primals
    out = attach(plan, rule, data, found)  # at which a second derivative finds the first
    motion = DataTangents(data, tangents[0])
    if not motion.tangents:
        return out, jax.tree.map(zero_tangent, out)
    if rule.refusal is not None:
        raise TypeError(rule.refusal)
    params, _, _, converged, q = out
    params = jax.tree.map(_arrived, params)
    fixed = stop_gradient((data, params, q))
    if rule.solves or plan.stationary_map is not None:
        system = _lone(prepare(plan, rule))(*fixed)
    else:
        system = System(0, None, converged, converged, ())
    ok, q_converged = converged & system.ok, converged & system.q_converged

    chart = Chart(plan, *fixed, system.scale)
    point = chart.flat(params, q) + system.shift
    value_of = partial(value, plan, params=params, q=chart.at(point)[1])
    objective = motion.outlet(q_converged, motion.where(q_converged)(lambda data: value_of(data)))

    moved = motion.where(ok)(lambda data: chart.step(data, point))
    if rule.solves:
        moved = solve(lambda phi: chart.step(data, phi), point, moved, system.inverse)
    moved = jnp.where(ok, moved, 0)
    inside, of_q = jax.jvp(chart.at, (point,), (moved,))[1]

    def log_prior(data, params):
        numeric = [in_dtype(leaf, out[2].dtype) for leaf in data[0]]
        return merge(numeric, plan.structure)[0].log_prior(params)

    log_likelihood = objective
    if not isinstance(log_prior(data, params), float):  # 0.0: there is none
        drift = motion.where(ok)(lambda data: jnp.asarray(log_prior(data, params), out[2].dtype))
        drift += jax.jvp(lambda p: jnp.asarray(log_prior(data, p)), (params,), (inside,))[1]
        log_likelihood = objective - motion.outlet(ok, drift)
    tangents = motion.outlet(ok, inside), log_likelihood, objective, zero_tangent(ok)
    return (*out[:3], ok, q), (*tangents, motion.outlet(ok, of_q))


@jax.custom_jvp
def barred(data, fits):
    """Fits whose gradient is not known: it is NaN, never a silent 0."""
    return fits


@partial(barred.defjvp, symbolic_zeros=True)
def _bar(primals, tangents):
    motion = DataTangents(primals[0], tangents[0])
    held = jax.tree.map(zero_tangent, primals[1])
    return primals[1], motion.outlet(jnp.zeros((), bool), held) if motion.tangents else held


def _stationary_map(plan):
    return StationaryMap() if plan.stationary_map is None else plan.stationary_map


class Chart:
    """Params and q as one flat vector: params in the safe units of the data, which stand still
    here, each leaf in units of its own size."""

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
        """(params, q) in the units of the data."""
        params, q = self._inner(point)
        return self.stationary_map.outward(self.problem, params), q

    def converge_q(self, params, q):
        """(q at rest at params, whether it is, the constants of the map there)."""
        inner = self.stationary_map.inward(self.problem, params)
        q, q_converged = self.stationary_map.converge_q(self.problem, inner, q)
        return q, q_converged, self.stationary_map.scale(self.problem, inner, q)

    def steady(self, point):
        """The map of the data of this chart."""
        return self._coordinates(
            self.stationary_map.step(self.problem, *self._inner(point), self.scale)
        )

    def inside(self, point, before):
        """`point`, but an entry beyond a bound at which EM stands still, as 0 is for a probability,
        a hair inside: J then tells whether EM goes there or away from there."""
        hair, (inner, q) = jnp.finfo(point.dtype).eps, self._inner(point)
        spaces = self.stationary_map.spaces(self.problem, inner)
        leaves = zip(*map(jax.tree.leaves, (spaces, inner)), strict=True)
        kinds = [(s.margin(a) is not None, isinstance(s, UnitInterval), a.size) for s, a in leaves]
        kinds += [(False, False, leaf.size) for leaf in jax.tree.leaves(q)]
        bounded, unit = (np.repeat([k[i] for k in kinds], [k[2] for k in kinds]) for i in (0, 1))
        least = jnp.where(bounded, jnp.minimum(before, hair**2), -jnp.inf)
        most = jnp.where(unit, jnp.maximum(before, (1 - hair) / self.sizes), jnp.inf)
        return jnp.clip(point, least, most)

    @property
    def slope(self):
        """The derivative of `steady` as a function of the point, None where only products tell."""
        known = self.stationary_map.jacobian(self.problem)
        if known is None or not self.problem.method.plain:
            return None

        def slope(point):
            return known(self._inner(point)[0]) * self.sizes / self.sizes[:, None]

        return slope

    def step(self, data, point):
        """The map of data that may move."""
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
    """The objective of data that may move, in their own units, at params and q that do not."""
    problem, stationary_map = Problem.of(plan, *data, absent=True), _stationary_map(plan)
    weights = problem.weights
    evidence = stationary_map.value(problem, stationary_map.inward(problem, params), q)
    evidence = jnp.where((weights > 0) | jnp.isfinite(evidence), evidence, 0)
    log_likelihood = row_sum(weights, evidence) - problem.volume
    return (log_likelihood + problem.model.log_prior(params)).astype(weights.dtype)


@lru_cache(maxsize=256)
def prepare(plan, rule):
    """(data, params, q) -> System, each with a leading axis of data sets, a few at a time."""

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
    """`function` of each of `size` entries, an eighth of the lanes of a fit at a time on a CPU: J
    takes more memory than a step, and a block waits for the slowest. All blocks are equal, filled
    up with the last entry: a rest would be compiled again."""
    if tuning.platform() == "cpu":
        width = min(width, max(4, width // 8))
    blocks = -(-size // width)
    each = -(-size // blocks)
    index = np.minimum(np.arange(blocks * each), size - 1)
    tree = tree if index.size == size else jax.tree.map(lambda a: a[index], tree)
    return jax.tree.map(lambda a: a[:size], over(function, tree, each))


def _lone(function):
    """`function` of trees with a leading axis, for trees without it."""

    def call(*args):
        out = function(*jax.tree.map(lambda a: a[None], args))
        return jax.tree.map(lambda a: a[0], out)

    return call


def analyse(plan, rule, data, params, q) -> System:
    """The `System` at params: is there one fixed point near them, and where?

    EM stands still at a saddle too, but a hair beside it the fit ends elsewhere: there an
    eigenvalue of J is beyond 1.
    """
    chart = Chart(plan, data, params, q)
    start = chart.flat(params, q)
    q, q_converged, chart.scale = chart.converge_q(params, q)
    origin = chart.flat(params, q)
    if not rule.solves:
        shift, inverse, ok = jnp.zeros_like(origin), None, q_converged
    else:
        shift, inverse, ok = to_fixed_point(chart.steady, origin, chart.inside, chart.slope)
        ok &= jnp.all(jnp.isfinite(shift)) & q_converged
        inverse = None if inverse is None else jnp.where(ok, inverse, 0)
    shift = jnp.where(ok, shift, 0) + (origin - start)
    return System(shift, inverse, ok, q_converged, chart.scale)


def _arrived(leaf):
    """A leaf in which what is on its way to 0 is there: EM shrinks a share by a factor a step, and
    the slope of its logarithm overflows long before it arrives."""
    return jnp.where(jnp.abs(leaf) < jnp.finfo(leaf.dtype).tiny ** 0.25, 0, leaf)


def _size(leaf):
    """The root mean square of a leaf, 1 where that is 0."""
    square = jnp.mean(jnp.square(leaf))
    return jnp.sqrt(jnp.where(square > 0, square, 1))
