"""M-steps of factor models from the covariances S of components, with the factors integrated out.

With W, Γ the eigenvectors and eigenvalues of Ψ^−½ S Ψ^−½, the best loadings at given noise are
Ψ^½ W_q (Γ_q − 1)^½, of the q largest eigenvalues (Lawley & Maxwell 1971; Tipping & Bishop 1999). So
the M-step is a maximum over the noise alone. Axes: `g` covariances, `m` noise vectors, one for all
or one for each covariance.
"""

import math

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.numerics.eigen import eigh
from jaxem.numerics.linalg import diagonal
from jaxem.numerics.triangular import cholesky, times, triangular_inverse

LONGEST_STEP = math.log(10)
"""The largest change of the logarithm of a uniqueness in a Newton step."""

SHORTER = (1.0, 0.3, 0.1)
"""The parts of a Newton step that are tried."""

LEAST_CURVATURE = 1e-6
"""The least curvature in a Newton step: that of the logarithm of a uniqueness near 1 is about 1."""

SHARED_STEPS = 16
"""EM steps of shared loadings in an M-step: each is much cheaper than a pass over the data."""

POOLED_STEPS = 8
"""Steps of the equation for one variance of several components. It is exact after the first unless
an axis of a component has less variance than that, and then after a few."""


def loadings_at(noise, covariance, rank):
    """(the best loadings (g, d, q) at given noise (g, d) up to signs, eigenvalues Γ (g, d),
    eigenvectors)."""
    root = jnp.sqrt(noise)
    values, vectors = eigh(covariance / (root[..., :, None] * root[..., None, :]))
    excess = values[..., None, :rank] - 1
    excess = jnp.where(excess > 0, jnp.sqrt(jnp.where(excess > 0, excess, 1)), 0)
    return root[..., None] * vectors[..., :rank] * excess, values, vectors


def signed(loadings, noise):
    """Loadings in which the entry of every column that is largest, in units of the noise, is
    positive."""
    scaled = stop_gradient(loadings / jnp.sqrt(noise)[..., None])
    largest = jnp.take_along_axis(scaled, jnp.argmax(abs(scaled), -2)[..., None, :], -2)
    return jnp.where(largest < 0, -loadings, loadings)


def canonical(loadings, noise):
    """Loadings rotated so that Λᵀ Ψ⁻¹ Λ is diagonal, the largest entry first."""
    scaled = loadings / jnp.sqrt(noise)[..., None]
    return signed(times(loadings, eigh(times(scaled.swapaxes(-1, -2), scaled))[1]), noise)


def projection(loadings, noise):
    """(B (g, q, d) with E[z | x] = B (x − mean), the covariance (g, q, q) of z given x, log |Σ|
    (g,)), by the matrix identity of Woodbury."""
    q = loadings.shape[-1]
    weighted = loadings.swapaxes(-1, -2) / noise[..., None, :]
    capacitance = jnp.eye(q, dtype=loadings.dtype) + times(weighted, loadings)
    lower = cholesky(capacitance)
    inverse = triangular_inverse(lower)
    remainder = times(inverse.swapaxes(-1, -2), inverse)
    log_det = 2 * jnp.log(diagonal(lower)).sum(-1) + jnp.log(noise).sum(-1)
    return times(remainder, weighted), remainder, log_det


def unexplained(loadings, given, covariance):
    """The diagonal (g, d) of (1 − Λ B) S (1 − Λ B)ᵀ: variances of x − Λ E[z | x]."""
    part = jnp.eye(loadings.shape[-2], dtype=loadings.dtype) - times(loadings, given)
    return (times(part, covariance) * part).sum(-1)


def deviance(loadings, values, noise, covariance):
    """log |Σ| + tr(Σ⁻¹ S), (g,), at the best loadings for given noise (g, d), as a sum of positive
    terms. values: as of `loadings_at`."""
    first = jnp.maximum(values[..., : loadings.shape[-1]], 1)
    given = loadings.swapaxes(-1, -2) / noise[..., None, :] / first[..., None]
    of_factors = (times(given, covariance) * given).sum((-1, -2))
    log_det = jnp.log(first).sum(-1) + jnp.log(noise).sum(-1)
    return log_det + (unexplained(loadings, given, covariance) / noise).sum(-1) + of_factors


def spherical_step(covariance, share, floor, rank, shared):
    """The best loadings (g, d, q) and variances (m, d) of spherical noise (Tipping & Bishop 1999).

    covariance (g, d, d); share (g,), of the units; floor (m,), the smallest variance; shared:
    whether there is one variance, m = 1.
    """
    d = covariance.shape[-1]
    values, vectors = eigh(covariance)
    values = jnp.maximum(values, 0)
    rest = values[:, rank:].sum(-1)
    if shared:
        first, share = values[:, :rank], share[:, None]
        rest = (share[:, 0] * rest).sum()

        def pooled(variance):
            """The mean over all axes with at most this variance, and those beyond the rank."""
            is_low = first < variance
            total = rest + jnp.where(is_low, share * first, 0).sum()
            return total / (d - rank + jnp.where(is_low, share, 0).sum())

        variance = rest / (d - rank)
        is_low = first < jax.lax.fori_loop(
            0, POOLED_STEPS, lambda _, v: pooled(v), stop_gradient(variance)
        )
        total = rest + jnp.where(is_low, share * first, 0).sum()
        variance = (total / (d - rank + jnp.where(is_low, share, 0).sum()))[None]
    else:
        variance = rest / (d - rank)
    variance = jnp.maximum(variance, floor)
    excess = values[:, None, :rank] - variance[:, None, None]
    excess = jnp.where(excess > 0, jnp.sqrt(jnp.where(excess > 0, excess, 1)), 0)
    noise = jnp.broadcast_to(variance[:, None], (variance.shape[0], d))
    loadings = vectors[..., :rank] * excess
    return signed(loadings, jnp.ones_like(covariance[..., 0])), noise


def diagonal_step(covariance, share, noise, floor, rank, shared):
    """Loadings (g, d, q) and noise (m, d) after a step of Newton's method for the logarithms of the
    uniquenesses, at which the deviance is not higher.

    covariance (g, d, d); share (g,), of the units; noise, floor (m, d). Where another candidate
    lowers the deviance further than the full step, it is taken: a part of the step, or one in which
    uniquenesses that fall fast are at the floor. Source: Jöreskog 1967, here with the exact second
    derivatives.
    """
    g, d = covariance.shape[:2]
    noise = jnp.maximum(noise, floor)

    def pooled(a):
        return jnp.tensordot(share, a, 1)[None] if shared else a

    def spread(noise):
        return jnp.broadcast_to(noise, (*noise.shape[:-2], g, d))

    loadings, values, vectors = loadings_at(spread(noise), covariance, rank)
    modelled = spread(noise) + jnp.square(loadings).sum(-1)
    slope = pooled((modelled - diagonal(covariance)) / spread(noise))
    curvature = pooled(_curvature(values, vectors, rank))
    direction = _newton_direction(slope, curvature, noise <= floor)

    steps = [part * direction for part in SHORTER]
    candidates = [jnp.maximum(noise * jnp.exp(step), floor) for step in steps]
    candidates += [jnp.where(direction < -0.5, floor, candidates[0]), noise]

    def at(noise):
        loadings, values, _ = loadings_at(spread(noise), covariance, rank)
        value = stop_gradient(pooled(deviance(loadings, values, spread(noise), covariance)))
        return jnp.where(jnp.isnan(value), jnp.inf, value), noise, loadings

    found, noises, loadings = jax.vmap(at)(jnp.stack(candidates))
    size = d + abs(jnp.log(noise)).sum(-1)
    is_full = found[0] <= found.min(0) + 4 * jnp.finfo(found.dtype).eps * size
    chosen = jnp.where(is_full, 0, jnp.argmin(found, 0))
    is_chosen = (chosen == jnp.arange(len(candidates))[:, None])[..., None]
    noise = jnp.where(is_chosen, noises, 0).sum(0)
    loadings = jnp.where(is_chosen[..., None], loadings, 0).sum(0)
    return signed(loadings, spread(noise)), noise


def _curvature(values, vectors, rank):
    """The second derivatives (g, d, d) of the least deviance by the logarithms of the
    uniquenesses."""
    is_factor = (jnp.arange(values.shape[-1]) < rank) & (values > 1)
    others = jnp.where(is_factor[..., None, :], 0, vectors)
    first, rest = values[..., :rank, None], values[..., None, :]
    is_pair = is_factor[..., :rank, None] & ~is_factor[..., None, :] & (first > rest)
    ratio = jnp.where(is_pair, (1 - rest) * (first + rest) / jnp.where(is_pair, first - rest, 1), 0)

    def squares(coefficients, others=others):
        return times(others * coefficients[..., None, :], others.swapaxes(-1, -2))

    w = vectors[..., :rank].swapaxes(-1, -2)
    of_pairs = (w[..., :, None] * w[..., None, :] * squares(ratio, others[..., None, :, :])).sum(-3)
    return squares(values) * squares(jnp.ones_like(values)) + of_pairs


def _newton_direction(slope, curvature, is_low):
    """−|H|⁻¹ slope (m, d), which is Newton's where the curvature H (m, d, d) is positive definite,
    and leads downwards elsewhere. Uniquenesses that are at the floor, where is_low (m, d), and
    would fall stay."""
    is_fixed = is_low & (slope > 0)
    slope = jnp.where(is_fixed, 0, slope)
    is_apart = is_fixed[..., :, None] | is_fixed[..., None, :]
    curvature = jnp.where(is_apart, jnp.eye(slope.shape[-1], dtype=slope.dtype), curvature)
    values, vectors = eigh(curvature)
    size = jnp.maximum(abs(values), LEAST_CURVATURE)
    along = times(vectors.swapaxes(-1, -2), slope[..., None])[..., 0] / size
    direction = -times(vectors, along[..., None])[..., 0]
    longest = jnp.max(abs(direction), -1, keepdims=True)
    return direction * jnp.where(longest > LONGEST_STEP, LONGEST_STEP / longest, 1)


def shared_loadings_step(covariance, share, loadings, noise, floor, spherical):
    """Shared loadings (1, d, q) and noise (g, d) after `SHARED_STEPS` parameter-expanded EM steps
    (McNicholas & Murphy 2008; Liu, Rubin & Wu 1998), which do not raise the mean deviance.

    covariance (g, d, d); share (g,); loadings (1, d, q); noise (g, d); floor (g, d).
    """

    def step(_, carry):
        loadings, noise = carry
        given, remainder, _ = projection(loadings, noise)
        cross = times(covariance, given.swapaxes(-1, -2))
        moment = remainder + times(given, cross)
        weight = share[:, None] / noise
        a = jnp.einsum("gd,gqr->dqr", weight, moment, precision=jax.lax.Precision.HIGHEST)
        b = jnp.einsum("gd,gdq->dq", weight, cross, precision=jax.lax.Precision.HIGHEST)
        inverse = triangular_inverse(cholesky(a))
        rows = times(inverse.swapaxes(-1, -2), times(inverse, b[..., None]))[..., 0]
        left = unexplained(rows, given, covariance) + (times(rows, remainder) * rows).sum(-1)
        if spherical:
            left = jnp.broadcast_to(left.mean(-1, keepdims=True), left.shape)
        scale = cholesky(jnp.tensordot(share, moment, 1))
        return times(rows, scale)[None], jnp.maximum(left, floor)

    loadings, noise = jax.lax.fori_loop(0, SHARED_STEPS, step, (loadings, noise))
    return canonical(loadings, 1 / (1 / noise).mean(0, keepdims=True)), noise
