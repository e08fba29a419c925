"""Held-out scores of the models that `select` compares."""

import numpy as np

from jaxem.analysis.cross_validation import cross_validate
from jaxem.data.data import as_units
from jaxem.protocol.status import collected_warnings


def held_out_scores(x, models, key, options):
    """Σ w·log p of units under models that were fitted without their fold, (m,)."""
    with collected_warnings():
        found = cross_validate(x, models, _folds(x, options["weights"]), key=key, **options)
    weights = options["weights"]
    total = found.scores.shape[-1] if weights is None else np.sum(weights, dtype=float)
    return found.mean * total


def _folds(x, weights) -> int:
    """Ten, or as many as there are units."""
    units = as_units(x)[1] if weights is None else int((np.asarray(weights) > 0).sum())
    return max(2, min(10, units))
