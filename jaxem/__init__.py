"""Expectation-Maximization on JAX: mixtures, chains, topics and other models, many fits at once.

- Fits: `fit`, `Restarts`, `Lanes`, `kmeans`, `load`; their results: `Result`, `Fit`, `Status`,
  `FitError`, `FitWarning`, `Uncertainty`.
- Data: `Batch`, `Data`, `Labelled`, `Documents`, `Moments`, `Sequences`, `jaxem.datasets`.
- Models: `Mixture`, `BayesianMixture`, `HMM`, `SemiMarkov`, `LDA`; their parts: `SoftmaxGate`,
  `UniformNoise`; wrappers of models: `Each`, `Restricted`.
- Banks (k components of one family): `Normal`, `StudentT`, `Factors`, `LogNormal`, `Gamma`,
  `Exponential`, `Weibull`, `Beta`, `Poisson`, `NegativeBinomial`, `Bernoulli`, `Categorical`,
  `Multinomial`, `PointMass`, `Regression`, `Autoregression`; combinations of banks: `Product`,
  `Components`.
- Your own models: `Model`, `Bank`, `ExponentialFamily`, `check_model`, `jaxem.model`,
  `jaxem.spaces`.
- Methods: `EM`, `OnlineEM` with `Decay`; rules of the E-step: `Exact`, `Hard`, `Tempered`,
  `Incremental`, `Stochastic`, `Constrained`, `Variational`, `MeanField`; rules of the M-step:
  `Exact`, `Gradient`, `Blocks`; accelerators: `SQUAREM`, `Anderson`.
- Starts: `KMeansPlusPlus`, `ElementalSubsets`, `RandomRows`, `RandomResponsibilities`,
  `Responsibilities`, `Labels`.
- Priors: `DirichletPrior`, `NormalPrior`, `NormalWishartPrior`, `GammaPrior`, `BetaPrior`,
  `GammaConjugatePrior`, `CoefficientPrior`, `ChainPrior`.
- Choice and checks: `select` with `Selection`, `BatchSelection` and `Row`, `cross_validate` with
  `CrossValidation`, `likelihood_ratio_test` with `LikelihoodRatioTest`, `goodness_of_fit` with
  `GoodnessOfFit`, `bootstrap`, `free_energy`, `jaxem.objective`, `varimax`, `jaxem.topics`,
  `jaxem.plot`; estimators for scikit-learn: `jaxem.sklearn`.
- Params: `MixtureParams`, `GatedMixtureParams`, `NoiseMixtureParams`, `GateParams`, `HMMParams`,
  `SemiMarkovParams`, `DurationParams`, `LDAParams`, `NormalParams`, `StudentTParams`,
  `FactorParams`, `LogNormalParams`, `GammaParams`, `ExponentialParams`, `WeibullParams`,
  `BetaParams`, `PoissonParams`, `NegativeBinomialParams`, `BernoulliParams`, `CategoricalParams`,
  `MultinomialParams`, `RegressionParams`, `AutoregressionParams`; posteriors:
  `BayesianMixtureParams`, `NormalPosterior`, `GammaPosterior`, `BetaPosterior`,
  `DirichletPosterior`.
"""

import importlib
from typing import TYPE_CHECKING

from jaxem.data.batch import Batch
from jaxem.data.data import Data, Labelled
from jaxem.data.moments import Moments
from jaxem.fit import fit, require_model
from jaxem.methods.em import EM, Exact
from jaxem.models.gate import GateParams, SoftmaxGate
from jaxem.models.mixing import GatedMixtureParams, MixtureParams
from jaxem.models.mixture import Mixture
from jaxem.models.noise import NoiseMixtureParams, UniformNoise
from jaxem.protocol.model import Bank, Model
from jaxem.protocol.priors import (
    BetaPrior,
    CoefficientPrior,
    DirichletPrior,
    GammaConjugatePrior,
    GammaPrior,
    NormalPrior,
    NormalWishartPrior,
)
from jaxem.protocol.starts import (
    ElementalSubsets,
    KMeansPlusPlus,
    Labels,
    RandomResponsibilities,
    RandomRows,
    Responsibilities,
)
from jaxem.protocol.status import FitError, FitWarning, Status
from jaxem.results.result import Fit, Result
from jaxem.solver.lanes import Lanes
from jaxem.solver.restarts import Restarts

if TYPE_CHECKING:
    from jaxem import datasets, plot, topics
    from jaxem import sklearn as sklearn
    from jaxem.analysis.batch_selection import BatchSelection
    from jaxem.analysis.bootstrap import bootstrap
    from jaxem.analysis.cross_validation import CrossValidation, cross_validate
    from jaxem.analysis.free_energy import free_energy
    from jaxem.analysis.goodness_of_fit import GoodnessOfFit, goodness_of_fit
    from jaxem.analysis.likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
    from jaxem.analysis.select import Row, Selection, select
    from jaxem.analysis.varimax import varimax
    from jaxem.data.documents import Documents
    from jaxem.data.sequences import Sequences
    from jaxem.families.autoregression import Autoregression, AutoregressionParams
    from jaxem.families.bernoulli import Bernoulli, BernoulliParams, BetaPosterior
    from jaxem.families.beta import Beta, BetaParams
    from jaxem.families.categorical import Categorical, CategoricalParams
    from jaxem.families.components import Components
    from jaxem.families.conjugate import DirichletPosterior
    from jaxem.families.exponential import Exponential, ExponentialParams
    from jaxem.families.exponential_family import ExponentialFamily
    from jaxem.families.factors import FactorParams, Factors
    from jaxem.families.gamma import Gamma, GammaParams
    from jaxem.families.log_normal import LogNormal, LogNormalParams
    from jaxem.families.multinomial import Multinomial, MultinomialParams
    from jaxem.families.negative_binomial import NegativeBinomial, NegativeBinomialParams
    from jaxem.families.normal.gaussian import NormalParams
    from jaxem.families.normal.normal import Normal
    from jaxem.families.normal.wishart import NormalPosterior
    from jaxem.families.point_mass import PointMass
    from jaxem.families.poisson import GammaPosterior, Poisson, PoissonParams
    from jaxem.families.product import Product
    from jaxem.families.regression.regression import Regression, RegressionParams
    from jaxem.families.student import StudentT, StudentTParams
    from jaxem.families.weibull import Weibull, WeibullParams
    from jaxem.models.bayesian import BayesianMixture, BayesianMixtureParams
    from jaxem.models.hmm.durations import DurationParams
    from jaxem.models.hmm.hmm import HMM, HMMParams
    from jaxem.models.hmm.prior import ChainPrior
    from jaxem.models.hmm.semi_markov import SemiMarkov, SemiMarkovParams
    from jaxem.models.lda.lda import LDA, LDAParams
    from jaxem.results.uncertainty import Uncertainty
    from jaxem.wrappers.each import Each
    from jaxem.wrappers.restricted import Restricted

_MODULES = ("datasets", "model", "objective", "plot", "sklearn", "spaces", "topics")

_LATER = {
    "BatchSelection": "analysis.batch_selection",
    "bootstrap": "analysis.bootstrap",
    "CrossValidation": "analysis.cross_validation",
    "cross_validate": "analysis.cross_validation",
    "GoodnessOfFit": "analysis.goodness_of_fit",
    "goodness_of_fit": "analysis.goodness_of_fit",
    "LikelihoodRatioTest": "analysis.likelihood_ratio",
    "likelihood_ratio_test": "analysis.likelihood_ratio",
    "Uncertainty": "results.uncertainty",
    "free_energy": "analysis.free_energy",
    "Each": "wrappers.each",
    "Restricted": "wrappers.restricted",
    "Blocks": "methods.blocks",
    "Variational": "methods.variational",
    "Anderson": "methods.acceleration",
    "SQUAREM": "methods.acceleration",
    "Constrained": "methods.constrained",
    "Decay": "methods.online",
    "Gradient": "methods.m_steps",
    "OnlineEM": "methods.online",
    "Hard": "methods.e_steps",
    "MeanField": "methods.mean_field",
    "Incremental": "methods.e_steps",
    "Stochastic": "methods.e_steps",
    "Tempered": "methods.e_steps",
    "BayesianMixture": "models.bayesian",
    "BayesianMixtureParams": "models.bayesian",
    "Bernoulli": "families.bernoulli",
    "BernoulliParams": "families.bernoulli",
    "BetaPosterior": "families.bernoulli",
    "Categorical": "families.categorical",
    "CategoricalParams": "families.categorical",
    "DirichletPosterior": "families.conjugate",
    "Beta": "families.beta",
    "BetaParams": "families.beta",
    "LogNormal": "families.log_normal",
    "LogNormalParams": "families.log_normal",
    "Weibull": "families.weibull",
    "WeibullParams": "families.weibull",
    "NegativeBinomial": "families.negative_binomial",
    "NegativeBinomialParams": "families.negative_binomial",
    "Components": "families.components",
    "PointMass": "families.point_mass",
    "Exponential": "families.exponential",
    "ExponentialParams": "families.exponential",
    "ExponentialFamily": "families.exponential_family",
    "FactorParams": "families.factors",
    "Factors": "families.factors",
    "Gamma": "families.gamma",
    "GammaParams": "families.gamma",
    "GammaPosterior": "families.poisson",
    "Multinomial": "families.multinomial",
    "MultinomialParams": "families.multinomial",
    "Normal": "families.normal.normal",
    "NormalParams": "families.normal.gaussian",
    "NormalPosterior": "families.normal.wishart",
    "Poisson": "families.poisson",
    "PoissonParams": "families.poisson",
    "Product": "families.product",
    "Regression": "families.regression.regression",
    "RegressionParams": "families.regression.regression",
    "StudentT": "families.student",
    "StudentTParams": "families.student",
    "Autoregression": "families.autoregression",
    "AutoregressionParams": "families.autoregression",
    "ChainPrior": "models.hmm.prior",
    "HMM": "models.hmm.hmm",
    "HMMParams": "models.hmm.hmm",
    "DurationParams": "models.hmm.durations",
    "SemiMarkov": "models.hmm.semi_markov",
    "SemiMarkovParams": "models.hmm.semi_markov",
    "LDA": "models.lda.lda",
    "LDAParams": "models.lda.lda",
    "Documents": "data.documents",
    "Sequences": "data.sequences",
    "Row": "analysis.select",
    "check_model": "analysis.check_model",
    "kmeans": "estimators.kmeans",
    "Selection": "analysis.select",
    "select": "analysis.select",
    "varimax": "analysis.varimax",
}

__all__ = [
    "EM",
    "HMM",
    "LDA",
    "SQUAREM",
    "Anderson",
    "Autoregression",
    "AutoregressionParams",
    "Bank",
    "Batch",
    "BatchSelection",
    "BayesianMixture",
    "BayesianMixtureParams",
    "Bernoulli",
    "BernoulliParams",
    "Beta",
    "BetaParams",
    "BetaPosterior",
    "BetaPrior",
    "Blocks",
    "Categorical",
    "CategoricalParams",
    "ChainPrior",
    "CoefficientPrior",
    "Components",
    "Constrained",
    "CrossValidation",
    "Data",
    "Decay",
    "DirichletPosterior",
    "DirichletPrior",
    "Documents",
    "DurationParams",
    "Each",
    "ElementalSubsets",
    "Exact",
    "Exponential",
    "ExponentialFamily",
    "ExponentialParams",
    "FactorParams",
    "Factors",
    "Fit",
    "FitError",
    "FitWarning",
    "Gamma",
    "GammaConjugatePrior",
    "GammaParams",
    "GammaPosterior",
    "GammaPrior",
    "GateParams",
    "GatedMixtureParams",
    "GoodnessOfFit",
    "Gradient",
    "HMMParams",
    "Hard",
    "Incremental",
    "KMeansPlusPlus",
    "LDAParams",
    "Labelled",
    "Labels",
    "Lanes",
    "LikelihoodRatioTest",
    "LogNormal",
    "LogNormalParams",
    "MeanField",
    "Mixture",
    "MixtureParams",
    "Model",
    "Moments",
    "Multinomial",
    "MultinomialParams",
    "NegativeBinomial",
    "NegativeBinomialParams",
    "NoiseMixtureParams",
    "Normal",
    "NormalParams",
    "NormalPosterior",
    "NormalPrior",
    "NormalWishartPrior",
    "OnlineEM",
    "PointMass",
    "Poisson",
    "PoissonParams",
    "Product",
    "RandomResponsibilities",
    "RandomRows",
    "Regression",
    "RegressionParams",
    "Responsibilities",
    "Restarts",
    "Restricted",
    "Result",
    "Row",
    "Selection",
    "SemiMarkov",
    "SemiMarkovParams",
    "Sequences",
    "SoftmaxGate",
    "Status",
    "Stochastic",
    "StudentT",
    "StudentTParams",
    "Tempered",
    "Uncertainty",
    "UniformNoise",
    "Variational",
    "Weibull",
    "WeibullParams",
    "bootstrap",
    "check_model",
    "cross_validate",
    "datasets",
    "fit",
    "free_energy",
    "goodness_of_fit",
    "kmeans",
    "likelihood_ratio_test",
    "load",
    "plot",
    "select",
    "topics",
    "varimax",
]


def __getattr__(name: str):
    """Families and `select` are imported when they are first named: a fit needs few of them."""
    if name in globals():
        return globals()[name]
    if name in _MODULES:
        return importlib.import_module(f"jaxem.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'jaxem' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxem.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})


def load(path, model=None) -> Result:
    """Reads a result that `Result.save` wrote from the file `path`. model: the fitted model, needed
    where its class is not one of jaxem's.

    A file of `Selection.save`, or of `save` of what `kmeans` returned, gives that object back.

    Raises ValueError where the file is damaged, is not of jaxem, or needs a model, and TypeError
    where `model` is no model.
    """
    from jaxem.numerics.storage import kind_of
    from jaxem.results.files import load

    if model is not None:
        require_model(model)
    kind = kind_of(path)
    if kind == "selection":
        from jaxem.analysis.select import Selection

        return Selection.load(path, _public_class)
    if kind == "clusters":
        from jaxem.estimators.kmeans import load as load_clusters

        return load_clusters(path)
    return Result.of(*load(path, model, _public_class))


def _public_class(name: str):
    if name in __all__ and isinstance(kind := __getattr__(name), type):
        return kind
    raise KeyError(f"unknown type {name!r}")
