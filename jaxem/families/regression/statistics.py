"""The params of a regression, and the statistics of its M-step."""

from typing import Any, NamedTuple

from jaxem.numerics.tree import pytree


@pytree(eq=False)
class RegressionParams:
    """coefficients (k, 1 + p), the intercept first where there is one; dispersion (k,): the
    variance of a normal, Var/mean² of a gamma, α in Var = μ + α μ² of a negative binomial; None for
    Poisson and binomial responses."""

    coefficients: Any
    dispersion: Any = None


class RegressionStatistics(NamedTuple):
    """Σw (k,); the gradient Σ w f' u (k, m) and curvature −Σ w f'' u uᵀ (k, m, m) of f(u'b), at the
    coefficients of params; `further` sums for the dispersion, a tuple of (k,); cross (k, m): Σ w of
    the cross derivative by coefficients and dispersion, or None."""

    count: Any
    gradient: Any
    curvature: Any
    further: tuple
    cross: Any = None
