"""What differs when JAX runs with x64 off, as it does by default: one fresh process."""

import subprocess
import sys

SCRIPT = """
import warnings
import jax, numpy as np, jaxem

x = jaxem.datasets.old_faithful()
model = jaxem.Mixture(jaxem.Normal(), k=2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = jaxem.fit(model, x, key=0, restarts=8)
    jaxem.fit(model, x, key=1)
said = [str(w.message) for w in caught if issubclass(w.category, jaxem.FitWarning)]
assert sum("float32" in text for text in said) == 1, said
assert result.params.components.mean.dtype == np.float32
assert result.converged and abs(float(result.log_likelihood) + 1130.264) < 0.01

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jaxem.fit(model, x, key=0, tol=1e-12)
assert any("rounding" in str(w.message) for w in caught)

for bank in (jaxem.StudentT(), jaxem.Gamma(), jaxem.Poisson(), jaxem.Categorical(100)):
    fitted = jaxem.fit(jaxem.Mixture(bank, k=2), np.round(x), key=0, tol=1e-4)
    leaves = jax.tree.leaves(fitted.params)
    assert all(np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in leaves)

stamps = np.round(x * 100) + 1.7e9  # digits that float32 does not hold
sets = [stamps, stamps[:200]]
fleet = jaxem.fit(model, jaxem.Batch(sets), key=0)
labels, scores = fleet.predict(sets), fleet.score_samples(sets)
assert [len(z) for z in labels] == [272, 200] and scores[1].dtype == np.float64
assert abs(scores[0].sum() - fleet.log_likelihood[0]) < 1e-6 * abs(fleet.log_likelihood[0])
assert fleet.bic(sets).dtype == np.float64 and fleet[1].data_shape == (200, 2)
chosen = jaxem.select(jaxem.Batch(sets), [model], key=0, restarts=1)
assert chosen.results[0].params.components.mean.dtype == np.float64
apart = abs(chosen.results[0].log_likelihood[0] - fleet.log_likelihood[0])
assert apart < 1e-6 * abs(fleet.log_likelihood[0])
alone = jaxem.select(stamps, [model], key=0, restarts=1).best
assert alone.params.components.mean.dtype == np.float64
print("done")
"""


def test_single_precision_by_default():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip() == "done", run.stderr[-2000:]
