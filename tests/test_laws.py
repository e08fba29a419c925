"""The laws of DESIGN that every model obeys: additivity, weights, free energy, monotonicity."""

import jax
import numpy as np
import pytest
from compare import close
from quantities import STEPS, WEIGHTS, quantities, reordered, rows, separate
from zoo import BANKS, MODELS, REGRESSIONS, alternating, cast, usually

import jaxem

NAMES = [*MODELS, *REGRESSIONS]
every_model = pytest.mark.parametrize("name", usually(NAMES))
every_separate_model = pytest.mark.parametrize("name", usually(filter(separate, NAMES)))


@every_model
def test_statistics_add_over_units(name):
    seen = quantities(name)
    close(rows(seen["statistics"], 0), jax.tree.map(lambda leaf: leaf.sum(0), seen["halves"]))


@every_model
def test_statistics_are_linear_in_weights(name):
    one, other, mixed = (rows(quantities(name)["statistics"], i) for i in range(3))
    close(mixed, jax.tree.map(lambda a, b: 2 * a + 0.5 * b, one, other))


@every_model
def test_weight_zero_is_absent_and_two_is_twice(name):
    stats = quantities(name)["statistics"]
    close(rows(stats, 3), rows(stats, 4))


@every_model
def test_one_step_climbs(name):
    seen = quantities(name)
    objective, magnitude = seen["objective"][0], seen["magnitude"][0]
    assert objective.shape == (STEPS,) and np.isfinite(objective).all()
    assert (np.diff(objective) >= -1e-12 * magnitude[1:]).all()
    assert objective[-1] > objective[0]


@every_model
def test_free_energy_is_the_evidence_at_the_posterior_and_less_elsewhere(name):
    seen = quantities(name)
    best = WEIGHTS @ seen["evidence"]
    np.testing.assert_allclose(seen["energy at the posterior"], best, rtol=1e-12)
    assert len(seen["energies"]) == 5 and (seen["energies"] < best).all()


@every_model
def test_fisher_identity(name):
    """∇ evidence = ∇ of the expected log joint at the posterior held fixed."""
    evidence, expected = quantities(name)["gradients"]
    close(evidence, expected, 1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(evidence)) > 1e-3


@every_separate_model
def test_components_permute(name):
    seen = quantities(name)
    close(*seen["objective"][:, 0])
    plain, moved = (rows(seen["proposal"], i) for i in range(2))
    close(reordered(plain), moved)
    with pytest.raises(AssertionError):  # the control: another order is another model
        close(plain, moved)


@pytest.mark.filterwarnings("ignore:.*MAX_ITER.*:jaxem.FitWarning")  # one of them is that slow
@pytest.mark.parametrize(("name", "dtype"), alternating(usually(BANKS)))
def test_fit_in_both_precisions(name, dtype):
    """A whole fit from k-means++: sound, and honest about its value."""
    model, data = MODELS[name]
    data = cast(data, dtype)
    result = jaxem.fit(model, data, key=0, restarts=5, tol=1e-4)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result.params))
    assert result.status in (jaxem.Status.CONVERGED, jaxem.Status.MAX_ITER)
    rtol = 5e-6 if dtype == np.float32 else 1e-11
    score = float(np.asarray(result.score_samples(data)).sum())
    np.testing.assert_allclose(result.log_likelihood, score, rtol=rtol)
    prior = jax.jit(model.log_prior)(result.params)
    np.testing.assert_allclose(result.objective, result.log_likelihood + prior, rtol=rtol)
    sound = np.asarray(result.restarts.status) <= jaxem.Status.MAX_ITER
    best = np.asarray(result.restarts.objective)[sound].max()
    np.testing.assert_allclose(result.objective, best, rtol=4 * np.finfo(dtype).eps)
    assert result.objective.dtype == dtype
