"""Normal components with missing cells beside EM by patterns in NumPy.

`python -m benchmarks missing`, float64, one process, seconds of warm calls, medians of interleaved
runs:

- a step of one normal, 20,000 × 8, 15% of the cells missing, and of a mixture of five;
- a step of one normal, 20,000 × 16, where nearly every row has a pattern of its own;
- 256 data sets of 500 × 4 with different masks, one normal each, as one `Batch` from given params,
  beside a loop over data sets. Both stop at a step that gains less than 1e-8 a row. The default
  rule of jaxem, which guards against plateaus, takes about twice as many steps.

The NumPy code sorts rows by pattern once; in a step it takes one Cholesky factor a pattern and
component, and matrix products over the rows of the pattern. Log-likelihoods at equal params are
compared before anything is timed, of the batch also those at the ends.
"""

import itertools
import json
import pathlib
import statistics
import time

import jax
import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

import jaxem
from benchmarks.cold import machine

N, PART, STEPS, REPEATS = 20_000, 0.15, 10, 3
SETS, ROWS, FEATURES, TOL = 256, 500, 4, 1e-8
AIMS = {"one, 8": "6 ms", "five, 8": "40 ms", "one, 16": "150 ms", "batch": "20 times NumPy"}
"""The intended times of a step."""


def table(n, d, seed, k=1):
    """Rows of k components with missing cells."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / (2 * np.sqrt(d)))
    x += 3 * rng.normal(size=(k, d))[rng.integers(k, size=n)]
    return np.where(rng.random((n, d)) < PART, np.nan, x)


class Patterns:
    """EM of a mixture of normals by patterns of observed cells."""

    def __init__(self, x):
        observed = ~np.isnan(x)
        codes = observed @ (1 << np.arange(x.shape[1]))
        order = np.argsort(codes, kind="stable")
        found, first = np.unique(codes[order], return_index=True)
        parts = np.split(order, first[1:])
        self.parts = [
            (observed[rows[0]], np.ascontiguousarray(x[rows][:, observed[rows[0]]]))
            for code, rows in zip(found, parts, strict=True)
            if code
        ]
        self.n, self.d = sum(len(rows) for _, rows in self.parts), x.shape[1]

    def step(self, weights, mean, covariance):
        """(log-likelihood, the next params)."""
        k, d = mean.shape
        total, count = 0.0, np.zeros(k)
        first, second = np.zeros((k, d)), np.zeros((k, d, d))
        for seen, x in self.parts:
            hidden, logs, filled, spreads = ~seen, [], [], []
            for j in range(k):
                root = np.linalg.cholesky(covariance[j][np.ix_(seen, seen)])
                z = solve_triangular(root, (x - mean[j, seen]).T, lower=True, check_finite=False)
                level = np.log(np.diag(root)).sum() + 0.5 * seen.sum() * np.log(2 * np.pi)
                logs.append(-0.5 * np.einsum("ij,ij->j", z, z) - level)
                half = solve_triangular(
                    root, covariance[j][np.ix_(seen, hidden)], lower=True, check_finite=False
                )
                complete = np.empty((len(x), d))
                complete[:, seen], complete[:, hidden] = x, mean[j, hidden] + z.T @ half
                filled.append(complete)
                spreads.append(covariance[j][np.ix_(hidden, hidden)] - half.T @ half)
            joint = np.array(logs).T + np.log(weights)
            evidence = logsumexp(joint, axis=1) if k > 1 else joint[:, 0]
            total += evidence.sum()
            r = np.exp(joint - evidence[:, None])
            of_part = r.sum(0)
            count += of_part
            for j in range(k):
                centred = filled[j] - mean[j]
                first[j] += r[:, j] @ centred
                second[j] += (r[:, j, None] * centred).T @ centred
                second[j][np.ix_(hidden, hidden)] += of_part[j] * spreads[j]
        shift = first / count[:, None]
        second = second / count[:, None, None] - shift[:, :, None] * shift[:, None]
        return total, (count / self.n, mean + shift, second)

    def climb(self, params, tol, most=2000):
        """The log-likelihood where a step has gained less than tol a row."""
        last = -np.inf
        for _ in range(most):
            value, params = self.step(*params)
            gain, last = value - last, value
            if gain < tol * self.n:
                break
        return last


def arrays(params):
    bank = params.components
    return tuple(np.asarray(a) for a in (params.weights, bank.mean, bank.covariance))


def steps(n, d, k):
    """Milliseconds of a step, and those of the NumPy code."""
    x = table(n, d, 1, k)
    model, loop = jaxem.Mixture(jaxem.Normal(missing=True), k=k), Patterns(x)
    start = jaxem.fit(model, x, key=0, max_iter=0).params
    method, data = jaxem.EM(accelerator=None), jax.numpy.asarray(x)

    def fit(steps):
        return jaxem.fit(model, data, init=start, method=method, tol=0, max_iter=steps)

    params = arrays(start)
    for _ in range(3):
        value, params = loop.step(*params)
    ours = float(fit(2).log_likelihood)
    assert abs(ours / value - 1) < 1e-9, (ours, value)
    fit(STEPS), fit(2 * STEPS)
    seconds = {"ours": [], "NumPy": []}
    for _ in range(REPEATS):
        both = []
        for count in (STEPS, 2 * STEPS):
            begun = time.perf_counter()
            jax.block_until_ready(fit(count).params)
            both.append(time.perf_counter() - begun)
        seconds["ours"].append((both[1] - both[0]) / STEPS)
        begun = time.perf_counter()
        loop.step(*params)
        seconds["NumPy"].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "patterns": len(loop.parts),
        "ms a step": 1e3 * statistics.median(seconds["ours"]),
        "NumPy, ms a step": 1e3 * statistics.median(seconds["NumPy"]),
        "times NumPy": statistics.median(ratios),
    }


def batch():
    """Seconds of all data sets, and those of a loop over some of them, per data set."""
    sets = np.stack([table(ROWS, FEATURES, seed) for seed in range(SETS)])
    model = jaxem.Mixture(jaxem.Normal(missing=True), k=1)
    start = jaxem.fit(model, jaxem.Batch(sets), key=0, max_iter=0).params
    begin = arrays(start)

    def fit(criterion="change"):
        return jaxem.fit(model, jaxem.Batch(sets), init=start, tol=TOL, criterion=criterion)

    def by_loop():
        return [Patterns(x).climb(tuple(a[i] for a in begin), TOL) for i, x in enumerate(sets)]

    ours, theirs = np.asarray(fit().log_likelihood), np.array(by_loop())
    assert np.abs(ours - theirs).max() < 1e-4, np.abs(ours - theirs).max()
    fit("aitken")
    seconds = {"ours": [], "NumPy": [], "default": []}
    runs = (("ours", fit), ("NumPy", by_loop), ("default", lambda: fit("aitken")))
    for _ in range(REPEATS):
        for name, function in runs:
            begun = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - begun)
    ratios = [b / a for a, b, _ in zip(*seconds.values(), strict=True)]
    return {
        "seconds": statistics.median(seconds["ours"]),
        "seconds by the default rule": statistics.median(seconds["default"]),
        "NumPy, seconds": statistics.median(seconds["NumPy"]),
        "times NumPy": statistics.median(ratios),
        "largest difference of log-likelihoods": float(np.abs(ours - theirs).max()),
    }


def main():
    jax.config.update("jax_enable_x64", True)
    path = pathlib.Path(__file__).parent / "results" / "missing-cpu.json"
    record = {"machine": machine()}
    record["one, 8"] = steps(N, 8, 1)
    record["five, 8"] = steps(N, 8, 5)
    record["one, 16"] = steps(N, 16, 1)
    record["batch"] = batch()
    for name, one in itertools.islice(record.items(), 1, None):
        print(
            f"{name} (aim {AIMS[name]}): " + ", ".join(f"{what} {x:.4g}" for what, x in one.items())
        )
    path.write_text(json.dumps(record, indent=1) + "\n")
