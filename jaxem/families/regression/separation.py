"""Separation: coefficients without a finite maximum of the likelihood. NumPy, on the host."""

import numpy as np

SEPARATED = 0.05
"""A direction of the coefficients in which the information is less than this part of that of one
event counts as separated. A fit of separated data ends where about tol · n events are expected in
that direction, 2e-4 for n = 200."""


def separated(regressors, information, weights):
    """Of each component, whether a linear combination of its regressors has next to no information.

    regressors (m, n), information (k, n) of a row about η, weights (n, k). For every principal
    direction a of Σ w v u u' relative to Σ w u u', the information Σ w v (u'a)² is compared with
    that of one event at a row where (u'a)² is as at half of Σ w |u'a|: far rows do not set it.
    """
    u = np.asarray(regressors, float)
    flags = []
    for v, w in zip(np.asarray(information, float), np.asarray(weights, float).T, strict=True):
        if not (w > 0).any():
            flags.append(False)
            continue
        plain, weighted = (u * w) @ u.T, (u * (w * v)) @ u.T
        size = np.sqrt(np.diagonal(plain))
        size[~(size > 0)] = 1
        values, axes = np.linalg.eigh(plain / size[:, None] / size)
        kept = values > 1e-10 * values.max()
        root = axes[:, kept] / np.sqrt(values[kept]) / size[:, None]
        directions = root @ np.linalg.eigh(root.T @ weighted @ root)[1]
        along = np.abs(directions.T @ u)
        event = np.array([_at_half(row, w) for row in along])
        flags.append(bool(np.any(np.square(along) @ (w * v) < SEPARATED * np.square(event))))
    return np.array(flags)


def _at_half(values, weights):
    """The value (scalar) up to which the values (n,), not negative, hold half of Σ w·values."""
    order = np.argsort(values)
    mass = np.cumsum((weights * values)[order])
    return values[order][np.searchsorted(mass, mass[-1] / 2)]
