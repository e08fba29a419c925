"""Thousands of fits: `Batch` and `vmap(fit)` beside a lockstep `vmap` and scikit-learn in a loop.

4,096 data sets of 500 rows in two dimensions, three full normals, float32, the same starts and the
same stopping rule (last gain below 1e-5 per row). Every answer is scored by one independent float64
NumPy function; a side that climbs as plain EM does and ends more than 1e-3 a row below another on
more than 1% of the fits is printed as FAILED. An accelerator takes other ways: some fits end in
another optimum, lower or higher, so it fails where the mean is lower.
"""

import json
import pathlib
import statistics
import time

import jax
import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem
from benchmarks.cold import machine
from jaxem.methods.em import EM
from jaxem.numerics.tree import split
from jaxem.solver.problem import Plan
from jaxem.solver.solve import single
from jaxem.solver.stopping import Change

FITS, N, D, K, TOL, LIMIT = 4096, 500, 2, 3, 1e-5, 1000
SKLEARN_FITS, LOCKSTEP_FITS, REPEATS = 200, 1024, 7
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
ACCELERATED, SQUAREM = "Batch, SQUAREM", EM(accelerator=jaxem.SQUAREM())


def problems():
    """Data sets of three groups at random places, and a start for each."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(FITS, K, D))
    group = rng.integers(K, size=(FITS, N))
    x = centres[np.arange(FITS)[:, None], group] + rng.normal(size=(FITS, N, D))
    rows = rng.integers(N, size=(FITS, K))
    mean = x[np.arange(FITS)[:, None], rows]
    covariance = x.var(1)[:, None, :, None] * np.eye(D)
    covariance = np.broadcast_to(covariance, (FITS, K, D, D))
    weights = np.full((FITS, K), 1 / K)
    params = jaxem.MixtureParams(weights, jaxem.NormalParams(mean, covariance))
    return x.astype(np.float32), jax.tree.map(lambda a: a.astype(np.float32), params)


def score(x, weights, mean, covariance):
    """The float64 log-likelihood of one data set, by NumPy; covariance (k, d, d) or (k, d)."""
    x, weights, mean, covariance = (np.asarray(a, float) for a in (x, weights, mean, covariance))
    if covariance.ndim == 2:
        covariance = covariance[:, :, None] * np.eye(x.shape[1])
    away = x[:, None] - mean
    distance = np.einsum("nkd,kde,nke->nk", away, np.linalg.inv(covariance), away)
    log_det = np.linalg.slogdet(covariance)[1]
    joint = np.log(weights) - 0.5 * (x.shape[1] * np.log(2 * np.pi) + log_det + distance)
    top = joint.max(1, keepdims=True)
    return float((top[:, 0] + np.log(np.exp(joint - top).sum(1))).sum())


def lockstep(model):
    """(x, weights or None, starts) -> fits: a `vmap` of one climb, all as long as the slowest."""
    numeric, structure = split((model, EM(), None))
    spec = Plan(structure, Change(), False, True)
    return jax.jit(jax.vmap(lambda x, w, p: single(spec, numeric, x, w, p, TOL, LIMIT)))


def sides(x, start):
    """Every contestant: (number of fits, a function that runs them and returns their params)."""
    options = {"tol": TOL, "criterion": "change", "max_iter": LIMIT}

    def fit(x, init, **more):
        return jaxem.fit(MODEL, x, init=init, **options, **more)

    plain = lockstep(MODEL)
    mapped = jax.jit(jax.vmap(fit))
    few = jax.tree.map(lambda a: a[:LOCKSTEP_FITS], start)

    def loop():
        answers = []
        for i in range(SKLEARN_FITS):
            params = jax.tree.map(lambda a: a[i], start)  # noqa: B023
            mixture = GaussianMixture(
                K, tol=TOL, max_iter=LIMIT, reg_covar=0, weights_init=params.weights,
                means_init=params.components.mean,
                precisions_init=np.linalg.inv(params.components.covariance),
            )  # fmt: skip
            with threadpool_limits(1):
                mixture.fit(x[i])
            answers.append((mixture.weights_, mixture.means_, mixture.covariances_))
        return answers

    return {
        "Batch": (FITS, lambda: unpack(fit(jaxem.Batch(x), start))),
        ACCELERATED: (FITS, lambda: unpack(fit(jaxem.Batch(x), start, method=SQUAREM))),
        "vmap(fit)": (FITS, lambda: unpack(mapped(x, start))),
        "lockstep vmap": (LOCKSTEP_FITS, lambda: unpack(plain(x[:LOCKSTEP_FITS], None, few))),
        "scikit-learn": (SKLEARN_FITS, loop),
    }


def unpack(fits):
    jax.block_until_ready(fits.params)
    params = jax.tree.map(np.asarray, fits.params)
    return list(
        zip(
            params.weights, params.components.mean, params.components.covariance, strict=True
        )
    )  # fmt: skip


def interleaved(contestants):
    """Milliseconds a fit of every contestant, run in turn so that none has the better moments."""
    times = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, (count, run) in contestants.items():
            begun = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begun) / count * 1e3)
    return times


def main():
    x, start = problems()
    contestants = sides(x, start)
    scores = {}
    for name, (_, run) in contestants.items():
        begun = time.perf_counter()
        answers = run()
        first = time.perf_counter() - begun
        scores[name] = np.array([score(x[i], *a) for i, a in enumerate(answers[:SKLEARN_FITS])])
        print(f"{name:>14}: first call {first:.2f} s, compilation included", flush=True)
    best = np.nanmax([values for name, values in scores.items() if name != ACCELERATED], axis=0)
    away = (scores[ACCELERATED] - best) / N
    times = interleaved(contestants)
    print()
    record = {"machine": machine(), "ms a fit": times, "ratios": {}}
    record["accelerated, nats a row"] = list(away)
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        worse = float(np.mean(~(best - scores[name] <= 1e-3 * N)))  # NaN is worse
        verdict = "" if worse <= 0.01 else f"  FAILED: {worse:.1%} of the fits end lower"
        if name == ACCELERATED:
            verdict = (
                f"; {worse:.1%} end lower, {np.mean(away > 1e-3):.1%} higher, "
                f"mean {np.mean(away):+.1e} a row"
            )
            verdict += "" if np.mean(away) > -1e-3 else "  FAILED"
        ratio = statistics.median(a / b for a, b in zip(values, times["Batch"], strict=True))
        record["ratios"][name] = ratio
        print(
            f"{name:>14}: {middle:.3f} ms a fit ({low:.3f} to {high:.3f}), "
            f"{ratio:.2f} times Batch{verdict}"
        )
    results = pathlib.Path(__file__).parent / "results"
    (results / "fleet-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
