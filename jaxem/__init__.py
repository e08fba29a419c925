"""jaxem: Expectation-Maximization on JAX."""

from jaxem import datasets
from jaxem.families.bernoulli import Bernoulli, BernoulliParams
from jaxem.families.categorical import Categorical, CategoricalParams
from jaxem.families.exponential import Exponential, ExponentialParams
from jaxem.families.exponential_family import ExponentialFamily
from jaxem.families.gamma import Gamma, GammaParams
from jaxem.families.multinomial import Multinomial, MultinomialParams
from jaxem.families.normal import Normal, NormalParams
from jaxem.families.poisson import Poisson, PoissonParams
from jaxem.families.product import Product
from jaxem.families.student import StudentT, StudentTParams
from jaxem.fit import fit
from jaxem.init import (
    KMeansPlusPlus,
    Labels,
    RandomResponsibilities,
    RandomRows,
    Responsibilities,
)
from jaxem.methods.em import EM
from jaxem.model import Bank, Each, Model
from jaxem.models.mixture import Labelled, Mixture, MixtureParams
from jaxem.objective import free_energy
from jaxem.priors import (
    BetaPrior,
    DirichletPrior,
    GammaConjugatePrior,
    GammaPrior,
    NormalPrior,
)
from jaxem.result import Fit, Result
from jaxem.status import FitError, FitWarning, Status

__all__ = [
    "EM",
    "Bank",
    "Bernoulli",
    "BernoulliParams",
    "BetaPrior",
    "Categorical",
    "CategoricalParams",
    "DirichletPrior",
    "Each",
    "Exponential",
    "ExponentialFamily",
    "ExponentialParams",
    "Fit",
    "FitError",
    "FitWarning",
    "Gamma",
    "GammaConjugatePrior",
    "GammaParams",
    "GammaPrior",
    "KMeansPlusPlus",
    "Labelled",
    "Labels",
    "Mixture",
    "MixtureParams",
    "Model",
    "Multinomial",
    "MultinomialParams",
    "Normal",
    "NormalParams",
    "NormalPrior",
    "Poisson",
    "PoissonParams",
    "Product",
    "RandomResponsibilities",
    "RandomRows",
    "Responsibilities",
    "Result",
    "Status",
    "StudentT",
    "StudentTParams",
    "datasets",
    "fit",
    "free_energy",
    "load",
]


def load(path, model=None) -> Result:
    """Reads a result that `Result.save` wrote; `model` where it is not one of jaxem's own."""
    from jaxem.storage import load

    return load(path, model)
