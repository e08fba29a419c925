"""Starts of regressions: coefficients from few rows each, and distances of all rows to them."""

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.regression.design import Rows, second_moments
from jaxem.numerics import rows as units
from jaxem.numerics.newton_step import newton_step

CANDIDATES = 4
"""Sets of components that are fitted to few rows, of which a start takes the nearest."""

SAMPLED = 4096
"""Rows, evenly spaced, of which they are drawn, and by which the nearest is found."""

LEAST_RIDGE = 1e-4
"""The ridge of a fit to as few rows as coefficients, as a part of the mean curvature: such rows may
be nearly collinear."""


def drawn_rows(key, weights, count: int, group=None):
    """The indices (k, count) of rows drawn without replacement for each component, with
    probability ∝ weights (n, k); rows of weight 0 only where there are too few others. group (n,)
    ints: rows of few groups first."""
    n, k = weights.shape
    count = min(count, n)
    keys = jax.random.split(key, 2)
    order = jax.random.gumbel(keys[0], (k, n), weights.dtype)
    if group is not None:
        permutation = jax.vmap(lambda key: jax.random.permutation(key, n))
        of_group = permutation(jax.random.split(keys[1], k)).astype(weights.dtype)
        order = 4 * of_group[:, jnp.mod(group, n)] + jax.nn.sigmoid(order)
    weight = weights.T
    is_present = weight > 0
    order = order + jnp.log(jnp.where(is_present, weight, 1)) * (group is None)
    order = jnp.where(is_present, order, order - 1e6 - 8.0 * n)
    return jax.lax.top_k(order, count)[1]


def elemental(response, rows, key, weights, k, unshared, known, group=None):
    """Coefficients (k, m), each fitted to as few rows as it has `unshared` entries, a static list
    of positions in m. Of `CANDIDATES` sets of such components it is the one to which the rows are
    nearest. weights (n, 1), or (n, k)."""
    stride = -(-weights.shape[0] // SAMPLED)
    sample, weights, group = spaced_rows(rows, weights, group, stride)
    keys = jax.random.split(key, CANDIDATES)
    count, n = min(len(unshared), weights.shape[0]), weights.shape[0]
    at_once = weights.shape[1] == 1 and group is None and k * count <= n
    if not at_once:
        weights = jnp.broadcast_to(weights, (n, k))
    drawn = k * count if at_once else count  # by one draw, components have different rows
    index = jax.vmap(lambda key: drawn_rows(key, weights, drawn, group))(keys)
    c = CANDIDATES
    fitted = fitted_to_rows(response, sample, index.reshape(c * k, count), known, unshared)
    eta = sample.predictor(fitted)
    distance = response.stabilised(eta, sample.response, sample.trials).reshape(c, k, -1)
    is_allowed = (weights > 0).T
    nearest = jnp.where(is_allowed, distance, jnp.inf).min(1)
    cost = jnp.where(is_allowed.any(0), nearest * weights.max(1), 0).sum(1)
    return fitted.reshape(c, k, -1)[jnp.argmin(cost)]


def spaced_rows(rows, weights, group, stride: int):
    """Every row number `stride` of `Rows`, of weights (n, k) and of groups (n,)."""
    if stride == 1:
        return rows, weights, group

    def spaced(a):
        return None if a is None else units.spaced(a, stride)

    others = (spaced(a) for a in rows[1:])
    return Rows(spaced(rows.regressors.T).T, *others), spaced(weights), spaced(group)


def fitted_to_rows(response, rows, index, known, unshared):
    """Coefficients (k, m) fitted to the rows index (k, count) on the scale of the predictor, with
    those that are not `unshared` as in `known` (m,)."""
    z, v = response.working(rows.response, rows.trials)
    z = z if rows.offset is None else z - rows.offset
    m = rows.regressors.shape[0]
    others = [j for j in range(m) if j not in unshared]
    if others:
        z = z - jnp.matmul(known[jnp.array(others)], rows.regressors[jnp.array(others)])
    u = jnp.moveaxis(rows.regressors[jnp.array(unshared)][:, index], 0, 1)  # (k, m, count)
    weighted = u * v[index][:, None]
    curvature = jnp.matmul(weighted, u.swapaxes(1, 2), precision=Precision.HIGHEST)
    gradient = jnp.einsum("kmc,kc->km", weighted, z[index], precision=Precision.HIGHEST)
    size = jnp.diagonal(curvature, axis1=1, axis2=2).mean(-1)[:, None, None]
    ridge = LEAST_RIDGE * size * jnp.eye(len(unshared), dtype=z.dtype)
    fitted = newton_step(gradient, curvature + ridge)
    if not others:
        return fitted
    full = jnp.broadcast_to(known, (fitted.shape[0], m))
    return full.at[:, jnp.array(unshared)].set(fitted)


def working_fit(response, rows, weights):
    """Coefficients (k, m) by weighted least squares on the scale of the predictor, for weights
    (n, k)."""
    z, v = response.working(rows.response, rows.trials)
    z = z if rows.offset is None else z - rows.offset
    weighted = (weights * v[:, None]).T
    curvature = second_moments(weighted, rows.regressors)
    gradient = jnp.matmul(weighted * z, rows.regressors.T, precision=Precision.HIGHEST)
    return newton_step(gradient, curvature)
