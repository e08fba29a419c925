"""Derivatives of the log-likelihood of data at the params of a fit, in free coordinates.

The coordinates are those of `Model.spaces` without constraints, of data in the units of the
arithmetic. There may be more of them than free parameters, such as one for each entry of a
probability vector; `results.errors` chooses independent ones.

Axes: `n` units, `p` entries of params, `c` coordinates, `m` chosen ones.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxem.data.documents import Documents
from jaxem.data.grouped import Grouped
from jaxem.data.sequences import Sequences
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, in_dtype, merge
from jaxem.passes.chunks import in_chunks, sums_of
from jaxem.protocol.spaces import Positive, Reciprocal, Simplex, UnitInterval
from jaxem.protocol.units import inward, outward, standardized
from jaxem.solver.problem import sanitize
from jaxem.solver.programs import Program
from jaxem.wrappers.restricted import coordinates


class Frame(NamedTuple):
    """Params in coordinates. status: of the data, as in `sanitize`. origin (c,): the coordinates of
    the params. tangents (c, p): the derivative of params in the units of the arithmetic by
    coordinates. jacobian (c, p): that of params in the units of the data. margins (c,): the
    relative distance of the entry of a coordinate from a bound, ∞ where it has none. kinds (c,): 1
    for logarithms of entries with the bound 0, 2 for log odds, else 0. inner: the params in the
    units of the arithmetic."""

    status: Any
    origin: Any
    tangents: Any
    jacobian: Any
    margins: Any
    kinds: Any
    inner: Any


class Curvature(NamedTuple):
    """gradient (m,) and hessian (m, m) of Σ w·log p(x | params) + log p(params); outer (m, m):
    Σ w·s sᵀ of the scores s of units, of clusters Σ S Sᵀ of S = Σ w·s, None where it was not asked
    for."""

    gradient: Any
    hessian: Any
    outer: Any


@partial(jax.jit, static_argnames="structure")
def frame(numeric, params, x, weights, structure) -> Frame:
    """The `Frame` of params."""
    at = _Coordinates(numeric, params, x, weights, structure)

    def both(vector):
        inner = at.chart.params(vector)
        return ravel_pytree(inner)[0], ravel_pytree(at.outward(inner))[0]

    def tangent(direction):
        return jax.jvp(both, (at.chart.origin,), (direction,))[1]

    origin = at.chart.origin
    tangents, jacobian = jax.lax.map(tangent, jnp.eye(origin.size, dtype=origin.dtype))
    margins = at.chart.of_entries(jax.tree.map(_margin, at.spaces, at.inner))
    kinds = at.chart.of_entries(jax.tree.map(_kind, at.spaces, at.inner))
    kinds = jnp.where(jnp.isfinite(kinds), kinds, 0)
    return Frame(at.status, origin, tangents, jacobian, margins, kinds, at.inner)


def curvature(numeric, params, x, *args, structure, outer, clusters=0) -> Curvature:
    """The `Curvature` in the coordinates `chosen` (m,), at those of params plus shift (m,): see
    `_curvature`."""
    numbers = merge(numeric, structure).domain.components
    numbers *= sum(leaf.size for leaf in jax.tree.leaves(x)) * len(args[1])
    effort = "full" if numbers > tuning.CURVATURE_NUMBERS else "less"
    static = {"structure": structure, "outer": outer, "clusters": clusters}
    return CURVATURE(effort, numeric, params, x, *args, **static)


def _curvature(
    numeric, params, x, weights, chosen, shift, cluster, *, structure, outer, clusters
) -> Curvature:
    """The `Curvature` in the coordinates `chosen` (m,), at those of params plus shift (m,).

    outer: whether to compute it. cluster (n,): the number of the cluster of every unit, below
    `clusters`; None, with clusters = 0: every unit is one.
    """
    at = _Coordinates(numeric, params, x, weights, structure)
    origin = jnp.asarray(shift, at.chart.origin.dtype)
    identity = jnp.eye(origin.size, dtype=origin.dtype)

    def params_at(vector):
        return at.chart.params(at.chart.origin.at[chosen].add(vector))

    def evidence(vector, x):
        return at.model.posterior(params_at(vector), x)[1]

    def of_rows(vector, data, weights):
        rows, cluster = data
        found, present = {}, weights > 0

        def total(vector):
            return jnp.where(present, weights * evidence(vector, rows), 0).sum()

        slope = jax.grad(total)
        found["gradient"] = slope(vector)
        found["hessian"] = _along(lambda v: jax.jvp(slope, (vector,), (v,))[1], identity)
        each = evidence(vector, rows)
        if outer:
            of_units = partial(evidence, x=rows)
            scores = _along(lambda v: jax.jvp(of_units, (vector,), (v,))[1], identity)
            scores = jnp.where(present, scores, 0)  # (m, n)
            if clusters:
                sums = jax.ops.segment_sum((weights * scores).T, cluster, clusters)
                found["sums"] = sums
            else:
                found["outer"] = times(weights * scores, scores.T)
        return found, each

    data = (at.x, cluster)
    rows = _rows(at.model, at.x, origin.size)
    if rows is None:
        found = sums_of(of_rows, origin, data, at.weights).statistics
    else:
        found = in_chunks(of_rows, rows, origin, data, at.weights).statistics
    if "sums" in found:
        found["outer"] = times(found["sums"].T, found["sums"])

    def prior(vector):
        return jnp.asarray(at.model.log_prior(params_at(vector)), vector.dtype)

    found["gradient"] += jax.grad(prior)(origin)
    found["hessian"] += jax.hessian(prior)(origin)
    return Curvature(*map(found.get, Curvature._fields))


CURVATURE = Program(_curvature, "structure", "outer", "clusters")


class _Coordinates:
    """Params, data and model in the units of the arithmetic, and the chart of the params."""

    def __init__(self, numeric, params, x, weights, structure):
        dtype = float_dtype(x)
        given = merge([in_dtype(leaf, dtype) for leaf in numeric], structure)
        x, self.weights, self.status = sanitize(given, x, weights)
        standard = standardized(given, x, self.weights)
        self.given, self.units = given, standard.units
        self.model, self.x = standard.model, standard.data
        inner = inward(given, self.units, params)
        self.spaces = self.model.spaces(inner)
        self.inner = jax.tree.map(_inside, self.spaces, inner)
        self.chart = coordinates(self.model, self.inner)

    def outward(self, inner):
        return outward(self.given, self.units, inner)


def times(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _along(derivative, directions):
    """A derivative along every direction; of many, in blocks."""
    if len(directions) <= tuning.DIRECTIONS:
        return jax.vmap(derivative)(directions)
    return jax.lax.map(derivative, directions, batch_size=tuning.DIRECTIONS)


def _rows(model, x, m):
    """Rows of a chunk; None where the data are not cut: there are few, or their units are not rows
    of arrays."""
    n, is_tree = jax.tree.leaves(x)[0].shape[0], isinstance(x, (Grouped, Sequences, Documents))
    numbers = model.domain.components * sum(leaf.size for leaf in jax.tree.leaves(x))
    each = max(1, numbers // n) * min(m, tuning.DIRECTIONS)
    if is_tree or n * each <= tuning.CURVATURE_NUMBERS:
        return None
    return max(64, tuning.CURVATURE_NUMBERS // each)


def _inside(space, leaf):
    """A leaf with entries on a bound at 0, or at 1, just inside it, where logarithms are finite."""
    eps = float(jnp.finfo(leaf.dtype).eps)
    if isinstance(space, UnitInterval):
        return jnp.clip(leaf, eps**2, 1 - eps / 2)
    if isinstance(space, (Positive, Simplex)):
        return jnp.maximum(leaf, eps**2)
    return leaf


def _margin(space, leaf):
    """The relative distance of entries from a bound; 0 for a value whose limit is infinite."""
    if isinstance(space, Reciprocal):
        return jnp.where((leaf > space.least) & (leaf < space.most), 1e-6, 0) * jnp.ones_like(leaf)
    if isinstance(space, Positive) and (space.least > 0 or space.most < np.inf):
        return jnp.minimum(
            leaf / space.least - 1 if space.least > 0 else jnp.inf, 1 - leaf / space.most
        )
    margin = space.margin(leaf) if isinstance(space, (Positive, UnitInterval, Simplex)) else None
    return jnp.full(leaf.shape, jnp.inf, leaf.dtype) if margin is None else margin


def _kind(space, leaf):
    """As `Frame.kinds`, for the entries of a leaf."""
    is_log = isinstance(space, Simplex) or (isinstance(space, Positive) and space.least == 0)
    kind = 2.0 if isinstance(space, UnitInterval) else float(is_log)
    return jnp.full(leaf.shape, kind, leaf.dtype)
