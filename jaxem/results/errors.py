"""Standard errors of a fit: the inverse information in free coordinates, and the delta method.

Sources: observed information, the Hessian of −log p(x | params) − log p(params) (Efron & Hinkley
1978); outer products of scores (Berndt, Hall, Hall & Hausman 1974); the sandwich of both (Huber
1967; White 1982), by clusters (Liang & Zeger 1986). The last two without n / (n − 1).

Axes: `p` entries of params, `c` coordinates of spaces, `m` independent ones, `k` of these off a
bound.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxem.data.data import as_units
from jaxem.data.options import one_of
from jaxem.data.precision import float64
from jaxem.models.bayesian import BayesianMixture
from jaxem.numerics import tuning
from jaxem.numerics.ranks import independent
from jaxem.numerics.tree import is_floating, is_traced
from jaxem.protocol.capabilities import Bound, LocalPosterior, has
from jaxem.protocol.model import name_of
from jaxem.protocol.spaces import Positive, PositiveDefinite, Simplex, Undeclared, UnitInterval
from jaxem.protocol.status import Status, sentence, warn
from jaxem.protocol.wrapper import Wrapper
from jaxem.results import totals
from jaxem.results.curvature import curvature, frame
from jaxem.results.information import AT_BOUND, information
from jaxem.results.separation import separated
from jaxem.results.uncertainty import Uncertainty, entry_names, unflat
from jaxem.wrappers.restricted import coordinates

METHODS = ("observed", "sandwich", "empirical")

FAR = 0.5
"""The distance from the maximum, in standard errors, from which a warning says so."""

DEPENDS = 1e-5
"""The part of the derivative of an entry along directions that are not identified, from which the
entry is not identified either."""


def standard_errors(result, x, weights, method, cluster, of, pinv) -> Uncertainty:
    """See `Result.standard_errors`."""
    one_of(method, "method", METHODS)
    if result.is_fleet:
        raise TypeError("a batch has standard errors fit by fit: result[i].standard_errors(x[i])")
    if is_traced((result, x, weights, cluster)):
        raise TypeError(
            "standard errors are of a finished fit, which jit, vmap and grad do not have: call "
            "standard_errors outside"
        )
    require_information(result)
    if cluster is not None and method == "observed":
        raise ValueError(
            'cluster adds up scores, which method="observed" does not use: give method="sandwich"'
        )
    with tuning.full_products(), float64():
        _, n, names = as_units(x)
        weights = weights if names is None else names.weights(weights)
        x = jax.tree.map(_in_float64, result._checked(x))
        weights = totals.checked_weights(weights, n, np.dtype(float))
        return _computed(result, x, weights, method, _numbers(cluster, n), of, pinv)


def require_information(result) -> None:
    """TypeError where the params of a fit have no information matrix."""
    model, name = result.model, name_of(result.model)
    plain = model.wrapped if isinstance(model, Wrapper) else model
    if isinstance(plain, BayesianMixture):
        raise TypeError(
            f"{name} has no standard errors: its params are those of a distribution of weights and "
            "components, whose spread is their uncertainty"
        )
    if has(model, LocalPosterior) or has(model, Bound):
        raise TypeError(
            f"{name} has no standard errors: only a bound on its log-likelihood is computed, whose "
            "curvature is not the information"
        )
    if not is_floating(result.params):
        raise TypeError(f"{name} has no standard errors: its params are not all floating-point")
    spaces = jax.tree.leaves(model.spaces(result.params))
    if any(isinstance(space, Undeclared) for space in spaces):
        raise TypeError(
            f"{name} has no standard errors: it declares no spaces of its params, so that their "
            "free coordinates are not known; define spaces(params), with jaxem.spaces"
        )


def _computed(result, x, weights, method, clusters, of, pinv) -> Uncertainty:
    params = jax.tree.map(lambda a: np.asarray(a, float), result.params)
    args = (result._numeric, params, x, weights)
    place = jax.device_get(frame(*args, structure=result._structure))
    if int(place.status) == Status.BAD_INPUT:
        raise ValueError("x holds values outside the support of the model, or a bad weight")
    if int(place.status) == Status.EMPTY:
        raise ValueError(sentence(Status.EMPTY))
    lengths = np.linalg.norm(place.tangents, axis=1)
    chosen = independent(place.tangents, np.argsort(lengths, kind="stable"))
    options = {"outer": method != "observed", "clusters": clusters[1]}

    def curvature_at(shift):
        found = curvature(*args, chosen, shift, clusters[0], structure=result._structure, **options)
        return jax.device_get(found)

    found = information(
        curvature_at,
        place.origin[chosen],
        place.margins[chosen],
        place.kinds[chosen],
        _gauge(result.model, place.inner, chosen),
        is_degenerate=int(result.status) == Status.DEGENERATE,
    )
    covariance, unidentified = found.covariance(method)
    jacobian = place.jacobian[chosen].T  # (p, m)
    spaces = result.model.spaces(params)
    estimates, scales = params, scales_of(spaces, params)
    if of is not None:
        estimates, jacobian = _of_function(of, params, jacobian)
        scales = ("natural",) * len(jacobian)
    names = entry_names(estimates)
    is_maximum = method == "empirical" or found.is_maximum
    reasons = {
        "on a bound": _held(jacobian, found.kept),
        "not identified by these data": _depends(
            jacobian[:, found.kept] * found.scale, unidentified
        )
        & (not pinv),
    }
    if of is None:
        reasons["on a bound"] |= _at_limit(spaces, params)
        reasons["without a finite estimate, since their component is separated"] = _separated(
            result, x, weights, names
        )
    bad = np.full(len(names), not is_maximum)
    for why, which in reasons.items():  # the first reason of an entry alone
        reasons[why] = which & ~bad if is_maximum else which
        bad = bad | which
    jacobian = jacobian[:, found.kept]
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(((jacobian @ covariance) * jacobian).sum(1))
    errors = np.where(bad, np.nan, errors)
    complaints = _complaints(result, found, is_maximum)
    if complaints:
        warn("; ".join(complaints) + ": fit again with a smaller tol, or from other starts", 5)
    notes = [
        f"no error: {_listed(names, which)}: {why}" for why, which in reasons.items() if which.any()
    ] + complaints
    return uncertainty(
        f"{method}, by clusters" if clusters[1] else method,
        estimates,
        errors,
        names,
        scales,
        jacobian,
        covariance,
        notes,
    )


def uncertainty(method, estimates, errors, names, scales, jacobian, covariance, notes, **more):
    """An `Uncertainty` from errors (p,), the derivative (p, k) of entries by coordinates and the
    covariance (k, k) of these."""
    has_error = np.isfinite(errors) & (errors > 0)
    free = np.flatnonzero(has_error)[independent(jacobian[has_error])]
    of_free = jacobian @ np.linalg.pinv(jacobian[free]) if len(free) else jacobian[:, :0]
    return Uncertainty(
        method=method,
        estimates=estimates,
        errors=unflat(estimates, errors),
        names=names,
        coordinates=tuple(names[i] for i in free),
        covariance=jacobian[free] @ covariance @ jacobian[free].T,
        jacobian=of_free,
        scales=scales,
        notes=tuple(notes),
        **more,
    )


def _of_function(of, params, jacobian):
    """The values of a function of params, and their derivative by coordinates (q, m)."""
    origin, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))

    def values(vector):
        return jax.tree.map(lambda a: jnp.asarray(a, float), of(unravel(vector)))

    def flat(vector):
        return ravel_pytree(values(vector))[0]

    estimates = jax.tree.map(np.asarray, values(origin))
    if not jax.tree.leaves(estimates):
        raise TypeError("of must return a number or a tree of arrays, got none")
    by_entry = np.asarray(jax.jacfwd(flat)(origin))
    return estimates, by_entry @ jacobian


def _gauge(model, params, chosen):
    """Directions (g, m) that no data can identify: rotations of loadings."""
    chart = coordinates(model, jax.tree.map(jnp.asarray, params))
    spaces, directions = model.spaces(params), []
    leaves = zip(*map(jax.tree.leaves, (spaces, params)), strict=True)
    for number, (space, leaf) in enumerate(leaves):
        if not space.redundant(leaf.shape):
            continue
        d, q = leaf.shape[-2:]
        for block in range(leaf.size // (d * q)):
            for i in range(q):
                for j in range(i):
                    turn = np.zeros((leaf.size // (d * q), d, q))
                    rows = leaf.reshape(-1, d, q)[block]
                    turn[block, :, i], turn[block, :, j] = rows[:, j], -rows[:, i]
                    directions.append((number, turn.reshape(leaf.shape)))
    found = []
    for number, turn in directions:
        tree = [np.zeros(np.shape(leaf)) for leaf in jax.tree.leaves(params)]
        tree[number] = turn
        tree = jax.tree.unflatten(jax.tree.structure(params), tree)
        vector = np.asarray(chart.of_entries(tree))
        vector = np.where(np.isfinite(vector), vector, 0)[chosen]
        if np.linalg.norm(vector) > (1 - 1e-9) * np.linalg.norm(turn):
            found.append(vector)
    return np.reshape(found, (len(found), len(chosen)))


def _held(jacobian, kept):
    """Which entries move with a coordinate on a bound rather than with the others."""
    size = np.abs(jacobian)
    held = np.delete(size, kept, axis=1).max(1, initial=0)
    return (held > 0) & (held >= 0.5 * size.max(1, initial=0))


def _at_limit(spaces, params):
    """Which entries are at a limit of their range other than 0."""
    found = []
    for space, leaf in zip(*map(jax.tree.leaves, (spaces, params)), strict=True):
        is_at = np.zeros(leaf.shape, bool)
        if isinstance(space, Positive):
            is_at |= (leaf <= space.least * (1 + AT_BOUND)) & (space.least > 0)
            is_at |= (leaf >= space.most * (1 - AT_BOUND)) & (space.most < math.inf)
        found.append(is_at.ravel())
    return np.concatenate(found)


def _depends(jacobian, directions):
    """Which rows of the derivative (p, k) are not 0 along directions (u, k)."""
    along = np.linalg.norm(jacobian @ directions.T, axis=1)
    return along > DEPENDS * np.linalg.norm(jacobian, axis=1)


def _separated(result, x, weights, names):
    """Which entries are coefficients of a separated component."""
    components = np.flatnonzero(separated(result, x, weights))
    starts = tuple(f"components.coefficients[{j}," for j in components)
    return np.array([name.startswith(starts) for name in names] if starts else [False] * len(names))


def _complaints(result, found, is_maximum):
    """Why the params are no maximum of the likelihood, in sentences."""
    complaints = []
    if not is_maximum:
        complaints.append(
            "the params are no maximum: the information is negative in a direction, so that there "
            "are no errors"
        )
    elif math.isfinite(found.distance) and found.distance > FAR:
        complaints.append(
            f"the params are {found.distance:.2g} standard errors from the maximum of the "
            "likelihood, and the errors are those there"
        )
    elif int(result.status) not in (Status.CONVERGED, Status.MAX_ITER):
        complaints.append(sentence(int(result.status)))
    return complaints


def scales_of(spaces, params) -> tuple[str, ...]:
    """For every entry the scale of its interval."""
    found = []
    for space, leaf in zip(*map(jax.tree.leaves, (spaces, params)), strict=True):
        kind = "logit" if isinstance(space, (Simplex, UnitInterval)) else "natural"
        kinds = np.full(leaf.shape, "log" if isinstance(space, Positive) else kind, object)
        if isinstance(space, PositiveDefinite):
            kinds = np.where(np.eye(leaf.shape[-1], dtype=bool), "log", kinds)
        found += kinds.ravel().tolist()
    return tuple(found)


def _listed(names, which) -> str:
    chosen = [names[i] for i in np.flatnonzero(which)]
    more = f", ... ({len(chosen)} in all)" if len(chosen) > 6 else ""
    return ", ".join(chosen[:6]) + more


def _in_float64(leaf):
    return leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _numbers(cluster, n):
    """(the cluster of every unit as a number from 0 (n,), how many there are)."""
    if cluster is None:
        return None, 0
    names = np.asarray(cluster)
    if names.shape != (n,):
        raise ValueError(f"cluster must name one cluster a unit, ({n},), got shape {names.shape}")
    found, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int32), len(found)
