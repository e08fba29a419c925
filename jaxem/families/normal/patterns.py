"""A faster pass over many rows with missing cells: by patterns of observed cells.

Rows of one pattern have densities and completed moments that are functions of products of their
observed cells. So one sweep of every covariance for each pattern does for all rows.
"""

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.families.normal.cells import Cells
from jaxem.families.normal.full import FullForm
from jaxem.families.normal.gaussian import NormalStatistics
from jaxem.families.normal.moments import LOG_2PI
from jaxem.families.normal.products import packed
from jaxem.numerics import tuning
from jaxem.numerics.rows import are_sharded
from jaxem.numerics.sweeps import swept, times
from jaxem.passes.blocked import Blocked

FORM = FullForm()


def blocked_form(bank, x) -> Blocked | None:
    """The `Blocked` form of a bank of covariance matrices for rows shaped like x (n, d), None where
    they are too few for all patterns."""
    n, d = x.shape
    if d > tuning.PATTERN_FEATURES or n < tuning.PATTERN_ROWS * 2**d or are_sharded():
        return None
    observed = jnp.asarray(np.arange(2**d) >> np.arange(d)[:, None] & 1 == 1)  # (d, p)

    def matrices(params):
        return bank.structure.matrices(params.covariance, *params.mean.shape)

    def all_swept(params):
        covariance = matrices(params)[..., None]
        return swept(jnp.broadcast_to(covariance, (*covariance.shape[:3], 2**d)), observed)

    def kind(x):
        return (Cells.of(x).observed * 2 ** jnp.arange(d)).sum(1)

    def coefficients(params):
        matrix, log_det = all_swept(params)  # (k, d, d, p), (k, p)
        precision = jnp.where(observed[:, None] & observed, -matrix, 0)
        mean = jnp.where(observed, params.mean[:, :, None], 0)
        slope = times(precision, mean)
        count = observed.sum(0)
        level = -0.5 * (count * LOG_2PI + log_det + (slope * mean).sum(1))
        top = jnp.concatenate([-0.5 * precision, 0.5 * slope[:, :, None]], axis=2)
        bottom = jnp.concatenate([0.5 * slope, level[:, None]], axis=1)
        form = jnp.concatenate([top, bottom[:, None]], axis=1)
        k = form.shape[0]
        form = jnp.moveaxis(form, -1, 0).reshape(-1, d + 1, d + 1)
        return packed(form).reshape(2**d, k, -1)

    def statistics(params, sums):
        k = params.mean.shape[0]
        flat = jnp.moveaxis(sums, 1, 0).reshape(sums.shape[1], -1)  # (size, p · k)
        mean = jnp.broadcast_to(params.mean, (2**d, k, d)).reshape(-1, d)
        count, first, second = FORM.moments(mean, flat)
        count, first = count.reshape(2**d, k), first.reshape(2**d, k, d)
        matrix = jnp.moveaxis(all_swept(params)[0], -1, 0)  # (p, k, d, d)
        is_observed = observed.T[:, None]
        rows, columns = is_observed[..., None], is_observed[..., None, :]
        slopes = jnp.where(rows, jnp.eye(d, dtype=matrix.dtype), jnp.where(columns, matrix, 0))
        spread = jnp.where(rows | columns, 0, matrix)
        if bank.limits is not None:
            varies = bank.limits.varies
            spread = jnp.where(varies[:, None] & varies, spread, 0)
        first = jnp.where(is_observed, first, 0)
        second = jnp.where(rows & columns, second.reshape(2**d, k, d, d), 0)
        count = jnp.where(is_observed.any(-1), count, 0)
        first = jnp.einsum("pkij,pkj->ki", slopes, first, precision=Precision.HIGHEST)
        second = jnp.einsum("pkij,pkjl->pkil", slopes, second, precision=Precision.HIGHEST)
        second = jnp.einsum("pkil,pkml->kim", second, slopes, precision=Precision.HIGHEST)
        second = second + (count[..., None, None] * spread).sum(0)
        return NormalStatistics(count.sum(0), first, bank.structure.gathered(second))

    return Blocked(
        kinds=2**d,
        size=FORM.size(d),
        one=FORM.one(d),
        kind=kind,
        columns=lambda x: Cells.of(x).x,
        features=FORM.features,
        coefficients=coefficients,
        statistics=statistics,
        terms=lambda params: FORM.terms(params.mean, matrices(params)).max(),
    )
