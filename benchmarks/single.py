"""One large fit: time per EM iteration beside scikit-learn's, and beside what the machine can do.

The same data, precision and start, no regulariser, tol=0; an iteration is the difference of a run
of many and a run of few. scikit-learn runs with one BLAS thread and with all, and the better
counts. Everybody's answer after `SCORED` iterations is scored by one float64 NumPy function; one
that differs by more than 1e-3 (float32) or 1e-6 (float64) a row is printed as FAILED. The ceilings,
taken in the same turns: a copy of the data, and the two matrix products of an iteration alone.
"""

import json
import os
import pathlib
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem
from benchmarks.cold import machine
from jaxem.families.quadratic import FORMS

CASES = (
    (131_072, 16, 16, "full"),
    (524_288, 16, 32, "diagonal"),
    (65_536, 64, 16, "full"),
    (100_000, 8, 8, "tied"),
    (100_000, 8, 8, "spherical"),
)
TARGETS = (20, 14, 4, 8, 8)
OURS, THEIRS = (24, 48), (2, 6)
SCORED, REPEATS = 5, 7
SKLEARN = {"diagonal": "diag"}


def problem(n, d, k, covariance, dtype):
    """Overlapping groups, and a start at rows of the data with the variances of all."""
    rng = np.random.default_rng(0)
    centre = 2 * rng.normal(size=(k, d))
    x = (centre[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(dtype)
    unit = {
        "full": np.broadcast_to(np.diag(x.var(0)), (k, d, d)),
        "tied": np.diag(x.var(0)),
        "diagonal": np.broadcast_to(x.var(0), (k, d)),
        "spherical": np.full(k, x.var(0).mean()),
    }[covariance]
    bank = jaxem.NormalParams(x[:k].copy(), unit.astype(dtype))
    return x, jaxem.MixtureParams(np.full(k, 1 / k, dtype), bank)


def score(x, weights, mean, covariance):
    """The float64 log-likelihood a row, by NumPy; `covariance` (k, d, d)."""
    joint = []
    for share, centre, matrix in zip(weights, mean, covariance, strict=True):
        root = np.linalg.cholesky(np.asarray(matrix, float))
        white = np.linalg.solve(root, (x.astype(float) - centre).T)
        log_det = 2 * np.log(np.diag(root)).sum() + x.shape[1] * np.log(2 * np.pi)
        joint.append(np.log(float(share)) - 0.5 * (log_det + np.square(white).sum(0)))
    top = np.max(joint, axis=0)
    return float(np.mean(top + np.log(np.exp(joint - top).sum(0))))


def matrices(covariance, structure, k, d):
    """Covariances of any structure as (k, d, d)."""
    covariance = np.asarray(covariance, float)
    if structure in ("full", "tied"):
        return np.broadcast_to(covariance, (k, d, d))
    return np.broadcast_to(covariance.reshape(k, -1), (k, d))[:, :, None] * np.eye(d)


def ours(x, start, covariance):
    """iterations -> weights, means, covariances, by `fit`."""
    model = jaxem.Mixture(jaxem.Normal(covariance), k=len(start.weights))

    def run(iterations):
        p = jaxem.fit(model, x, init=start, tol=0, max_iter=iterations).params
        jax.block_until_ready(p)
        return p.weights, p.components.mean, p.components.covariance

    return run


def theirs(x, start, covariance, threads):
    """The same by scikit-learn with so many BLAS threads."""
    bank, kind = start.components, SKLEARN.get(covariance, covariance)
    inverse = np.linalg.inv if covariance in ("full", "tied") else np.reciprocal

    def run(iterations):
        mixture = GaussianMixture(
            len(start.weights), covariance_type=kind, tol=0, max_iter=iterations, reg_covar=0,
            weights_init=start.weights, means_init=bank.mean,
            precisions_init=inverse(bank.covariance),
        )  # fmt: skip
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture.fit(x)
        return mixture.weights_, mixture.means_, mixture.covariances_

    return run


def ceilings(x, k, covariance):
    """Functions of nothing: a copy of the data, and an iteration's products of ready features in
    the chunks that are used."""
    n, d = x.shape
    rows, m = 8192, FORMS[covariance].size(d)
    features = jnp.zeros((m, rows), x.dtype)
    slopes, r = jnp.ones((k, m), x.dtype), jnp.ones((k, rows), x.dtype)
    high = jax.lax.Precision.HIGHEST

    def chunk(carry, _):
        slopes, r = carry
        joint = jnp.matmul(slopes, features, precision=high)
        sums = jnp.einsum("kn,mn->mk", r, features, precision=high)
        return (slopes + sums.T, r + joint[:, :1]), None

    @jax.jit
    def products(carry):
        return jax.lax.scan(chunk, carry, None, length=-(-n // rows))[0]

    copy = jax.jit(lambda x: x + 1)
    held = jnp.asarray(x)
    return {
        "copy": lambda: jax.block_until_ready(copy(held)),
        "products": lambda: jax.block_until_ready(products((slopes, r))),
    }


def seconds(function, *args):
    begun = time.perf_counter()
    function(*args)
    return time.perf_counter() - begun


def per_iteration(run, few, many):
    return (seconds(run, many) - seconds(run, few)) / (many - few)


def better_blas(x, start, covariance):
    """scikit-learn with one BLAS thread or with all, whichever is faster in one trial."""
    runs = {t: theirs(x, start, covariance, t) for t in (1, os.cpu_count())}
    trials = {t: min(seconds(run, 2) for _ in range(2)) for t, run in runs.items()}
    best = min(trials, key=trials.get)
    return best, runs[best]


def measure(n, d, k, covariance, dtype, target):
    """The record of one case."""
    x, start = problem(n, d, k, covariance, dtype)
    jax_run = ours(x, start, covariance)
    threads, sk_run = better_blas(x, start, covariance)
    first = seconds(jax_run, OURS[1])
    seconds(jax_run, OURS[0])
    limits = ceilings(x, k, covariance)
    for function in limits.values():
        function()
    scores = {}
    for name, run in (("jaxem", jax_run), ("scikit-learn", sk_run)):
        weights, mean, found = (np.asarray(a) for a in run(SCORED))
        scores[name] = score(x, weights, mean, matrices(found, covariance, k, d))
    times = {"jaxem": [], "scikit-learn": [], **{name: [] for name in limits}}
    for _ in range(REPEATS):
        times["jaxem"].append(per_iteration(jax_run, *OURS))
        times["scikit-learn"].append(per_iteration(sk_run, *THEIRS))
        for name, function in limits.items():
            times[name].append(seconds(function))
    tolerance = 1e-3 if dtype == np.float32 else 1e-6
    equal = abs(scores["jaxem"] - scores["scikit-learn"]) <= tolerance
    ratios = [b / a for a, b in zip(times["jaxem"], times["scikit-learn"], strict=True)]
    floors = [b / a for a, b in zip(times["jaxem"], times["products"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    record = {
        "case": [n, d, k, covariance, np.dtype(dtype).name],
        "seconds an iteration": times, "first call": first, "scores": scores, "equal": equal,
        "BLAS threads of scikit-learn": threads, "ratio": ratio, "ratio quartiles": [low, high],
        "target": target, "part of the products alone": statistics.median(floors),
    }  # fmt: skip
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    print(
        f"{n:>7} x {d:<2} k={k:<2} {covariance:>9} {np.dtype(dtype).name}: jaxem {ms['jaxem']:.1f} "
        f"ms, scikit-learn {ms['scikit-learn']:.0f} ms ({threads} BLAS threads), ratio {ratio:.1f} "
        f"({low:.1f} to {high:.1f}; aim {target}); products alone {ms['products']:.1f} ms, "
        f"copy {ms['copy']:.1f} ms; first call {first:.1f} s" + ("" if equal else "  FAILED"),
        flush=True,
    )
    return record


def main():
    jax.config.update("jax_enable_x64", True)
    records = [
        measure(*case, dtype, target)
        for case, target in zip(CASES, TARGETS, strict=True)
        for dtype in (np.float32, np.float64)
    ]
    folder = pathlib.Path(__file__).parent / "results"
    text = json.dumps({"machine": machine(), "cases": records}, indent=1)
    (folder / "single-cpu.json").write_text(text + "\n")
