"""The models that `select` compares, with their names."""

from collections.abc import Mapping

from jaxem.analysis import printed
from jaxem.families.normal.normal import Normal
from jaxem.families.normal.structures import STRUCTURES
from jaxem.fit import require_model
from jaxem.models.hmm.chained import Chained
from jaxem.models.lda.lda import LDA
from jaxem.models.mixture import FiniteMixture, Mixture


def given_or_normals(models, k, covariance):
    """The given models, or the normal mixtures of every k and every covariance structure."""
    if models is not None:
        if k is not None or covariance is not None:
            raise TypeError("k and covariance stand in place of models: give one of the two")
        return models
    if k is None:
        raise TypeError(
            "select() needs models, or k: select(x, [model, ...]) or select(x, k=range(1, 10))"
        )
    sizes = k if hasattr(k, "__iter__") else [k]
    names = [name for name in STRUCTURES if name.isupper()]
    covariance = names if covariance is None else covariance
    kinds = [covariance] if isinstance(covariance, str) else covariance
    return [Mixture(Normal(kind), size) for kind in kinds for size in sizes]


def named_models(models):
    """Names and models; TypeError or ValueError where an entry is no model."""
    if isinstance(models, Mapping):
        names, models = [str(name) for name in models], list(models.values())
    else:
        if not hasattr(models, "__iter__"):
            raise TypeError(
                f"models must be a list of models, got {models!r:.60}: the data come first, "
                "select(x, [model, ...])"
            )
        models = list(models)
        names = [printed.model_name(model) for model in models]
    if not models:
        raise ValueError("models are empty: pass at least one model to choose from")
    for i, model in enumerate(models):
        try:
            require_model(model)
        except TypeError as error:
            raise TypeError(f"models[{i}]: {error}") from None
    return names, models


def size_of(model) -> int | None:
    """The number of components, states or topics of a model, None where it has none."""
    if isinstance(model, LDA):
        return model.topics
    return model.k if isinstance(model, FiniteMixture | Chained) else None
