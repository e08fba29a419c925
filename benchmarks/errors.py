"""Standard errors and bootstrap: seconds, and the memory of many replicates.

`python -m benchmarks errors` computes, in float64: the standard errors of a mixture of three
normals with full covariances in three dimensions (29 params) from 100,000 rows, beside
`jax.hessian` of a hand-written density in natural params; 999 weighted refits of 155 rows, drawn
from the fit of the acidity of 155 lakes by two normals of equal variance; and the peak memory of a
process that refits 2,000 rows 3,000 and 10,000 times. Seconds are medians of `REPEATS` runs, after
one that compiles. A time counts only if the errors agree.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.cold import machine

ROWS, D, K, REPEATS, REFITS = 100_000, 3, 3, 5, 999
LOWER = np.tril_indices(D)

MEMORY = """
import pathlib, sys
import numpy as np, jax, jaxem
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
x = np.concatenate([rng.normal(0, 1, (1200, 2)), rng.normal(5, 1, (800, 2))])
result = jaxem.fit(jaxem.Mixture(jaxem.Normal("diagonal"), 2), x, key=0)
jaxem.bootstrap(result, x, int(sys.argv[1]), key=0)
status = pathlib.Path("/proc/self/status").read_text()  # the peak of this program, on Linux
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def timed(function):
    """(the result, seconds of the first call, median seconds of the others)."""
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        found = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - begun)
    return found, seconds[0], statistics.median(seconds[1:])


def natural(params):
    """Free entries in one vector: weights but the last, means, lower triangles of covariances."""
    bank = params.components
    parts = [params.weights[:-1], bank.mean.ravel(), bank.covariance[:, *LOWER].ravel()]
    return jnp.concatenate([jnp.asarray(part) for part in parts])


@jax.jit
def hessian_by_hand(vector, x):
    """Of the log-likelihood, by the vector of `natural`."""

    def log_likelihood(v):
        weights = jnp.append(v[: K - 1], 1 - v[: K - 1].sum())
        mean = v[K - 1 : K - 1 + K * D].reshape(K, D)
        lower = v[K - 1 + K * D :].reshape(K, -1)
        matrix = jnp.zeros((K, D, D)).at[:, LOWER[0], LOWER[1]].set(lower)
        matrix = matrix.at[:, LOWER[1], LOWER[0]].set(lower)
        away = x[:, None] - mean
        solved = jnp.einsum("kij,nkj->nki", jnp.linalg.inv(matrix), away)
        terms = (away * solved).sum(-1) + jnp.linalg.slogdet(2 * jnp.pi * matrix)[1]
        return jax.nn.logsumexp(jnp.log(weights) - 0.5 * terms, axis=1).sum()

    return jax.hessian(log_likelihood)(vector)


def hessian():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, D)) + 3 * rng.integers(K, size=(ROWS, 1))
    result = jaxem.fit(jaxem.Mixture(jaxem.Normal("full"), K), x, key=0, tol=1e-10)
    _, first, seconds = timed(lambda: result.standard_errors(x).covariance)
    by_hand, hand_first, hand_seconds = timed(
        lambda: hessian_by_hand(natural(result.params), jnp.asarray(x))
    )
    expected = np.sqrt(np.diag(np.linalg.inv(-np.asarray(by_hand))))
    errors = np.asarray(natural(result.standard_errors(x).errors))
    gap = float(np.max(np.abs(errors / expected - 1)))
    assert gap < 1e-5, gap
    _, _, sandwich = timed(lambda: result.standard_errors(x, method="sandwich").covariance)
    return {
        "params": int(result.n_parameters),
        "rows": ROWS,
        "first call": first,
        "seconds": seconds,
        "sandwich": sandwich,
        "jax.hessian, first call": hand_first,
        "jax.hessian": hand_seconds,
        "largest relative difference of errors": gap,
    }


def refits():
    rng = np.random.default_rng(0)
    mean = np.where(rng.uniform(size=155) < 0.623, 4.371, 6.320)
    x = rng.normal(mean, np.sqrt(0.1864))[:, None]  # the fit of the acidity of lakes
    result = jaxem.fit(jaxem.Mixture(jaxem.Normal("EII"), 2), x, key=0, restarts=4, tol=1e-12)
    _, first, seconds = timed(lambda: jaxem.bootstrap(result, x, REFITS, key=1).covariance)
    return {"rows": len(x), "refits": REFITS, "first call": first, "seconds": seconds}


def memory():
    """Peak memory in MiB by the number of replicates."""
    found = {}
    for count in (3_000, 10_000):
        command = [sys.executable, "-c", MEMORY, str(count)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[str(count)] = float(output.split()[-1])
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    path = pathlib.Path(__file__).parent / "results" / "errors-cpu.json"
    record = {"machine": machine(), "hessian": hessian(), "refits": refits(), "memory": memory()}
    h, r, m = record["hessian"], record["refits"], record["memory"]
    print(
        f"{h['params']} params, {h['rows']} rows: {h['seconds']:.2f} s, sandwich "
        f"{h['sandwich']:.2f} s, jax.hessian by hand {h['jax.hessian']:.2f} s; errors differ by "
        f"{h['largest relative difference of errors']:.1e}"
    )
    print(f"{r['refits']} refits of {r['rows']} rows: {1000 * r['seconds']:.0f} ms")
    print("peak memory, MiB: " + ", ".join(f"{n} refits {v:.0f}" for n, v in m.items()))
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
