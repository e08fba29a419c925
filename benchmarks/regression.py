"""Mixtures of regressions: many starts of small problems, one large step, and a gate.

`python -m benchmarks regression`, float64 but where it is said, seconds of warm calls, medians of
interleaved runs:

- 1,000 starts of the two problems of Grün & Leisch 2007 (`NPreg` of flexmix, drawn anew): 200 rows,
  two components, a quadratic normal regression and a Poisson regression, default options. Beside
  them an EM loop in NumPy, of the same starts and to the same stopping rule, of which
  every 50th start is timed. flexmix takes 21 and 37 ms a fit (measured with flexmix 2.3-18 on one
  core of another machine, so it is no ratio of one run).
- 10^6 rows, eight regressors, three components, normal, in float32, JAX's default, and in float64:
  milliseconds a step beside the NumPy loop, and the memory of the compiled program beside one
  (n, k) array.
- 200 starts of the patents of Wang et al. 1998 (70 rows, three Poisson regressions whose weights
  depend on a covariate); the share of starts that end at the best optimum.

Log-likelihoods at equal params are compared before anything is timed.
"""

import itertools
import json
import pathlib
import statistics
import time

import jax
import numpy as np
from scipy.special import gammaln, logsumexp

import jaxem
from benchmarks.cold import machine

STARTS, EVERY, REPEATS = 1000, 50, 5
LARGE, P, K, STEPS = 10**6, 8, 3, 10
GATE_STARTS = 200
AIMS = {"normal": "0.3 s", "poisson": "0.8 s", "gate": "1 s", "large, float32": "60 ms a step"}
"""The intended times."""


def npreg():
    """{family: (data, model)} of Grün & Leisch's artificial data."""
    rng = np.random.default_rng(0)
    x, group = rng.uniform(0, 10, 200), np.repeat([0, 1], 100)
    normal = np.where(group == 0, 5 * x, 40 - (x - 5) ** 2) + 3 * rng.normal(size=200)
    poisson = rng.poisson(np.exp(np.where(group == 0, 2 - 0.2 * x, 1 + 0.1 * x)))
    quadratic = jaxem.Data(np.stack([x, x**2], 1), normal)
    counts = jaxem.Data(x[:, None], poisson.astype(float))
    return {
        "normal": (quadratic, jaxem.Mixture(jaxem.Regression(), k=2)),
        "poisson": (counts, jaxem.Mixture(jaxem.Regression("poisson"), k=2)),
    }


def large():
    """10^6 rows of three regressions, and params to start from."""
    rng = np.random.default_rng(1)
    x, group = rng.normal(size=(LARGE, P)), rng.integers(K, size=LARGE)
    coefficients = rng.normal(size=(K, 1 + P))
    y = coefficients[group, 0] + (x * coefficients[group, 1:]).sum(1) + rng.normal(size=LARGE)
    near = coefficients + 0.2 * rng.normal(size=(K, 1 + P))
    start = jaxem.RegressionParams(near, np.full(K, 2.0))
    return jaxem.Data(x, y), jaxem.MixtureParams(np.full(K, 1 / K), start)


class Loop:
    """EM of a mixture of regressions as people write it in NumPy: weighted least squares by
    normal equations; for counts one step of iteratively reweighted least squares."""

    def __init__(self, data, family):
        x, self.y = np.asarray(data.x), np.asarray(data.y)
        self.x = np.concatenate([np.ones((len(x), 1), x.dtype), x], 1)
        self.family = family

    def log_density(self, coefficients, variance):
        eta = self.x @ coefficients.T
        if self.family == "poisson":
            return self.y[:, None] * eta - np.exp(eta) - gammaln(self.y + 1)[:, None]
        return -0.5 * (np.log(2 * np.pi * variance) + (self.y[:, None] - eta) ** 2 / variance)

    def step(self, weights, coefficients, variance):
        """(log-likelihood, the next params)."""
        joint = self.log_density(coefficients, variance) + np.log(weights)
        evidence = logsumexp(joint, axis=1)
        r = np.exp(joint - evidence[:, None])
        found, spread = np.empty_like(coefficients), np.ones(len(weights))
        for j in range(len(weights)):
            if self.family == "poisson":
                eta = self.x @ coefficients[j]
                mean = np.exp(eta)
                w, target = r[:, j] * mean, eta + (self.y - mean) / mean
            else:
                w, target = r[:, j], self.y
            xw = self.x * w[:, None]
            found[j] = np.linalg.solve(xw.T @ self.x, xw.T @ target)
            spread[j] = r[:, j] @ (self.y - self.x @ found[j]) ** 2 / r[:, j].sum()
        return evidence.sum(), (r.mean(0), found, spread)

    def climb(self, params, tol=1e-6, most=2000):
        """The log-likelihood and the number of steps, by the Aitken estimate of what is left."""
        last, gain, slack = -np.inf, np.inf, tol * len(self.y)
        for i in range(most):
            value, following = self.step(*params)
            rate = min(max((value - last) / gain, 0.0), 0.999999) if np.isfinite(gain) else 1.0
            gain, last = value - last, value
            if i > 2 and gain * rate / (1 - rate) < slack:
                break
            params = following
        return last, i


def params_of(fit, i=None):
    """(weights, coefficients, dispersion) of params, of restart i where there are several."""
    params = fit if i is None else jax.tree.map(lambda a: np.asarray(a[i]), fit)
    bank = params.components
    dispersion = np.ones(len(params.weights)) if bank.dispersion is None else bank.dispersion
    return np.asarray(params.weights), np.asarray(bank.coefficients), np.asarray(dispersion)


def timed(function, repeats=REPEATS):
    function()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def at_best(restarts, units):
    """The share of restarts that end at the best optimum, and that optimum."""
    value = np.where(np.asarray(restarts.status) == 1, np.asarray(restarts.log_likelihood), -np.inf)
    return float(np.mean(value > value.max() - 1e-4 * units)), float(value.max())


def small(family, data, model):
    """Of 1,000 starts: seconds, the share at the best optimum, and beside the loop in NumPy."""
    begin = jaxem.fit(model, data, key=0, restarts=STARTS, max_iter=0, tol=0).restarts.params
    loop = Loop(data, family)
    score = jaxem.fit(model, data, key=0, max_iter=0, tol=0)
    value, _ = loop.step(*params_of(score.params))
    assert abs(value - float(score.log_likelihood)) < 1e-6, (value, score.log_likelihood)

    def fit():
        return jaxem.fit(model, data, init=begin, restarts=STARTS)

    def from_key():
        return jaxem.fit(model, data, key=0, restarts=STARTS)

    ours, with_starts = timed(fit), timed(from_key)
    share, best = at_best(fit().restarts, len(data.y))
    begun, ends = time.perf_counter(), []
    for i in range(0, STARTS, EVERY):
        with np.errstate(all="ignore"):
            try:
                ends.append(loop.climb(params_of(begin, i))[0])
            except np.linalg.LinAlgError:  # a component of too few rows
                ends.append(-np.inf)
    theirs = (time.perf_counter() - begun) / len(ends)
    return {
        "seconds": ours,
        "seconds with starts": with_starts,
        "ms a fit": 1e3 * ours / STARTS,
        "NumPy, ms a fit": 1e3 * theirs,
        "times NumPy": theirs * STARTS / ours,
        "share at the best": share,
        "best": best,
        "NumPy, best": float(np.max(ends)),
    }


def big(dtype):
    """Milliseconds of a step of 10^6 rows, and the memory of the program."""
    data, start = jax.tree.map(lambda a: a.astype(dtype), large())
    model = jaxem.Mixture(jaxem.Regression(), k=K)
    method = jaxem.EM(accelerator=None)
    loop, data = Loop(data, "normal"), jax.tree.map(jax.numpy.asarray, data)

    def fit(steps):
        return jaxem.fit(model, data, init=start, method=method, tol=0, max_iter=steps)

    value, following = loop.step(*params_of(start))
    for _ in range(2):
        value, following = loop.step(*following)
    ours = float(fit(2).log_likelihood)
    assert abs(ours / value - 1) < {"float32": 1e-5, "float64": 1e-9}[dtype], (ours, value)
    fit(STEPS), fit(2 * STEPS)
    seconds = {"ours": [], "NumPy": []}
    for _ in range(3):
        both = []
        for steps in (STEPS, 2 * STEPS):
            begun = time.perf_counter()
            jax.block_until_ready(fit(steps))
            both.append(time.perf_counter() - begun)
        seconds["ours"].append((both[1] - both[0]) / STEPS)
        begun = time.perf_counter()
        loop.step(*following)
        seconds["NumPy"].append(time.perf_counter() - begun)
    compiled = jax.jit(lambda x: fit_of(model, x, start, method)).lower(data).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    ratios = [a / b for a, b in zip(seconds["NumPy"], seconds["ours"], strict=True)]
    return {
        "ms a step": 1e3 * statistics.median(seconds["ours"]),
        "NumPy, ms a step": 1e3 * statistics.median(seconds["NumPy"]),
        "times NumPy": statistics.median(ratios),
        "temporary memory, arrays (n, k)": temporary / (np.dtype(dtype).itemsize * LARGE * K),
    }


def fit_of(model, data, start, method):
    return jaxem.fit(model, data, init=start, method=method, tol=0, max_iter=STEPS)


def gate():
    """Of 200 starts with a gate: seconds, and the share at the best optimum."""
    patents, spending, intensity = jaxem.datasets.patents().T
    data = jaxem.Data(spending[:, None], patents, gate=intensity[:, None])
    model = jaxem.Mixture(jaxem.Regression("poisson"), k=3, gate=jaxem.SoftmaxGate())

    def fit():
        return jaxem.fit(model, data, key=0, restarts=GATE_STARTS)

    seconds = timed(fit)
    share, best = at_best(fit().restarts, len(patents))
    return {"seconds": seconds, "share at the best": share, "best": best}


def main():
    jax.config.update("jax_enable_x64", True)
    path = pathlib.Path(__file__).parent / "results" / "regression-cpu.json"
    record = {"machine": machine()}
    problems = npreg()
    for family, (data, model) in problems.items():
        record[family] = small(family, data, model)
    for dtype in ("float32", "float64"):
        record[f"large, {dtype}"] = big(dtype)
    record["gate"] = gate()
    for name, one in itertools.islice(record.items(), 1, None):
        target = f" (aim {AIMS[name]})" if name in AIMS else ""
        print(f"{name}{target}: " + ", ".join(f"{what} {x:.4g}" for what, x in one.items()))
    path.write_text(json.dumps(record, indent=1) + "\n")
