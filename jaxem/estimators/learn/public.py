"""The estimators of `jaxem.sklearn`."""

from jaxem.estimators.learn.bayesian import BayesianGaussianMixture
from jaxem.estimators.learn.gaussian import GaussianMixture

__all__ = ["BayesianGaussianMixture", "GaussianMixture"]
