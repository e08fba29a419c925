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
from jax.lax import Precision, stop_gradient
from jax.scipy.sparse.linalg import gmres

from jaxem.pytree import merge
from jaxem.solve import Problem, over
from jaxem.status import Status
from jaxem.sweep import row_sum
from jaxem.tangents import Motion, still

DENSE = 200
"""Parameters up to which I − J is formed and inverted; beyond, GMRES asks for products alone."""

COLUMNS = 2**21
"""Bytes of the widest array while columns of J are formed, several at a time."""

NEWTON, REFINE = 3, 2
"""Newton steps with one inverse that take params from the tolerance of the fit to rounding, and
corrections of a solution made with that same inverse: every one costs a map, not a Jacobian."""

NEAR = 0.05
"""The first Newton step, relative to each leaf's size, beyond which a fit is not at its end."""

CHANGE = 0.5
"""How far that inverse may be from one at the polished params, where it is largest."""

RESTART, CYCLES = 40, 10
"""GMRES: products between restarts, and restarts of the test; a solve may take four times more."""


class System(NamedTuple):
    """What the tangent needs of J, none of it differentiated.

    shift: Newton's way from the params to the fixed point, flat, in safe units. inverse: (I − J)⁻¹
    at the params, empty above `DENSE`. ok: whether both can be trusted.
    """

    shift: Any
    inverse: Any
    ok: Any


@partial(jax.jit, static_argnames=("spec", "how", "restarts", "batched"))
def attached(numeric, x, weights, best, every, *, spec, how, restarts, batched):
    """Fits as `run` returns them, the best with its gradient, and whether that can be trusted."""

    def one(x, weights, best, every):
        data = (numeric, x, weights)
        fields = ("params", "log_likelihood", "objective")
        *new, ok = attach(spec, how, data, tuple(getattr(best, f) for f in (*fields, "status")))
        new[0] = merge(numeric, spec.structure)[0].settle(new[0], new[0])  # fixed values move too
        best = replace(best, **dict(zip(fields, new, strict=True)))
        if restarts == 1:
            return best, jax.tree.map(lambda a: a[None], best), ok
        return best, barred(data, every), ok

    return (jax.vmap(one) if batched else one)(x, weights, best, every)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def attach(spec, how: str, data, found):
    """A finished fit with the gradient of `how` attached to it.

    Args:
      spec: the `Spec` it was found with.  data: (numeric, x, weights) of one data set.
      found: (params, log_likelihood, objective, status); has no gradient of its own.

    Returns params, log_likelihood, objective, and whether their gradient can be trusted: that the
    fit converged and, while it is differentiated, that I − J is regular and the fixed point near.
    """
    params, log_likelihood, objective, status = found
    return params, log_likelihood, objective, status == int(Status.CONVERGED)


@partial(attach.defjvp, symbolic_zeros=True)
def _rule(spec, how, primals, tangents):
    data, found = primals
    out = attach(spec, how, data, found)  # at which a second derivative finds the first
    motion = Motion(data, tangents[0])
    if not motion.tangents:
        return out, jax.tree.map(still, out)
    if how == "unknown":
        raise TypeError(
            "the gradient through a fit is known for the exact E-step and M-step alone: use "
            "method=jaxem.EM(), or jax.lax.stop_gradient on what goes into the fit"
        )
    if how == "none":
        raise TypeError(
            'the result of a fit with gradient="none" is being differentiated: use '
            'gradient="implicit", or jax.lax.stop_gradient on what goes into the fit'
        )
    params, _, _, converged = out
    params = jax.tree.map(_arrived, params)
    fixed = stop_gradient((data, params))
    if how == "implicit":
        system = _lone(prepare(spec))(*fixed)
        ok = converged & system.ok
    else:
        system, ok = None, converged
    steady = motion.where(converged)
    objective = motion.outlet(converged, steady(lambda data: value(spec, data, params)))

    chart = Chart(spec, *fixed)
    point = chart.flat(params) + (0 if system is None else system.shift)
    moved = motion.where(ok)(lambda data: chart.step(data, point))
    if how == "implicit":
        moved = solve(lambda phi: chart.step(data, phi), point, moved, system.inverse)
    moved = jnp.where(ok, moved, 0)
    inside = jax.jvp(chart.params, (point,), (moved,))[1]

    def log_prior(data, params):
        return merge(data[0], spec.structure)[0].log_prior(params)

    log_likelihood = objective
    if not isinstance(log_prior(data, params), float):  # 0.0: there is none
        drift = motion.where(ok)(lambda data: jnp.asarray(log_prior(data, params), out[2].dtype))
        drift += jax.jvp(lambda p: jnp.asarray(log_prior(data, p)), (params,), (inside,))[1]
        log_likelihood = objective - motion.outlet(ok, drift)
    return (*out[:3], ok), (motion.outlet(ok, inside), log_likelihood, objective, still(ok))


@jax.custom_jvp
def barred(data, fits):
    """Fits whose gradient is not known: it is NaN, never a silent 0."""
    return fits


@partial(barred.defjvp, symbolic_zeros=True)
def _bar(primals, tangents):
    motion = Motion(primals[0], tangents[0])
    held = jax.tree.map(still, primals[1])
    return primals[1], motion.outlet(jnp.zeros((), bool), held) if motion.tangents else held


class Chart:
    """Params as one flat vector in the safe units of the data, which stand still here."""

    def __init__(self, spec, data, params):
        self.spec, self.view = spec, Problem(spec, *data, absent=True).view
        self.unravel = ravel_pytree(self.view.inward(params))[1]

    def flat(self, params):
        return ravel_pytree(self.view.inward(params))[0]

    def params(self, point):
        return self.view.outward(self.unravel(point))

    def step(self, data, point):
        """The EM map of data that may move."""
        problem = Problem(self.spec, *data, absent=True)
        seen = problem.map(problem.view.inward(self.params(point)))
        return self.flat(problem.view.outward(seen.proposal))


def value(spec, data, params):
    """The objective of data that may move, in their own units, at params that do not."""
    problem = Problem(spec, *data, absent=True)
    view, weights = problem.view, problem.weights
    _, evidence = view.model.posterior(view.inward(params), view.data)
    evidence = jnp.where((weights > 0) | jnp.isfinite(evidence), evidence, 0)
    log_likelihood = row_sum(weights, evidence) - problem.total * view.log_volume
    return (log_likelihood + problem.model.log_prior(params)).astype(weights.dtype)


def solve(step, point, b, inverse):
    """(I − J)⁻¹ b, J = ∂step/∂point, in either direction and differentiable."""
    _, push = jax.linearize(step, point)

    def dense(inverse, product, b):
        def refine(_, x):
            return x + _times(inverse, b - product(x))

        return jax.lax.fori_loop(0, REFINE, refine, _times(inverse, b))

    def krylov(product, b):
        return _gmres(product, b, 4 * CYCLES)

    ways = (krylov, krylov)
    if inverse.size:
        ways = (partial(dense, inverse), partial(dense, inverse.T))
    return jax.lax.custom_linear_solve(lambda v: v - push(v), b, *ways)


def _times(matrix, vector):
    return jnp.matmul(matrix, vector, precision=Precision.HIGHEST)


def _gmres(product, b, cycles):
    """The solution, NaN where GMRES did not reach it."""
    tol = jnp.finfo(b.dtype).eps ** 0.7
    x, _ = gmres(product, b, tol=tol, restart=RESTART, maxiter=cycles)
    away = jnp.linalg.norm(product(x) - b)
    return jnp.where(away <= 100 * tol * jnp.linalg.norm(b), x, jnp.nan)


@lru_cache(maxsize=256)
def prepare(spec):
    """(data, params) -> System, each with a leading axis of data sets, a few at a time."""

    def one(args):
        return analyse(spec, *args)

    @custom_vmap
    def systems(data, params):
        x = jax.tree.leaves(data[1])[0]
        floats = x[0].size * sum(leaf[0].size for leaf in jax.tree.leaves(params))
        return over(one, (data, params), spec.lanes.width_for(x.shape[0], floats))

    @systems.def_vmap
    def rule(size, batched, *args):
        def spread(leaf, is_batched):
            leaf = leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))
            return leaf.reshape(-1, *leaf.shape[2:])

        out = systems(*jax.tree.map(spread, args, tuple(batched)))
        out = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return systems


def _lone(function):
    """`function` of trees with a leading axis, for trees without it."""

    def call(*args):
        out = function(*jax.tree.map(lambda a: a[None], args))
        return jax.tree.map(lambda a: a[0], out)

    return call


def analyse(spec, data, params) -> System:
    """The `System` at params: is there one fixed point near them, and where?"""
    problem = Problem(spec, *data, absent=True)
    point, unravel = ravel_pytree(problem.view.inward(params))

    def step(point):
        return ravel_pytree(problem.map(unravel(point)).proposal)[0]

    sizes = jax.tree.map(lambda a: jnp.full(jnp.shape(a), _size(a)), unravel(point))
    sizes = ravel_pytree(sizes)[0].astype(point.dtype)
    proposal, push = jax.linearize(step, point)
    probe = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], point.size), point.dtype)
    limit = jnp.finfo(point.dtype).eps ** -0.7
    if point.size > DENSE:
        inverse = jnp.zeros((0, 0), point.dtype)
        first, polished = _newton(step, point, proposal, push)
        answer = _gmres(lambda v: v - push(v), sizes * probe, CYCLES) / sizes
        ok = jnp.max(jnp.abs(answer)) < limit
    else:
        width = max(1, COLUMNS // (jax.tree.leaves(problem.view.data)[0].size * 8))
        eye = jnp.eye(point.size, dtype=point.dtype)
        rows = (
            jax.vmap(push)(eye) if width >= point.size else jax.lax.map(push, eye, batch_size=width)
        )
        system = eye - rows.T
        inverse = jnp.linalg.inv(system)
        regular = _rounding_grows(inverse, 1 + jnp.abs(rows.T)) < limit
        worst = _times(inverse, _times(inverse, probe * sizes))
        worst = worst / jnp.max(jnp.abs(worst / sizes))
        first = _times(inverse, proposal - point)
        polished, later = _chord(step, point + first, inverse, worst)
        change = jnp.max(jnp.abs(_times(inverse, later) - worst) / sizes)
        ok = regular & (change < CHANGE)
    ok &= jnp.max(jnp.abs(first) / sizes) < NEAR
    shift = polished - point
    ok &= jnp.all(jnp.isfinite(shift))
    return System(jnp.where(ok, shift, 0), jnp.where(ok, inverse, 0), ok)


def _arrived(leaf):
    """A leaf in which what is on its way to 0 is there: EM shrinks a share by a factor a step, and
    the slope of its logarithm overflows long before it arrives."""
    return jnp.where(jnp.abs(leaf) < jnp.finfo(leaf.dtype).tiny ** 0.25, 0, leaf)


def _size(leaf):
    """The root mean square of a leaf, 1 where that is 0."""
    square = jnp.mean(jnp.square(leaf))
    return jnp.sqrt(jnp.where(square > 0, square, 1))


def _chord(step, point, inverse, direction):
    """Where `NEWTON` steps with one inverse end, and (I − J) · direction there, or one before."""

    def again(_, carry):
        point, _ = carry
        proposal, moved = jax.jvp(step, (point,), (direction,))
        return point + _times(inverse, proposal - point), direction - moved

    return jax.lax.fori_loop(1, NEWTON, again, (point, direction))


def _newton(step, point, proposal, push):
    """The same by GMRES, two steps, each with its own J."""
    first = _gmres(lambda v: v - push(v), proposal - point, CYCLES)
    polished = point + first
    proposal, push = jax.linearize(step, polished)
    return first, polished + _gmres(lambda v: v - push(v), proposal - polished, CYCLES)


def _rounding_grows(inverse, size):
    """The spectral radius of |(I − J)⁻¹|·|I − J|: what a solution makes of rounding in J, whatever
    the units of the params (Bauer 1966; Skeel 1979)."""
    matrix = _times(jnp.abs(inverse), size)
    vector = jnp.ones(matrix.shape[0], matrix.dtype)
    for _ in range(8):
        vector = _times(matrix, vector)
        growth = jnp.max(vector)
        vector = vector / growth
    return growth
