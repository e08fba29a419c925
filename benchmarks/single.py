"""One large fit: time per EM iteration beside scikit-learn's, and beside what the machine can do.

`python -m benchmarks single` runs every part, `python -m benchmarks single full scaling` some:
`full`, `diagonal`, `wide`, `small` (tied and spherical), `families`, `scaling`, `memory`.

The same data, precision and start, no regulariser, tol=0; an iteration is the difference of a run
of many and a run of few. scikit-learn runs with one BLAS thread and with all, and the better
counts; gmmx runs beside it where it is installed, in float32, full and diagonal. Everybody's answer
after `SCORED` iterations is scored by one float64 NumPy function; one that differs by more than
1e-3 (float32) or 1e-6 (float64) a row is printed as FAILED. The floors, taken in the same turns: a
copy of the data, and the two matrix products of an iteration alone.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import jaxem
from benchmarks.cold import machine
from jaxem.families.normal.structures import STRUCTURES
from jaxem.models.mixture import SUM_OVER_UNITS, product_rows

try:
    import gmmx
except ImportError:
    gmmx = None

CASES = {
    "full": [(131_072, 16, 16, "full", 20)],
    "diagonal": [(524_288, 16, 32, "diagonal", 14)],
    "wide": [(65_536, 64, 16, "full", 4)],
    "small": [(100_000, 8, 8, "tied", 8), (100_000, 8, 8, "spherical", 8)],
}
OURS, THEIRS = (16, 40), (2, 4)
SCORED, REPEATS = 5, 7
SKLEARN = {"diagonal": "diag"}
FAMILIES = (1_000_000, 12, 8)
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
LARGEST = (10_000_000, 16, 32)


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


def by_gmmx(x, start, covariance):
    """The same by gmmx, or None where it is not installed or lacks the structure."""
    kind = SKLEARN.get(covariance, covariance)
    if gmmx is None or kind not in ("full", "diag") or x.dtype != np.float32:
        return None
    bank = start.components
    k, d = bank.mean.shape

    def run(iterations):
        fitter = gmmx.EMFitter(max_iter=iterations, tol=0.0, reg_covar=0.0)
        with jax.enable_x64(False):  # it refuses float64
            mixture = gmmx.GaussianMixtureModelJax.from_squeezed(
                bank.mean, bank.covariance, start.weights, covariance_type=kind
            )
            found = fitter.fit(jnp.asarray(x), mixture).gmm
            jax.block_until_ready(found)
        values = np.asarray(found.covariances.values)
        values = values.reshape((k, d, d) if kind == "full" else (k, d))
        return found.weights_numpy, found.means_numpy, values

    return run


def ceilings(x, k, covariance):
    """Functions of nothing: a copy of the data, and an iteration's products of ready features in
    the chunks that are used."""
    n, d = x.shape
    m = STRUCTURES[covariance].form.size(d)
    rows = product_rows(m + 2 * k)
    features = jnp.zeros((m, rows), x.dtype)
    slopes, r = jnp.ones((k, m), x.dtype), jnp.ones((k, rows), x.dtype)
    total = jnp.zeros((m, k), x.dtype)
    high = jax.lax.Precision.HIGHEST

    def chunk(carry, _):
        slopes, r, total = carry
        joint = jnp.matmul(slopes, features, precision=high)
        sums = jax.lax.dot_general(features, r, SUM_OVER_UNITS, precision=high)
        return (slopes + total[0, 0], r + joint[:, :1], total + sums), None  # no transpose to fold

    @jax.jit
    def products(carry):
        return jax.lax.scan(chunk, carry, None, length=-(-n // rows))[0]

    copy = jax.jit(lambda x: x + 1)
    held = jnp.asarray(x)
    return {
        "copy": lambda: jax.block_until_ready(copy(held)),
        "products": lambda: jax.block_until_ready(products((slopes, r, total))),
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


def measure(n, d, k, covariance, target, dtype):
    """The record of one case."""
    x, start = problem(n, d, k, covariance, dtype)
    threads, sk_run = better_blas(x, start, covariance)
    runs = {"jaxem": ours(x, start, covariance), "scikit-learn": sk_run}
    if other := by_gmmx(x, start, covariance):
        runs["gmmx"] = other
    counts = {name: OURS if name == "jaxem" else THEIRS for name in runs}
    first = seconds(runs["jaxem"], OURS[1])
    limits = ceilings(x, k, covariance)
    for function in limits.values():
        function()
    scores = {}
    for name, run in runs.items():
        run(counts[name][0])
        weights, mean, found = (np.asarray(a) for a in run(SCORED))
        scores[name] = score(x, weights, mean, matrices(found, covariance, k, d))
        if name == "gmmx":  # it compiles for every number of iterations
            run(counts[name][1])
    times = {name: [] for name in (*runs, *limits)}
    for turn in range(REPEATS):
        for name, run in runs.items():
            if name != "gmmx" or turn < 3:  # slow, and not the yardstick
                times[name].append(per_iteration(run, *counts[name]))
        for name, function in limits.items():
            times[name].append(seconds(function))
    tolerance = 1e-3 if dtype == np.float32 else 1e-6
    wrong = [name for name in runs if not abs(scores[name] - scores["scikit-learn"]) <= tolerance]
    ratios = [b / a for a, b in zip(times["jaxem"], times["scikit-learn"], strict=True)]
    floors = [b / a for a, b in zip(times["jaxem"], times["products"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    floor = statistics.median(floors)
    beside = f", gmmx {ms['gmmx']:.0f} ms" if "gmmx" in ms else ""
    print(
        f"{n:>7} x {d:<2} k={k:<2} {covariance:>9} {np.dtype(dtype).name}: jaxem {ms['jaxem']:.1f} "
        f"ms, scikit-learn {ms['scikit-learn']:.0f} ms ({threads} BLAS threads){beside}; "
        f"{ratio:.1f} times ({low:.1f} to {high:.1f}; target {target}); products alone "
        f"{ms['products']:.1f} ms, {floor:.2f} of an iteration, copy {ms['copy']:.1f} ms; first "
        f"call {first:.1f} s" + "".join(f"  FAILED: {name}" for name in wrong),
        flush=True,
    )
    return {
        "case": [n, d, k, covariance, np.dtype(dtype).name],
        "seconds an iteration": times, "first call": first, "scores": scores, "wrong": wrong,
        "BLAS threads of scikit-learn": threads, "ratio": ratio, "ratio quartiles": [low, high],
        "target": target, "part of the products alone": floor,
    }  # fmt: skip


def families():
    """Counts and codes beside the diagonal normal, for equal rows, columns and components."""
    (n, d, k), rng = FAMILIES, np.random.default_rng(0)
    group = rng.integers(k, size=n)
    cases = {
        "diagonal normal": (jaxem.Normal("diagonal"), 2 * rng.normal(size=(k, d))[group]),
        "Poisson": (jaxem.Poisson(), rng.poisson(rng.gamma(2, 2, size=(k, d))[group])),
    }
    cases["diagonal normal"][1][...] += rng.normal(size=(n, d))
    for levels in (2, 3, 4):
        mass = rng.dirichlet(np.ones(levels), size=(k, d)).cumsum(-1)[..., :-1].astype(np.float32)
        codes = (rng.random((n, d, 1), np.float32) > mass[group]).sum(-1)
        cases[f"categorical, {levels} levels"] = (jaxem.Categorical(levels), codes)
    runs, times = {}, {name: [] for name in cases}
    for name, (bank, x) in cases.items():
        model, x = jaxem.Mixture(bank, k=k), jnp.asarray(x, np.float32)
        few = jaxem.Responsibilities(0.9 * np.eye(k, dtype=np.float32)[group[:20_000]] + 0.1 / k)
        start = jaxem.fit(model, x[:20_000], init=few, tol=0, max_iter=0).params

        def run(iterations, model=model, x=x, start=start):
            found = jaxem.fit(model, x, init=start, tol=0, max_iter=iterations)
            jax.block_until_ready(found.params)

        runs[name] = run
        run(1)
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(per_iteration(run, 4, 12))
    base = times["diagonal normal"]
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=True))
        each = 1e9 * statistics.median(taken) / (n * k)
        print(f"{n} x {d} k={k} {name:>23}: {each:.2f} ns a row and component, {ratio:.2f} "
              "times the diagonal normal (target 1)", flush=True)  # fmt: skip
    return {"case": FAMILIES, "seconds an iteration": times}


def scaling():
    """Time per iteration and row from 1e4 to 1e7 rows: diagonal, float32."""
    _, d, k = LARGEST
    taken = {}
    for n in SIZES:
        x, start = problem(n, d, k, "diagonal", np.float32)
        run, few = ours(x, start, "diagonal"), max(2, 200_000 // n)
        run(few)
        several = 3 if n == max(SIZES) else REPEATS
        taken[n] = [per_iteration(run, few, 3 * few) for _ in range(several)]
        print(f"{n:>8} x {d} k={k} diagonal float32: {1e9 * statistics.median(taken[n]) / n:.1f} "
              "ns a row and iteration", flush=True)  # fmt: skip
        del x, run
    return {"seconds an iteration": taken}


def memory():
    """Peak memory of a first and a second fit of the largest case beyond what stood before, data
    included, in a process of its own. The first compiles; so does that of few rows beside it."""
    code = "from benchmarks.single import peak; print(*peak({}))"
    done = [
        subprocess.run(
            [sys.executable, "-c", code.format(n)], capture_output=True, text=True, check=True
        )
        for n in (200_000, LARGEST[0])
    ]
    small, large = ([float(number) for number in run.stdout.split()] for run in done)
    print(f"peak beyond the data, n={LARGEST[0]}: a fit {large[1]:.0f} MB (target 200), the first, "
          f"which compiles, {large[0]:.0f} MB; at n=200000 {small[1]:.0f} and {small[0]:.0f} MB",
          flush=True)  # fmt: skip
    return {"MB of a first and a second fit": {"200000": small, str(LARGEST[0]): large}}


def peak(n):
    """MB that a first and a second fit of n rows hold above what stood before them, the data as a
    JAX array among it. A NumPy array is copied to one first."""
    x, start = problem(n, *LARGEST[1:], "diagonal", np.float32)
    x = jax.block_until_ready(jnp.asarray(x))
    model = jaxem.Mixture(jaxem.Normal("diagonal"), k=LARGEST[2])

    def status(name):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) / 1024

    more = []
    for _ in range(2):
        before = status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until here
        jax.block_until_ready(jaxem.fit(model, x, init=start, tol=0, max_iter=3).params)
        more.append(status("VmHWM") - before)
    return more


def main():
    jax.config.update("jax_enable_x64", True)
    others = {"families": families, "scaling": scaling, "memory": memory}
    parts = sys.argv[2:] or [*CASES, *others]
    if unknown := set(parts) - {*CASES, *others}:
        sys.exit(f"no part {', '.join(unknown)}: choose from {', '.join([*CASES, *others])}")
    if gmmx is None:
        print("gmmx is not installed: pip install gmmx puts it beside the others")
    path = pathlib.Path(__file__).parent / "results" / "single-cpu.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        if part in others:
            found = others[part]()
        else:
            types = (np.float32, np.float64)
            found = [measure(*case, dtype) for case in CASES[part] for dtype in types]
        record[part] = {"machine": machine(), "result": found}
        path.write_text(json.dumps(record, indent=1) + "\n")
