"""256 restarts on one data set: their memory, and their time beside the same fits one by one.

20,000 rows in eight dimensions, eight full normals, float32, the same starts and the same stopping
rule (last gain below 1e-4 per row). Restarts share the data: the temporary memory of the compiled
program is shown beside 256 copies of the data, and of one (n, k) array. Of the single fits every
32nd is timed; the time of all follows from the EM steps that all 256 take. A restart that ends
lower than its single fit, by the float64 scorer of `fleet`, is printed as FAILED.
"""

import json
import pathlib
import resource
import statistics
import sys
import time

import jax
import numpy as np

import jaxem
from benchmarks.cold import machine
from benchmarks.fleet import score

RESTARTS, N, D, K, TOL, LIMIT = 256, 20_000, 8, 8, 1e-4, 1000
EVERY, REPEATS = 32, 3
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
OPTIONS = {"tol": TOL, "criterion": "change", "max_iter": LIMIT}
MB = 2**20


def problem():
    """Eight overlapping groups, and a start of eight random rows for every restart."""
    rng = np.random.default_rng(0)
    centres = 1.5 * rng.normal(size=(K, D))
    x = centres[rng.integers(K, size=N)] + rng.normal(size=(N, D))
    mean = x[rng.integers(N, size=(RESTARTS, K))]
    covariance = np.broadcast_to(np.diag(x.var(0)), (RESTARTS, K, D, D))
    bank = jaxem.NormalParams(mean, covariance)
    params = jaxem.MixtureParams(np.full((RESTARTS, K), 1 / K), bank)
    return x.astype(np.float32), jax.tree.map(lambda a: a.astype(np.float32), params)


def high_water():
    """The most memory the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def memory(x, start):
    """Bytes of the compiled program: temporary, and of its results."""

    def fit(x, start):
        return jaxem.fit(MODEL, x, init=start, restarts=RESTARTS, **OPTIONS)

    used = jax.jit(fit).lower(x, start).compile().memory_analysis()
    return used.temp_size_in_bytes, used.output_size_in_bytes


def together(x, start):
    fits = jaxem.fit(MODEL, x, init=start, restarts=RESTARTS, **OPTIONS).restarts
    return jax.tree.map(np.asarray, fits)


def one_by_one(x, start):
    fits = []
    for i in range(0, RESTARTS, EVERY):
        alone = jaxem.fit(MODEL, x, init=jax.tree.map(lambda a: a[i], start), **OPTIONS)  # noqa: B023
        fits.append(jax.tree.map(np.asarray, alone.restarts))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *fits)


def main():
    x, start = problem()
    temporary, results = memory(x, start)
    copies = {"the data": RESTARTS * x.nbytes, "an (n, k) array": RESTARTS * 4 * N * K}
    before = high_water()
    every = together(x, start)
    grown = high_water() - before
    alone = one_by_one(x, start)
    scores = [
        [score(x, p.weights[i], p.components.mean[i], p.components.covariance[i]) / N for i in at]
        for p, at in (
            (every.params, range(0, RESTARTS, EVERY)),
            (alone.params, range(len(alone.status))),
        )
    ]
    lower = float(np.mean(~(scores[1] - np.array(scores[0]) <= 1e-3)))  # NaN is lower
    times = {"together": [], "one by one": []}
    steps = (every.n_iter + 1).sum() / (alone.n_iter + 1).sum()
    for _ in range(REPEATS):
        for name, run, scale in (
            ("together", together, 1.0), ("one by one", one_by_one, float(steps))
        ):  # fmt: skip
            begun = time.perf_counter()
            run(x, start)
            times[name].append((time.perf_counter() - begun) * scale)
    print(f"\n{RESTARTS} restarts on one data set ({N} rows)")
    for name, size in copies.items():
        share = temporary / size
        print(f"temporary memory {temporary / MB:.1f} MB, {share:.3f} of {RESTARTS} x {name}")
    print(f"results {results / MB:.1f} MB; the process grew by {grown / MB:.0f} MB at its peak")
    for name, values in times.items():
        print(f"{name:>16}: {statistics.median(values):.1f} s for {RESTARTS} fits")
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    verdict = f"  FAILED: {lower:.0%} of the restarts end lower" if lower else ""
    print(f"one by one / together: median {ratio:.2f} (more than 2){verdict}")
    record = {
        "machine": machine(),
        "seconds of all": times,
        "ratio": ratio,
        "temporary bytes": temporary,
        "result bytes": results,
        "process grew by bytes": grown,
        "data bytes": x.nbytes,
        "ended lower": lower,
        "EM steps of a restart": every.n_iter.tolist(),
    }
    folder = pathlib.Path(__file__).parent / "results"
    (folder / "restarts-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
