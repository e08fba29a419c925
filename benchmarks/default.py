"""`EM(accelerator="auto")` beside plain EM: a fleet of usual problems, and the slow ones.

`python -m benchmarks default` fits 1,024 data sets of `benchmarks.fleet` in float64 by plain EM,
by "auto" and by SQUAREM from the first step, with default options. It counts evaluations of the EM
map,
and the fits that end lower, and higher, than plain EM by more than tol a unit. Then the problems of
`benchmarks.accelerators` by plain EM and "auto", with its tolerance. Seconds are medians of
interleaved runs, after one that compiles.
"""

import functools
import itertools
import json
import pathlib
import statistics
import time
import warnings

import jax
import numpy as np

import jaxem
from benchmarks import accelerators, fleet
from benchmarks.cold import machine

FITS, REPEATS, TOL = 1024, 5, 1e-6
METHODS = {
    "EM": jaxem.EM(accelerator=None),
    "auto": jaxem.EM(accelerator="auto"),
    "SQUAREM": jaxem.EM(accelerator=jaxem.SQUAREM()),
}


def usual():
    """{method: evaluations, seconds, and ends beside those of plain EM} of the fleet."""
    x, start = (jax.tree.map(lambda a: a[:FITS].astype(float), part) for part in fleet.problems())
    fit = functools.partial(jaxem.fit, fleet.MODEL, jaxem.Batch(x), init=start)
    results, seconds = {}, {name: [] for name in METHODS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)  # of fits that did not converge
        for turn, (name, method) in itertools.product(range(REPEATS + 1), METHODS.items()):
            begun = time.perf_counter()
            results[name] = jax.block_until_ready(fit(method=method))
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    plain, slack = results["EM"], TOL * x.shape[1]
    found = {}
    for name, r in results.items():
        sound = np.asarray(plain.converged & r.converged)
        gain = np.asarray(r.log_likelihood - plain.log_likelihood)[sound]
        ratios = [a / b for a, b in zip(seconds["EM"], seconds[name], strict=True)]
        found[name] = {
            "evaluations, mean": float(np.mean(r.n_iter)),
            "evaluations, most": int(np.max(r.n_iter)),
            "converged": int(np.sum(r.converged)),
            "lower": float(np.mean(gain < -slack)),
            "higher": float(np.mean(gain > slack)),
            "seconds": statistics.median(seconds[name]),
            "times EM": statistics.median(ratios),
        }
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    path = pathlib.Path(__file__).parent / "results" / "default-cpu.json"
    record = {"machine": machine(), "usual": usual(), "slow": {}}
    print(f"{FITS} fits of {fleet.N} x {fleet.D}, k = {fleet.K}, default options")
    for name, one in record["usual"].items():
        print(
            f"  {name:>7}: {one['evaluations, mean']:6.1f} evaluations, at most "
            f"{one['evaluations, most']:5d}; {one['converged']} converged, {one['lower']:.1%} lower"
            f", {one['higher']:.1%} higher; {one['seconds']:.3f} s, {one['times EM']:.2f} times EM",
            flush=True,
        )
    accelerators.METHODS = {name: METHODS[name] for name in ("EM", "auto")}
    sets = [accelerators.drawn(accelerators.SEED + i) for i in range(accelerators.BATCH)]
    for title, (model, kind, score) in accelerators.PROBLEMS.items():
        x = np.stack([one[kind] for one in sets])
        found = accelerators.batch(model, x, score)
        record["slow"][title] = found
        plain, auto = found["EM"], found["auto"]
        work, taken = (auto[what] / plain[what] for what in ("evaluations", "seconds"))
        print(
            f"  {title:>24}: {work:.3f} of the evaluations, {taken:.2f} of the time, "
            f"{auto['converged']} converged (EM {plain['converged']}), {auto['lower']} lower, "
            f"{auto['higher']} higher",
            flush=True,
        )
        path.write_text(json.dumps(record, indent=1) + "\n")
