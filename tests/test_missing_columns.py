"""Missing cells of families with independent columns: a cell that is NaN drops out."""

import dataclasses

import numpy as np
import pytest
from internals import domains

NAN = np.nan


def test_a_domain_takes_missing_cells_where_it_says_so():
    x = np.array([[1.0, NAN], [NAN, NAN], [-1.0, np.inf]])
    plain = domains.POSITIVE
    missing = dataclasses.replace(plain, missing=True)
    np.testing.assert_array_equal(plain.valid(x), [[True, False], [False, False], [False, False]])
    np.testing.assert_array_equal(missing.valid(x), [[True, True], [True, True], [False, False]])
    assert plain.is_observed(x) is None and plain.observations(x) is None
    np.testing.assert_array_equal(missing.is_observed(x), [True, False, True])
    np.testing.assert_array_equal(missing.observations(x[None]), [[True, False, True]])
    assert "NaN" in missing.accepted("", x[:1, :1])[0]


def test_a_column_without_an_observed_value_is_named():
    x = np.array([[1.0, NAN, NAN], [2.0, 3.0, NAN]])
    domain = dataclasses.replace(domains.POSITIVE, missing=True)
    with pytest.raises(ValueError, match="column 2 has no observed value"):
        domain.check_values(x, None)
    with pytest.raises(ValueError, match="columns 1, 2 have no observed value"):
        domain.check_values(x, np.array([1.0, 0.0]))
    domain.check_values(x[:, :2], None)
    domains.POSITIVE.check_values(x, None)
