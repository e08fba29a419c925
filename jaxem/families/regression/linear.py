"""Normal regressions as linear functions of products of the columns (x, y, 1)."""

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.normal.products import append_one, packed, pairs, products, unpacked
from jaxem.families.regression.design import rows_of
from jaxem.families.regression.normal import LOG_2PI
from jaxem.families.regression.statistics import RegressionStatistics
from jaxem.numerics import tuning
from jaxem.passes.linear import Linear, roomy


def is_faster(x) -> bool:
    """Whether the matrix products are faster than a pass over residuals."""
    return x.x.shape[1] + 1 <= tuning.WIDEST_PRODUCTS


def linear_form(x, intercept: bool) -> Linear:
    """The `Linear` form for `Data` shaped like x: log p(y | x) is a quadratic form in (x, y, 1)."""
    d = x.x.shape[1] + 1

    def columns(x):
        rows = rows_of(x, False)
        y = rows.response if rows.offset is None else rows.response - rows.offset
        return jnp.concatenate([rows.regressors, y[None]])

    def residual(params):
        """(k, d + 1): what times (x, y, 1) is the residual."""
        b = params.coefficients
        ones = jnp.ones((b.shape[0], 1), b.dtype)
        level = -b[:, :1] if intercept else 0 * ones
        return jnp.concatenate([-b[:, int(intercept) :], ones, level], 1)

    def coefficients(params, level):
        v, variance = residual(params), params.dispersion
        form = -0.5 * v[:, :, None] * v[:, None] / variance[:, None, None]
        level = level - 0.5 * (LOG_2PI + jnp.log(variance))
        return packed(form.at[:, -1, -1].add(level))

    def statistics(params, sums):
        moments, v = unpacked(sums, d + 1), residual(params)
        cross = jnp.einsum("kij,kj->ki", moments, v, precision=Precision.HIGHEST)
        kept = jnp.array([d] * int(intercept) + list(range(d - 1)))
        curvature = moments[:, kept][:, :, kept]
        scatter = (v * cross).sum(1)
        return RegressionStatistics(moments[:, d, d], cross[:, kept], curvature, (scatter,))

    def terms(params):
        """In a component |y| is at most the sum of |coefficients|, plus the residual."""
        size, sd = jnp.abs(params.coefficients).sum(1), jnp.sqrt(params.dispersion)
        return (jnp.square(2 * size + sd) / params.dispersion).max()

    return Linear(
        size=(d + 1) * ((d + 1) // 2 + 1),
        one=int(pairs(d + 1)[-1][d, d]),
        room=roomy(x),
        columns=columns,
        features=lambda columns: products(append_one(columns)),
        coefficients=coefficients,
        base=lambda x: None,
        statistics=statistics,
        terms=terms,
    )
