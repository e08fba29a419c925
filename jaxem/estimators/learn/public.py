"""The estimators of `jaxem.sklearn`."""

import importlib.util

if importlib.util.find_spec("sklearn") is None:
    raise ImportError("jaxem.sklearn needs scikit-learn: pip install 'jaxem[sklearn]'")

from jaxem.estimators.learn.bayesian import BayesianGaussianMixture
from jaxem.estimators.learn.clusters import KMeans
from jaxem.estimators.learn.documents import LatentDirichletAllocation
from jaxem.estimators.learn.gaussian import GaussianMixture
from jaxem.estimators.learn.mixtures import MixtureModel

__all__ = [
    "BayesianGaussianMixture",
    "GaussianMixture",
    "KMeans",
    "LatentDirichletAllocation",
    "MixtureModel",
]
