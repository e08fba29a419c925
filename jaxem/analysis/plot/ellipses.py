"""Where components with elliptical contours lie, as NumPy arrays."""

from math import lgamma
from typing import NamedTuple

import numpy as np

from jaxem.families.factors import Factors
from jaxem.families.normal.normal import Normal
from jaxem.families.student import StudentT


class Ellipses(NamedTuple):
    """Locations (k, d), scales (k, d, d), and degrees of freedom (k,), infinite of normals.

    The density of component j is a function of (x − location)ᵀ scale⁻¹ (x − location).
    """

    location: np.ndarray
    scale: np.ndarray
    df: np.ndarray

    def ellipse(self, j: int, pair, level: float):
        """(width, height, angle in degrees) of the ellipse that holds `level` of the mass of
        component j in two of its columns: P((x − m)ᵀ S⁻¹ (x − m) ≤ r²) is 1 − exp(−r²/2) of a
        normal, and 1 − (1 + r²/df)^(−df/2) of a t (r²/2 is F(2, df))."""
        scale = self.scale[j][np.ix_(pair, pair)]
        df, tail = self.df[j], 1 - level
        square = -2 * np.log(tail) if np.isinf(df) else df * (tail ** (-2 / df) - 1)
        variances, directions = np.linalg.eigh(scale)
        width, height = 2 * np.sqrt(square * np.maximum(variances[::-1], 0))
        x, y = directions[:, -1]
        return width, height, np.degrees(np.arctan2(y, x))

    def density(self, j: int, column: int, grid):
        """The marginal density (g,) of component j in one column, at the values of a grid (g,)."""
        df, variance = self.df[j], self.scale[j, column, column]
        square = np.square(grid - self.location[j, column]) / variance
        if np.isinf(df):
            return np.exp(-0.5 * square) / np.sqrt(2 * np.pi * variance)
        log_constant = lgamma((df + 1) / 2) - lgamma(df / 2) - 0.5 * np.log(df * np.pi * variance)
        return np.exp(log_constant - (df + 1) / 2 * np.log1p(square / df))


def ellipses(bank, params) -> Ellipses | None:
    """The `Ellipses` of a bank with these params, None where its components are not elliptical.

    Those of a `BayesianMixture` are normals at the posterior means of location and precision.
    """
    if isinstance(bank, Factors):
        return _of(params.mean, np.asarray(bank.covariance(params), float))
    if isinstance(bank, StudentT):
        structure, scale = Normal(bank.covariance).structure, params.scale
        found = _of(params.mean, _matrices(structure, params.mean, scale))
        return found._replace(df=np.asarray(params.df, float))
    if isinstance(bank, Normal):
        return _of(params.mean, _matrices(bank.structure, params.mean, params.covariance))
    return None


def _of(location, scale) -> Ellipses:
    location = np.asarray(location, float)
    k, d = location.shape
    return Ellipses(location, np.broadcast_to(scale, (k, d, d)), np.full(k, np.inf))


def _matrices(structure, mean, covariance):
    """Covariance matrices (k, d, d) from covariances in the shape of their structure."""
    (k, d), covariance = np.shape(mean), np.asarray(covariance, float)
    if structure.whole:
        return covariance
    if structure.one_variance:
        covariance = np.broadcast_to(covariance[:, None], (k, d))
    return _diagonal(covariance)


def _diagonal(variances):
    """Matrices (k, d, d) with variances (k, d)."""
    return variances[..., None] * np.eye(variances.shape[-1])
