"""Whether and how mixtures can start: from units, or from given components."""

import warnings

import jax
import numpy as np

from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.status import FitWarning


def starts_among_units(model) -> bool:
    """Whether a model is a mixture whose default start is k-means++ among the units themselves."""
    is_plain = isinstance(model, FiniteMixture) and type(model).init is FiniteMixture.init
    return is_plain and model.bank.domain.are_points


def warn_if_identical(components, k: int, lead: int) -> None:
    """A `FitWarning` where all components of a given start are equal. components: NumPy arrays with
    `lead` axes of starts before the axis k."""
    leaves = jax.tree.leaves(components)
    leaves = [leaf for leaf in leaves if leaf.shape[lead : lead + 1] == (k,)]
    differs = [
        (leaf != np.take(leaf, [0], lead)).any(tuple(range(lead, leaf.ndim))) for leaf in leaves
    ]
    if k > 1 and leaves and not np.all(np.any(differs, axis=0)):
        warnings.warn(
            "init components are identical: EM cannot tell them apart and will not move them "
            "apart; start from different components",
            FitWarning,
            stacklevel=5,
        )
