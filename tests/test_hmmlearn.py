"""Hidden Markov models step by step as hmmlearn, whose answers hmmlearn_answers.py has written."""

import json
import pathlib

import jax
import numpy as np
import pytest

import jaxem

RECORD = json.loads((pathlib.Path(__file__).parent / "data" / "hmmlearn.json").read_text())
BANKS = {
    "full": (jaxem.Normal("full"), jaxem.NormalParams),
    "tied": (jaxem.Normal("tied"), jaxem.NormalParams),
    "diagonal": (jaxem.Normal("diagonal"), jaxem.NormalParams),
    "spherical": (jaxem.Normal("spherical"), jaxem.NormalParams),
    "poisson": (jaxem.Poisson(), jaxem.PoissonParams),
    "categorical": (jaxem.Categorical(4), jaxem.CategoricalParams),
    "multinomial": (jaxem.Multinomial(), jaxem.MultinomialParams),
}


@pytest.mark.parametrize("name", BANKS)
def test_equals_hmmlearn_after_equal_steps(name):
    """Every parameter, and the log-likelihood, with hmmlearn's priors off, to 1e-8 relative."""
    (bank, emissions), case, steps = BANKS[name], RECORD[name], RECORD["iterations"]

    def params(values):
        values = {key: np.array(value) for key, value in values.items()}
        return jaxem.HMMParams(values.pop("initial"), values.pop("transition"), emissions(**values))

    rows = np.array(RECORD[case["data"]], float)
    x = jaxem.Sequences(np.split(rows, np.cumsum(RECORD["lengths"])[:-1]))
    start, method = params(case["start"]), jaxem.EM(accelerator=None)
    for n in range(steps + 1):
        found = jaxem.fit(jaxem.HMM(bank, 3), x, init=start, method=method, tol=0, max_iter=n)
        assert found.n_iter == n
        np.testing.assert_allclose(found.log_likelihood, case["log_likelihood"][n], rtol=1e-8)
    assert found.params.transition.dtype == np.float64
    expected = params(case["end"])
    assert jax.tree.structure(found.params) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (found.params, expected)), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=0)
    # The last step moves far more than that: one step fewer or more would be seen.
    *_, before, last = case["log_likelihood"]
    assert last - before > 1e-6 * abs(last)
