"""jaxem: Expectation-Maximization on JAX."""

import importlib
from typing import TYPE_CHECKING

from jaxem import datasets, topics
from jaxem.batch import Batch
from jaxem.each import Each
from jaxem.fit import fit
from jaxem.init import (
    KMeansPlusPlus,
    Labels,
    RandomResponsibilities,
    RandomRows,
    Responsibilities,
)
from jaxem.lanes import Lanes
from jaxem.methods.em import EM, Exact
from jaxem.model import Bank, Model
from jaxem.models.mixture import Labelled, Mixture, MixtureParams
from jaxem.objective import free_energy
from jaxem.priors import (
    BetaPrior,
    DirichletPrior,
    GammaConjugatePrior,
    GammaPrior,
    NormalPrior,
    NormalWishartPrior,
)
from jaxem.restarts import Restarts
from jaxem.restricted import Restricted
from jaxem.result import Fit, Result
from jaxem.status import FitError, FitWarning, Status

if TYPE_CHECKING:
    from jaxem.documents import Documents
    from jaxem.families.bernoulli import Bernoulli, BernoulliParams
    from jaxem.families.categorical import Categorical, CategoricalParams
    from jaxem.families.conjugate import BetaPosterior, DirichletPosterior, GammaPosterior
    from jaxem.families.exponential import Exponential, ExponentialParams
    from jaxem.families.exponential_family import ExponentialFamily
    from jaxem.families.gamma import Gamma, GammaParams
    from jaxem.families.multinomial import Multinomial, MultinomialParams
    from jaxem.families.normal import Normal, NormalParams
    from jaxem.families.normal_wishart import NormalPosterior
    from jaxem.families.poisson import Poisson, PoissonParams
    from jaxem.families.product import Product
    from jaxem.families.student import StudentT, StudentTParams
    from jaxem.models.bayesian import BayesianMixture, BayesianMixtureParams
    from jaxem.models.lda import LDA, LDAParams
    from jaxem.selection import Row, Selection, select

_LATER = {
    "Blocks": "methods.blocks",
    "Variational": "methods.variational",
    "Anderson": "methods.acceleration",
    "SQUAREM": "methods.acceleration",
    "Constrained": "methods.constraints",
    "Decay": "methods.online",
    "Gradient": "methods.parameter_rules",
    "OnlineEM": "methods.online",
    "Hard": "methods.posterior_rules",
    "MeanField": "methods.mean_field",
    "Incremental": "methods.posterior_rules",
    "Stochastic": "methods.posterior_rules",
    "Tempered": "methods.posterior_rules",
    "BayesianMixture": "models.bayesian",
    "BayesianMixtureParams": "models.bayesian",
    "Bernoulli": "families.bernoulli",
    "BernoulliParams": "families.bernoulli",
    "BetaPosterior": "families.conjugate",
    "Categorical": "families.categorical",
    "CategoricalParams": "families.categorical",
    "DirichletPosterior": "families.conjugate",
    "Exponential": "families.exponential",
    "ExponentialParams": "families.exponential",
    "ExponentialFamily": "families.exponential_family",
    "Gamma": "families.gamma",
    "GammaParams": "families.gamma",
    "GammaPosterior": "families.conjugate",
    "Multinomial": "families.multinomial",
    "MultinomialParams": "families.multinomial",
    "Normal": "families.normal",
    "NormalParams": "families.normal",
    "NormalPosterior": "families.normal_wishart",
    "Poisson": "families.poisson",
    "PoissonParams": "families.poisson",
    "Product": "families.product",
    "StudentT": "families.student",
    "StudentTParams": "families.student",
    "LDA": "models.lda",
    "LDAParams": "models.lda",
    "Documents": "documents",
    "Row": "selection",
    "check_model": "author",
    "kmeans": "lloyd",
    "Selection": "selection",
    "select": "selection",
}

__all__ = [
    "EM",
    "LDA",
    "SQUAREM",
    "Anderson",
    "Bank",
    "Batch",
    "BayesianMixture",
    "BayesianMixtureParams",
    "Bernoulli",
    "BernoulliParams",
    "BetaPosterior",
    "BetaPrior",
    "Blocks",
    "Categorical",
    "CategoricalParams",
    "Constrained",
    "Decay",
    "DirichletPosterior",
    "DirichletPrior",
    "Documents",
    "Each",
    "Exact",
    "Exponential",
    "ExponentialFamily",
    "ExponentialParams",
    "Fit",
    "FitError",
    "FitWarning",
    "Gamma",
    "GammaConjugatePrior",
    "GammaParams",
    "GammaPosterior",
    "GammaPrior",
    "Gradient",
    "Hard",
    "Incremental",
    "KMeansPlusPlus",
    "LDAParams",
    "Labelled",
    "Labels",
    "Lanes",
    "MeanField",
    "Mixture",
    "MixtureParams",
    "Model",
    "Multinomial",
    "MultinomialParams",
    "Normal",
    "NormalParams",
    "NormalPosterior",
    "NormalPrior",
    "NormalWishartPrior",
    "OnlineEM",
    "Poisson",
    "PoissonParams",
    "Product",
    "RandomResponsibilities",
    "RandomRows",
    "Responsibilities",
    "Restarts",
    "Restricted",
    "Result",
    "Row",
    "Selection",
    "Status",
    "Stochastic",
    "StudentT",
    "StudentTParams",
    "Tempered",
    "Variational",
    "check_model",
    "datasets",
    "fit",
    "free_energy",
    "kmeans",
    "load",
    "select",
    "topics",
]


def __getattr__(name: str):
    """Families and `select` are imported when they are first named: a fit needs few of them."""
    if name not in _LATER:
        raise AttributeError(f"module 'jaxem' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxem.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def load(path, model=None) -> Result:
    """Reads a result that `Result.save` wrote; `model` where it is not one of jaxem's own."""
    from jaxem.storage import load

    return load(path, model)
