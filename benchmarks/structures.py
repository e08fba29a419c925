"""Sizes and covariance structures of normal mixtures: mclust's table in one call.

`python -m benchmarks structures`, float64, seconds of warm calls, medians:

- `select` over 14 structures × 1 to 9 components of the diabetes data (145 × 3), from one start
  each and from 16, where mclust would stop: at a gain of 1e-5 of the log-likelihood. mclust 6.0.0
  takes 0.2 s, from one start by hierarchical clustering (measured on one core of another machine).
- The same from one start to `fit`'s own tolerance, 1e-6 nats a row.
- A step of 10^6 rows of a mixture with a noise component beside one without.

The table is compared with single fits before anything is timed.
"""

import json
import pathlib
import statistics
import time

import jax
import numpy as np

import jaxem
from benchmarks.cold import machine
from benchmarks.regression import timed

SIZES = range(1, 10)
RELATIVE = 1e-5
"""mclust's tolerance, as a part of the log-likelihood."""

CHECKED = (("EII", 3), ("VVV", 2), ("EVE", 4))
ROWS, K, STEPS = 10**6, 4, 10
AIMS = {"1 start": "1 s", "16 starts": "3 s"}
"""The intended times."""


def table(x, tol, restarts):
    """The selection, and the seconds of a warm call."""

    def select():
        return jaxem.select(x, k=SIZES, key=0, restarts=restarts, tol=tol)

    begun = time.perf_counter()
    found = select()
    first = time.perf_counter() - begun
    for kind, k in CHECKED:
        row = next(r for r in found.table if r.name == f"Normal({kind!r}), k={k}")
        one = jaxem.fit(row.model, x, key=0, restarts=restarts, tol=tol)
        assert abs(row.log_likelihood - one.log_likelihood) < 1e-6 * abs(one.log_likelihood), row
    status = [row.status.name for row in found.table]
    return found, {
        "seconds": timed(select, 3),
        "first call": first,
        "converged": status.count("CONVERGED"),
        "not sound": sum(name not in ("CONVERGED", "MAX_ITER") for name in status),
    }


def step_with_noise():
    """Milliseconds of a step of 10^6 × 4 rows with a noise component, and without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)) + 4 * rng.integers(0, K, (ROWS, 1))
    x = jax.numpy.asarray(x.astype(np.float32))
    models = {
        "plain": jaxem.Mixture(jaxem.Normal(), K),
        "with noise": jaxem.Mixture(jaxem.Normal(), K, noise=jaxem.UniformNoise(1e5)),
    }
    method, seconds = jaxem.EM(accelerator=None), {name: [] for name in models}

    def fit(model, steps):
        begun = time.perf_counter()
        found = jaxem.fit(model, x, key=0, method=method, tol=0, max_iter=steps)
        jax.block_until_ready(found)
        return time.perf_counter() - begun

    for model in models.values():
        fit(model, STEPS), fit(model, 2 * STEPS)
    for _ in range(5):
        for name, model in models.items():
            seconds[name].append((fit(model, 2 * STEPS) - fit(model, STEPS)) / STEPS)
    found = {f"{name}, ms a step": 1e3 * statistics.median(t) for name, t in seconds.items()}
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return found | {"ratio": statistics.median(ratios)}


def main():
    jax.config.update("jax_enable_x64", True)
    path = pathlib.Path(__file__).parent / "results" / "structures-cpu.json"
    x, record = jaxem.datasets.diabetes(), {"machine": machine()}
    like = jaxem.fit(jaxem.Mixture(jaxem.Normal(), 3), x, key=0).log_likelihood
    tol = RELATIVE * abs(float(like)) / len(x)
    found, record["1 start"] = table(x, tol, 1)
    print(found)
    _, record["16 starts"] = table(x, tol, 16)
    _, record["1 start, tol=1e-6"] = table(x, 1e-6, 1)
    record["noise"] = step_with_noise()
    for name in list(record)[1:]:
        target = f" (aim {AIMS[name]})" if name in AIMS else ""
        print(
            f"{name}{target}: " + ", ".join(f"{what} {v:.4g}" for what, v in record[name].items())
        )
    path.write_text(json.dumps(record, indent=1) + "\n")
