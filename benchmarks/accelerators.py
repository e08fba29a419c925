"""Evaluations of the EM map and wall time that accelerators save, on slow problems.

Every method climbs from the same starts with the same tolerance: one fit, and a Batch of as many
data sets as `BATCH` says, drawn alike. A log-likelihood is scored again in NumPy float64 by a
function that shares nothing with the climb. Where starts lead to several optima an accelerated fit
may end in another: the table counts those that end lower, and higher, than plain EM by more than
ten tolerances. Seconds are medians of interleaved runs, after one that compiles. The last lines are
a table in Markdown.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import jaxem
from benchmarks.cold import machine

N, SEED, BATCH = 500, 5, 128
REPEATS = {"one fit": 5, "batch": 1}
TOL, MOST = 1e-8, 100_000
METHODS = {
    "EM": jaxem.EM(accelerator=None),
    "SQUAREM": jaxem.EM(accelerator=jaxem.SQUAREM()),
    "Anderson": jaxem.EM(accelerator=jaxem.Anderson()),
}


GRID = 20
"""Times at which an event can be seen."""

LOADINGS = np.zeros((9, 4))
LOADINGS[:, 0] = 0.5
LOADINGS[range(9), np.repeat([1, 2, 3], 3)] = [0.6, 0.5, 0.4, 0.5, 0.6, 0.4, 0.4, 0.5, 0.6]
"""Nine tests on a general factor, and by threes on another each: the bi-factor pattern of Holzinger
& Swineford 1937."""

DAYS = [162, 267, 271, 185, 111, 61, 27, 8, 3, 1]
"""With 0, 1, ... death notices of women of 80 and over in The Times (Hasselblad 1969)."""


def drawn(seed):
    """Overlapping groups, on which EM crawls, and the death notices, resampled but for seed 5.

    Of seed 5 the groups are those of tests/test_acceleration.py.
    """
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=(N, 1))
    real = rng.normal(size=(N, 2)) + 1.2 * group
    codes = (rng.random((N, 6)) < 0.35 + 0.15 * group).astype(float)
    counts = rng.poisson(3.0 + group, size=(N, 1)).astype(float)
    loadings = np.array([[2, 1.5, 1, 0.5, 0, 0], [0, 0, 1, 1.5, 2, 1.0]])
    factors = rng.normal(size=(N, 2)) @ loadings + 0.3 * rng.normal(size=(N, 6))
    deaths = np.repeat(np.arange(10.0), DAYS)[:, None]
    deaths = deaths if seed == SEED else rng.choice(deaths, len(deaths))
    scores = rng.normal(size=(N, 4)) @ LOADINGS.T
    scores = scores + np.sqrt(1 - np.square(LOADINGS).sum(1)) * rng.normal(size=(N, 9))
    return {
        "intervals": intervals(rng),
        "scores": scores - scores.mean(0),
        "real": real,
        "positive": np.exp(real / 2),
        "codes": codes,
        "counts": counts,
        "factors": factors,
        "deaths": deaths,
    }


def intervals(rng, n=100):
    """(low, high] that hold an event each: visits come at random, and stop before some events."""
    event, stop = 8 * rng.weibull(1.5, size=(n, 1)), rng.integers(8, GRID, size=(n, 1))
    visits = np.ceil(np.cumsum(rng.gamma(2.0, 2.0, size=(n, GRID)), axis=1))
    visits = np.where(visits < stop, visits, GRID)
    low = np.where(visits < np.minimum(event, GRID), visits, 0).max(1)
    return np.stack([low, np.where(visits > low[:, None], visits, GRID).min(1)], axis=1)


@dataclasses.dataclass(frozen=True)
class FactorAnalysis:
    """x = loadings z + noise with normal z, where some loadings are known to be 0: a user's model
    of five functions, with EM of Rubin & Thayer 1982."""

    def init(self, key, x, weights):
        draws = 0.5 + 0.1 * jax.random.normal(key, LOADINGS.shape, x.dtype)
        return {"loadings": draws * (LOADINGS > 0), "noise": jnp.full(9, 0.5, x.dtype)}

    def spaces(self, params):
        return {"loadings": jaxem.spaces.REAL, "noise": jaxem.spaces.POSITIVE}

    def posterior(self, params, x):
        loadings, noise = params["loadings"], params["noise"]
        precision = jnp.eye(4) + loadings.T @ (loadings / noise[:, None])
        covariance = jnp.linalg.inv(precision)
        mean = x @ (loadings / noise[:, None]) @ covariance
        log_det = jnp.log(noise).sum() + jnp.linalg.slogdet(precision)[1]
        far = (x * x / noise).sum(1) - jnp.einsum("ni,ij,nj->n", mean, precision, mean)
        return (mean, covariance), -0.5 * (9 * jnp.log(2 * jnp.pi) + log_det + far)

    def statistics(self, params, x, q, weights):
        mean, covariance = q
        weighted, total = weights[:, None] * mean, weights.sum()
        squares = weighted.T @ mean + total * covariance
        return {"n": total, "xx": weights @ (x * x), "xz": x.T @ weighted, "zz": squares}

    def maximize(self, params, stats):
        def row(free, xz):  # of the loadings that are free, 0 for the others
            normal = stats["zz"] * free[:, None] * free + jnp.diag(1 - free)
            return jnp.linalg.solve(normal, free * xz)

        loadings = jax.vmap(row)(jnp.asarray(LOADINGS > 0, stats["xz"].dtype), stats["xz"])
        explained = (loadings * stats["xz"]).sum(1)
        return {"loadings": loadings, "noise": (stats["xx"] - explained) / stats["n"]}


@dataclasses.dataclass(frozen=True)
class Survival:
    """Probabilities p of an event at 1, 2, ..., `GRID`, seen as intervals (low, high] that hold
    it: Turnbull's EM (1976). A user's model."""

    def init(self, key, x, weights):
        return {"p": jnp.full(GRID, 1 / GRID, x.dtype)}

    def spaces(self, params):
        return {"p": jaxem.spaces.SIMPLEX}

    def log_joint(self, params, x):
        time = jnp.arange(1, GRID + 1)
        return jnp.where((x[:, :1] < time) & (time <= x[:, 1:]), jnp.log(params["p"]), -jnp.inf)

    def statistics(self, params, x, q, weights):
        return weights @ q

    def maximize(self, params, stats):
        return {"p": stats / stats.sum()}


def factor_score(p, x):
    covariance = p["loadings"] @ p["loadings"].T + np.diag(p["noise"])
    return stats.multivariate_normal.logpdf(x, np.zeros(9), covariance).sum()


def survival_score(p, x):
    before = np.append(0, np.cumsum(p["p"]))
    low, high = x.astype(int).T
    return np.log(before[high] - before[low]).sum()


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


def mixed(density):
    """The score of a mixture whose components have this density."""

    def score(params, x):
        joint = density(params.components, x) + np.log(params.weights)
        return special.logsumexp(joint, axis=1).sum()

    return score


def mixture(bank, k, kind, density):
    return jaxem.Mixture(bank, k=k), kind, mixed(density)


PROBLEMS = {
    "full normals": mixture(jaxem.Normal("full"), 3, "real", normal_density),
    "diagonal normals": mixture(jaxem.Normal("diagonal"), 3, "real", normal_density),
    "factor-like full normals": mixture(jaxem.Normal("full"), 3, "factors", normal_density),
    "t, df = 4": mixture(jaxem.StudentT(df=4.0), 3, "real", student_density),
    "latent class": mixture(jaxem.Bernoulli(), 3, "codes", bernoulli_density),
    "flat Poisson": mixture(jaxem.Poisson(), 3, "counts", poisson_density),
    "gamma": mixture(jaxem.Gamma(), 3, "positive", gamma_density),
    "death notices": mixture(jaxem.Poisson(), 2, "deaths", poisson_density),
    "factor analysis": (FactorAnalysis(), "scores", factor_score),
    "interval censoring": (Survival(), "intervals", survival_score),
}


def scored(score, params, x):
    """log p(x | params) by SciPy, in float64."""
    params = jax.tree.map(lambda a: np.asarray(a, float), params)
    return float(score(params, np.asarray(x, float)))


def timed(fit, repeats):
    """The result of every method, and its median seconds over interleaved repeats."""
    fit = functools.partial(fit, max_iter=MOST)
    results, seconds = {}, {name: [] for name in METHODS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)  # the table says how many failed
        for method in METHODS.values():
            fit(method=method, tol=1e9 if method.later is None else TOL)  # compiles the programs
        for _, (name, method) in itertools.product(range(repeats), METHODS.items()):
            begun = time.perf_counter()
            results[name] = jax.block_until_ready(fit(method=method, tol=TOL))
            seconds[name].append(time.perf_counter() - begun)
    return results, {name: statistics.median(values) for name, values in seconds.items()}


def single(model, x, score):
    """One data set: evaluations, seconds and log-likelihood of every method."""
    start = jaxem.fit(model, x, key=3, max_iter=0, tol=0).params
    results, seconds = timed(functools.partial(jaxem.fit, model, x, init=start), REPEATS["one fit"])
    slack, found = 10 * TOL * len(x), {}
    lowest = float(results["EM"].log_likelihood) - slack
    for name, r in results.items():
        value = scored(score, r.params, x)
        assert abs(value - float(r.log_likelihood)) < 1e-6 * abs(value), name
        assert r.converged, name
        found[name] = {
            "evaluations": int(r.n_iter),
            "seconds": seconds[name],
            "log_likelihood": value,
            "not lower": bool(float(r.log_likelihood) >= lowest),
        }
    return found


def batch(model, x, score):
    """Many data sets: the same in a Batch, with evaluations of all and the ends compared."""
    starts = jaxem.fit(model, jaxem.Batch(x), key=3, max_iter=0, tol=0).params
    fit = functools.partial(jaxem.fit, model, jaxem.Batch(x), init=starts)
    results, seconds = timed(fit, REPEATS["batch"])
    slack, plain = 10 * TOL * x.shape[1], np.asarray(results["EM"].log_likelihood)
    sound, found = np.asarray(results["EM"].converged), {}
    for name, r in results.items():
        one = scored(score, jax.tree.map(lambda a: a[0], r.params), x[0])
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


def row(title, found):
    """A line of README's table: evaluations of one fit; shares of EM's evaluations and seconds in a
    batch, and how many ended lower and higher."""
    one, many = found["single"], found["batch"]
    plain = many["EM"]
    cells = [title, *(f"{one[name]['evaluations']:,}" for name in METHODS)]
    for name in list(METHODS)[1:]:
        fast = many[name]
        work, time = (fast[what] / plain[what] for what in ("evaluations", "seconds"))
        cells.append(f"{work:.3f}, {time:.2f}; {fast['lower']}, {fast['higher']}")
    return f"| {' | '.join(cells)} |"


def main():
    jax.config.update("jax_enable_x64", True)
    folder = pathlib.Path(__file__).parent / "results"
    record = {"machine": machine(), "tol": TOL, "batch": BATCH, "repeats": REPEATS, "problems": {}}
    print(f"evaluations and seconds to tol = {TOL} a unit: one fit | a Batch of {BATCH}")
    sets = [drawn(SEED + i) for i in range(BATCH)]
    for title, (model, kind, score) in PROBLEMS.items():
        x = np.stack([one[kind] for one in sets])
        found = {"single": single(model, x[0], score), "batch": batch(model, x, score)}
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
    fast = [f"{name} in a batch: work, time; lower, higher" for name in list(METHODS)[1:]]
    print(f"\n| problem | {' | '.join([*METHODS, *fast])} |")
    print("|---" * (len(METHODS) + len(fast) + 1) + "|")
    for title, found in record["problems"].items():
        print(row(title, found))
