"""Ragged data sets: a `Batch` of a list beside a lockstep `vmap` on data padded to the longest.

10,000 data sets of 40 to 2,000 rows, every length as likely as the next, in three dimensions, four
diagonal normals, float32, the same starts and the same stopping rule as in `fleet`. Ours begins
with the list; the padding of the other side is not timed. That side fits every tenth data set, the
slowest fit of all among them: every fit runs as long as that one, and the time grows with their
number. Answers are scored as in `fleet`.
"""

import json
import pathlib
import statistics
import time
import warnings

import jax
import numpy as np

import jaxem
from benchmarks.cold import machine
from benchmarks.fleet import LIMIT, TOL, interleaved, lockstep, score, unpack

FITS, SHORTEST, LONGEST, D, K = 10_000, 40, 2_000, 3, 4
EVERY = 10
MODEL = jaxem.Mixture(jaxem.Normal(covariance="diagonal"), k=K)


def problems():
    """A list of data sets of four groups at random places, and a start for each."""
    rng = np.random.default_rng(0)
    sets, means, variances = [], [], []
    for n in rng.integers(SHORTEST, LONGEST + 1, FITS):
        centres = 3 * rng.normal(size=(K, D))
        x = centres[rng.integers(K, size=n)] + rng.normal(size=(n, D))
        sets.append(x.astype(np.float32))
        means.append(x[rng.choice(n, K, replace=False)])
        variances.append(np.broadcast_to(x.var(0), (K, D)))
    bank = jaxem.NormalParams(np.stack(means), np.stack(variances))
    params = jaxem.MixtureParams(np.full((FITS, K), 1 / K), bank)
    return sets, jax.tree.map(lambda a: a.astype(np.float32), params)


def padded(sets):
    """Every data set with LONGEST rows, and weights that are 0 where there is none."""
    x = np.zeros((len(sets), LONGEST, D), np.float32)
    weights = np.zeros((len(sets), LONGEST), np.float32)
    for i, one in enumerate(sets):
        x[i, : len(one)], weights[i, : len(one)] = one, 1
    return x, weights


def batch(sets, start):
    """Every data set fitted as a `Batch`."""
    with warnings.catch_warnings():  # a group may collapse in 40 rows
        warnings.simplefilter("ignore", jaxem.FitWarning)
        options = {"tol": TOL, "criterion": "change", "max_iter": LIMIT}
        return jaxem.fit(MODEL, jaxem.Batch(sets), init=start, **options)


def main():
    sets, start = problems()
    begun = time.perf_counter()
    fits = batch(sets, start)
    answers = unpack(fits)
    print(f"           Batch: first call {time.perf_counter() - begun:.2f} s, compilation included")
    some = slice(int(np.argmax(fits.n_iter)) % EVERY, None, EVERY)
    few, block = sets[some], padded(sets[some])
    plain, starts = lockstep(MODEL), jax.tree.map(lambda a: a[some], start)
    contestants = {
        "Batch": (FITS, lambda: unpack(batch(sets, start))),
        "padded lockstep": (len(few), lambda: unpack(plain(*block, starts))),
    }
    begun = time.perf_counter()
    rival = contestants["padded lockstep"][1]()
    print(f" padded lockstep: first call {time.perf_counter() - begun:.2f} s", flush=True)
    scores = {
        name: np.array([score(x, *a) / len(x) for x, a in zip(few, found, strict=True)])
        for name, found in zip(contestants, (answers[some], rival), strict=True)
    }
    best = np.nanmax(list(scores.values()), axis=0)
    times = interleaved(contestants)
    print(f"\n{FITS} ragged data sets")
    record = {"machine": machine(), "ms a fit": times, "ended lower": {}}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        worse = float(np.mean(~(best - scores[name] <= 1e-3)))  # NaN is worse
        record["ended lower"][name] = worse
        verdict = "" if worse <= 0.01 else f"  FAILED: {worse:.1%} of the fits end lower"
        print(f"{name:>16}: {middle:.3f} ms a fit ({low:.3f} to {high:.3f}){verdict}")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    record["ratio"] = statistics.median(ratios)
    print(f"padded lockstep / Batch, pair by pair: median {record['ratio']:.1f} (at least 15)")
    results = pathlib.Path(__file__).parent / "results"
    (results / "ragged-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
