"""Evaluations of the EM map and wall time that accelerators save, on slow problems.

Every method climbs from the same starts with the same tolerance: one fit, and a Batch of as many
data sets as `BATCH` says, drawn alike. A log-likelihood is scored again in NumPy float64 by a
function that shares nothing with the climb, and no accelerated fit may end lower than plain EM by
more than ten tolerances: where starts lead to several optima the batch says how many ended lower
and higher by more. Seconds are medians of interleaved runs, after a
run of one step that compiles.
"""

import functools
import json
import pathlib
import statistics
import time
import warnings

import jax
import numpy as np
from scipy import special, stats

import jaxem
from benchmarks.cold import machine

N, BATCH = 500, 256
REPEATS = {"one fit": 5, "batch": 1}
TOL, MOST = 1e-8, 100_000
METHODS = {
    "EM": jaxem.EM(),
    "SQUAREM": jaxem.EM(accelerator=jaxem.SQUAREM()),
    "Anderson": jaxem.EM(accelerator=jaxem.Anderson()),
}


def real(rng):
    return rng.normal(size=(N, 2)) + 1.2 * rng.integers(3, size=(N, 1))


def codes(rng):
    group = rng.integers(3, size=(N, 1))
    return (rng.random((N, 6)) < 0.35 + 0.15 * group).astype(float)


def counts(rng):
    return rng.poisson(3.0 + rng.integers(3, size=(N, 1)), size=(N, 1)).astype(float)


def deaths(rng):
    """Death notices of women aged 80 and over, a day each (Hasselblad 1969), or resampled."""
    days = np.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])
    x = np.repeat(np.arange(10.0), days)[:, None]
    return x if rng is None else rng.choice(x, len(x))


def ppca(rng):
    """Two strong factors behind six columns, and one group: components share them."""
    loadings = np.array([[2, 1.5, 1, 0.5, 0, 0], [0, 0, 1, 1.5, 2, 1.0]])
    return rng.normal(size=(N, 2)) @ loadings + 0.3 * rng.normal(size=(N, 6))


def normal_density(p, x):
    return np.stack(
        [
            stats.multivariate_normal.logpdf(x, m, np.diag(c) if c.ndim < 2 else c)
            for m, c in zip(p.mean, p.covariance, strict=True)
        ],
        1,
    )


def student_density(p, x):
    pairs = zip(p.mean, p.scale, strict=True)
    return np.stack([stats.multivariate_t.logpdf(x, m, s, df=4) for m, s in pairs], 1)


def bernoulli_density(p, x):
    return (
        special.xlogy(x, p.probs[:, None]).sum(-1).T
        + special.xlogy(1 - x, 1 - p.probs[:, None]).sum(-1).T
    )


def poisson_density(p, x):
    return stats.poisson.logpmf(x, p.rate[:, None]).sum(-1).T


def gamma_density(p, x):
    return stats.gamma.logpdf(x, p.shape[:, None], scale=1 / p.rate[:, None]).sum(-1).T


PROBLEMS = {
    "full normals": (jaxem.Normal("full"), 3, real, normal_density),
    "diagonal normals": (jaxem.Normal("diagonal"), 3, real, normal_density),
    "factor-like full normals": (jaxem.Normal("full"), 3, ppca, normal_density),
    "t, df = 4": (jaxem.StudentT(df=4.0), 3, real, student_density),
    "latent class": (jaxem.Bernoulli(), 3, codes, bernoulli_density),
    "flat Poisson": (jaxem.Poisson(), 3, counts, poisson_density),
    "gamma": (jaxem.Gamma(), 3, lambda rng: np.exp(real(rng) / 2), gamma_density),
    "death notices": (jaxem.Poisson(), 2, deaths, poisson_density),
}


def score(params, x, density):
    """log p(x | params) by SciPy, in float64."""
    params = jax.tree.map(lambda a: np.asarray(a, float), params)
    joint = density(params.components, np.asarray(x, float)) + np.log(params.weights)
    return float(special.logsumexp(joint, axis=1).sum())


def timed(fit, repeats):
    """The result of every method, and its median seconds over interleaved repeats."""
    fit = functools.partial(fit, tol=TOL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)
        for method in METHODS.values():
            fit(method=method, max_iter=1)
    results, seconds = {}, {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, method in METHODS.items():
            begun = time.perf_counter()
            results[name] = jax.block_until_ready(fit(method=method, max_iter=MOST))
            seconds[name].append(time.perf_counter() - begun)
    return results, {name: statistics.median(values) for name, values in seconds.items()}


def single(model, x, density):
    """One data set: evaluations, seconds and log-likelihood of every method."""
    start = jaxem.fit(model, x, key=3, max_iter=0, tol=0).params
    results, seconds = timed(functools.partial(jaxem.fit, model, x, init=start), REPEATS["one fit"])
    slack, found = 10 * TOL * len(x), {}
    lowest = float(results["EM"].log_likelihood) - slack
    for name, r in results.items():
        scored = score(r.params, x, density)
        assert abs(scored - float(r.log_likelihood)) < 1e-6 * abs(scored), name
        assert r.converged, name
        found[name] = {
            "evaluations": int(r.n_iter),
            "seconds": seconds[name],
            "log_likelihood": scored,
            "not lower": bool(float(r.log_likelihood) >= lowest),
        }
    return found


def batch(model, draw, density):
    """Many data sets: the same in a Batch, with evaluations of all and the ends compared."""
    x = np.stack([draw(np.random.default_rng(seed)) for seed in range(BATCH)])
    starts = jaxem.fit(model, jaxem.Batch(x), key=3, max_iter=0, tol=0).params
    fit = functools.partial(jaxem.fit, model, jaxem.Batch(x), init=starts)
    results, seconds = timed(fit, REPEATS["batch"])
    slack, plain = 10 * TOL * x.shape[1], np.asarray(results["EM"].log_likelihood)
    sound, found = np.asarray(results["EM"].converged), {}
    for name, r in results.items():
        one = score(jax.tree.map(lambda a: a[0], r.params), x[0], density)
        assert abs(one - float(r.log_likelihood[0])) < 1e-6 * abs(one), name
        gain = np.asarray(r.log_likelihood) - plain
        both = sound & np.asarray(r.converged)
        found[name] = {
            "evaluations": int(np.sum(r.n_iter)),
            "seconds": seconds[name],
            "converged": int(np.sum(r.converged)),
            "lower": int(np.sum(both & (gain < -slack))),
            "higher": int(np.sum(both & (gain > slack))),
        }
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    folder = pathlib.Path(__file__).parent / "results"
    record = {"machine": machine(), "tol": TOL, "batch": BATCH, "repeats": REPEATS, "problems": {}}
    print(f"evaluations and seconds to tol = {TOL} a unit: one fit | a Batch of {BATCH}")
    for title, (bank, k, draw, density) in PROBLEMS.items():
        model = jaxem.Mixture(bank, k=k)
        x = draw(None if draw is deaths else np.random.default_rng(5))
        found = {"single": single(model, x, density), "batch": batch(model, draw, density)}
        record["problems"][title] = found
        print(title)
        for name in METHODS:
            one, many = found["single"][name], found["batch"][name]
            print(
                f"  {name:>9}: {one['evaluations']:6d} {one['seconds'] * 1e3:8.1f} ms "
                f"{one['log_likelihood']:.6f}{'' if one['not lower'] else ' LOWER'} | "
                f"{many['evaluations']:8d} {many['seconds']:7.2f} s, {many['converged']} converged"
                f", {many['lower']} lower, {many['higher']} higher",
                flush=True,
            )
        (folder / "accelerators-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
