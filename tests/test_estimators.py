"""The estimators of `jaxem.sklearn`: scikit-learn's checks, its fits, and what theirs lack."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

import jaxem.sklearn as ours

ESTIMATORS = [
    ours.GaussianMixture(),
    ours.BayesianGaussianMixture(),
    ours.KMeans(),
    ours.LatentDirichletAllocation(),
]


def known_failures(estimator):
    """The checks that scikit-learn's own KMeans fails too: seeds are drawn by row."""
    if not isinstance(estimator, ours.KMeans):
        return {}
    reason = "seeds are drawn by row: a weight of 2 is not a row twice"
    names = ("on_dense_data", "on_sparse_data")
    return {f"check_sample_weight_equivalence_{name}": reason for name in names}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=known_failures)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
