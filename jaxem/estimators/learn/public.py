"""Estimators with the interface of scikit-learn.

Arguments that the methods of all estimators have in common:

Args:
  X: the data, (n, d) numbers; of `LatentDirichletAllocation` (n, vocabulary) counts.
  y: ignored, except by `MixtureModel`, where (n,) or (n, m) are the responses of regressions.
  sample_weight: (n,), one per unit, 0 or more; None: all 1.
"""

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
