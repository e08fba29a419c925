"""`Moments`: means and covariances of rows that are not at hand."""

import math
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem.data.options import one_of
from jaxem.numerics.tree import is_traced, pytree
from jaxem.protocol.status import FitWarning

DIVISORS = ("n", "n-1")

SMALLEST_EIGENVALUE = 1e-9
"""How far below 0 the least eigenvalue of a covariance may be, as a part of the largest: printed
tables are rounded, but a matrix of three digits that is indefinite is no covariance."""


@pytree(static=("divisor",), eq=False)
class Moments:
    """The mean and covariance of n rows, as data of one normal or factor component.

    `fit(Mixture(Factors(2), k=1), Moments(covariance, n))` is the fit of n rows with these moments,
    on which alone their likelihood depends: its log-likelihood, BIC and params are those of the
    rows.

    Args:
      covariance: (d, d), or a correlation matrix, which is the covariance of standardised rows. It
        may be singular, with a `FitWarning`.
      n: the number of rows, a number above 0, or above 1 with divisor="n-1".
      mean: (d,), in the units of the data, the covariance in their squares; None: 0.
      divisor: by what the sums of squares were divided, "n", as maximum likelihood does, or "n-1",
        as most software does.

    Raises ValueError where the covariance is not symmetric or not positive semi-definite, n is too
    small, divisor is another word, or shapes do not agree.
    """

    covariance: Any
    n: Any
    mean: Any = None
    divisor: str = "n"

    def __post_init__(self):
        one_of(self.divisor, "divisor", dict.fromkeys(DIVISORS))
        shape = np.shape(self.covariance)
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
            raise ValueError(f"covariance must have shape (d, d), got {shape}")
        if self.mean is not None and np.shape(self.mean) != shape[:1]:
            raise ValueError(f"mean must have shape {shape[:1]}, got {np.shape(self.mean)}")
        if is_traced((self.covariance, self.n)):
            return
        n = np.asarray(self.n)
        least = 0 if self.divisor == "n" else 1
        if n.ndim or n.dtype.kind not in "fiu" or not (n > least and math.isfinite(n)):
            raise ValueError(f"n must be a number of rows above {least}, got {self.n!r}")
        covariance = np.asarray(self.covariance, float)
        if not np.isfinite(covariance).all():
            raise ValueError("covariance holds values that are not finite: give a complete matrix")
        apart = abs(covariance - covariance.T).max()
        if apart > 1e-6 * abs(covariance).max():
            raise ValueError(
                f"covariance must be symmetric, got entries that differ by {apart:g}: give "
                "(covariance + covariance.T) / 2"
            )
        values = np.linalg.eigvalsh((covariance + covariance.T) / 2)
        if values[0] < -SMALLEST_EIGENVALUE * values[-1] or values[-1] <= 0:
            raise ValueError(
                f"covariance must be positive semi-definite, got the eigenvalue {values[0]:g}: "
                "compute it from complete rows, not pair by pair"
            )

    def rows(self):
        """(rows (2d, d), weights (2d,)) with these moments: mean ± √d · L eᵢ, of weight n/(2d)
        each, L Lᵀ = covariance."""
        traced = is_traced((self.covariance, self.n, self.mean))
        xp = jnp if traced else np
        covariance, d = self.covariance, np.shape(self.covariance)[0]
        covariance = xp.asarray(covariance) if traced else np.asarray(covariance, float)
        covariance = (covariance + covariance.T) / 2
        n = self.n
        if self.divisor == "n-1":
            covariance = covariance * ((n - 1) / n)
        root = math.sqrt(d) * (jnp.linalg.cholesky(covariance) if traced else _root(covariance))
        mean = xp.zeros(d, root.dtype) if self.mean is None else xp.asarray(self.mean)
        rows = xp.concatenate([mean + root.T, mean - root.T])
        return rows, xp.full(2 * d, 1 / (2 * d), root.dtype) * n


def _root(covariance):
    """L with L Lᵀ = covariance: the Cholesky factor, or the symmetric root of a singular matrix."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] > len(values) * np.finfo(float).eps * values[-1]:
        return np.linalg.cholesky(covariance)
    warnings.warn(
        "covariance is singular: some columns are sums of others, or there were no more rows than "
        "columns; a full covariance then has no finite likelihood",
        FitWarning,
        stacklevel=6,
    )
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
