"""The estimators of `jaxem.sklearn`: scikit-learn's checks, its fits, and what theirs lack."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import jaxem.sklearn as ours

ESTIMATORS = [ours.GaussianMixture(), ours.BayesianGaussianMixture()]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
