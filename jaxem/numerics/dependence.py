"""Linear relations among the columns of a table, for messages before a fit."""

import numpy as np

COLLINEAR = 1e-12
"""The smallest eigenvalue, as a part of the largest, of the products of standardised regressors
that are not collinear."""


def dependent(design, intercept: bool):
    """The columns of the first linear relation among regressors (n, p), with the constant 1 if
    `intercept`; none where they are independent, or not finite."""
    if not design.shape[1]:
        return ()
    with np.errstate(all="ignore"):
        values = design.astype(float)
        if not len(values) or not np.isfinite(values.sum()):
            return ()
        if intercept:
            values = values - values.mean(0)
        magnitude = abs(design).max(0)
        size = np.sqrt(np.square(values).mean(0))
        rounding = float(np.finfo(design.dtype).eps) if design.dtype.kind == "f" else 0.0
        is_constant = size <= 4 * rounding * magnitude
        if is_constant.any():
            return np.flatnonzero(is_constant)[:1]
        if len(values) < values.shape[1] + intercept:
            return ()
        standard = values / size
        eigenvalues, vectors = np.linalg.eigh(standard.T @ standard / len(values))
    if eigenvalues[0] > max(COLLINEAR, rounding**2) * eigenvalues[-1]:
        return ()
    part = abs(vectors[:, 0])
    return np.flatnonzero(part > 1e-3 * part.max())
