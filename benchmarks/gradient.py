"""What the gradient of a fit costs: time beside the fit's own, memory by iterations, a batch.

Correctness first: the gradient of a fixed random combination of the params is compared with central
differences of float64 fits run to the end, along a random direction, and a line is printed as
FAILED where it is off by more than 1e-6, at the default tolerance as at 1e-12, or not trusted.
Times are medians of interleaved runs, compilation apart.
"""

import json
import pathlib
import statistics
import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.cold import machine
from benchmarks.fleet import problems

FITS, REPEATS, STEPS = 1000, 7, (10, 100, 1000)
CASES = {
    "Normal full, 2,000 x 2, k=3": (jaxem.Mixture(jaxem.Normal(), k=3), 2000, 2),
    "Normal diagonal, 5,000 x 8, k=4": (jaxem.Mixture(jaxem.Normal("diagonal"), k=4), 5000, 8),
    "StudentT, 1,000 x 2, k=2": (jaxem.Mixture(jaxem.StudentT(), k=2), 1000, 2),
    "Normal full, 1,000 x 12, k=2": (jaxem.Mixture(jaxem.Normal(), k=2), 1000, 12),
}


def combination(params):
    """A fixed random combination of all entries of the params."""
    rng = np.random.default_rng(5)
    return sum(jnp.sum(rng.normal(size=leaf.shape) * leaf) for leaf in jax.tree.leaves(params))


def groups(n, d, k, seed=0, df=None):
    """Groups of which some overlap, normal or of Student's t."""
    rng = np.random.default_rng(seed)
    means = 4.0 * rng.normal(size=(k, d))[rng.integers(k, size=n)]
    return means + (rng.normal(size=(n, d)) if df is None else rng.standard_t(df, size=(n, d)))


def interleaved(functions, x):
    """Seconds of every function on x, run in turn; the first call of each apart."""
    first, times = {}, {name: [] for name in functions}
    for name, function in functions.items():
        begun = time.perf_counter()
        jax.block_until_ready(function(x))
        first[name] = time.perf_counter() - begun
    for _ in range(REPEATS):
        for name, function in functions.items():
            begun = time.perf_counter()
            jax.block_until_ready(function(x))
            times[name].append(time.perf_counter() - begun)
    return first, times


def ratio(times):
    """The median of reverse pass over forward fit, where the pass is all that the gradient adds."""
    pairs = zip(times["fit and gradient"], times["fit"], strict=True)
    return statistics.median(both / fit - 1 for both, fit in pairs)


def off(value, gradient, x):
    """The relative error of a gradient along a random direction, by float64 differences."""
    direction = np.random.default_rng(1).normal(size=x.shape)

    def at(step):
        return float(value(jnp.asarray(x + step * direction)))

    h = 1e-4
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    return abs(float(np.vdot(gradient, direction)) / slope - 1)


def one_fit(name, model, n, d):
    """A fit and its gradient from the same start, at the default tolerance and at 1e-12."""
    x = groups(n, d, model.k, df=4 if isinstance(model.components, jaxem.StudentT) else None)
    start = jaxem.fit(model, x, key=0, restarts=4, tol=1e-9).params
    # Away from the optimum, so that there is something to climb.
    mean = start.components.mean + 0.3
    start = jaxem.MixtureParams(start.weights, replace(start.components, mean=mean))

    def value(x, tol, max_iter=2000):
        result = jaxem.fit(model, x, init=start, tol=tol, max_iter=max_iter)
        return combination(result.params), (result.n_iter, result.gradient_ok)

    fit, both = jax.jit(value), jax.jit(jax.value_and_grad(value, has_aux=True))
    ended = jax.jit(lambda x: value(x, 0, 8000)[0])
    record = {}
    for label, tol in {"default tol": 1e-6, "tol=1e-12": 1e-12}.items():
        functions = {"fit": partial(fit, tol=tol), "fit and gradient": partial(both, tol=tol)}
        first, times = interleaved(functions, jnp.asarray(x))
        (_, (steps, ok)), gradient = both(jnp.asarray(x), tol)
        error = off(ended, gradient, x)
        good = bool(ok) and error < 1e-6
        added = ratio(times)
        record[label] = {
            "reverse pass over fit": added, "steps": int(steps), "error": error,
            "seconds": times, **({} if record else {"first call": first}),
        }  # fmt: skip
        print(
            f"{name:>36}, {label:>11}: {int(steps):5d} steps, fit "
            f"{statistics.median(times['fit']) * 1e3:8.2f} ms, reverse pass {added:.2f} fits "
            f"(target 2), off by {error:.1e}{'' if good else '  FAILED'}",
            flush=True,
        )
    return record


def memory():
    """Temporary bytes of a program that differentiates a fit, by the most iterations."""
    model, x = jaxem.Mixture(jaxem.Normal(), k=3), groups(2000, 2, 3)
    start = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(x), jnp.ones(2000)))
    table = {}
    for how in ("implicit", "one_step", "unrolled"):
        table[how] = []
        for steps in STEPS:

            def value(x, init, how=how, steps=steps):
                fit = jaxem.fit(model, x, init=init, gradient=how, max_iter=steps)
                return combination(fit.params)

            program = jax.jit(jax.grad(value)).lower(jnp.asarray(x), start).compile()
            table[how].append(program.memory_analysis().temp_size_in_bytes)
    print(f"\ntemporary bytes at {STEPS} iterations, 2,000 x 2, k=3, float64")
    for how, used in table.items():
        verdict = ""
        if how != "unrolled" and len(set(used)) > 1:
            verdict = "  FAILED: not flat"
        print(f"{how:>10}: " + ", ".join(f"{b:,}" for b in used) + verdict)
    return table


def batch():
    """1,000 data sets of 500 x 2, float32: the fits, and the fits with their gradient."""
    x, start = (jax.tree.map(lambda a: jnp.asarray(a[:FITS]), tree) for tree in problems())
    model = jaxem.Mixture(jaxem.Normal(), k=3)

    def value(x):
        result = jaxem.fit(model, jaxem.Batch(x), init=start)
        sums = jax.vmap(combination)(result.params)
        return jnp.where(result.gradient_ok, sums, 0).sum(), result.gradient_ok

    functions = {
        "fit": jax.jit(value),
        "fit and gradient": jax.jit(jax.value_and_grad(value, has_aux=True)),
    }
    first, times = interleaved(functions, x)
    (_, ok), gradient = functions["fit and gradient"](x)
    share = statistics.median(
        fit / both for fit, both in zip(times["fit"], times["fit and gradient"], strict=True)
    )
    sound = bool(np.all(np.isfinite(gradient)))
    print(
        f"\n{FITS} fits in one call: {statistics.median(times['fit']) / FITS * 1e3:.3f} ms a fit, "
        f"{statistics.median(times['fit and gradient']) / FITS * 1e3:.3f} with the gradient: "
        f"{share:.2f} of the forward throughput (target 0.5); {float(np.mean(ok)):.1%} of the "
        f"gradients can be trusted{'' if sound else '  FAILED: not finite'}"
    )
    return {"throughput": share, "trusted": float(np.mean(ok)), "seconds": times, "first": first}


def main():
    with jax.enable_x64(True):
        single = {name: one_fit(name, *case) for name, case in CASES.items()}
        table = memory()
    record = {
        "machine": machine(), "one fit": single, "temporary bytes": table, "batch": batch()
    }  # fmt: skip
    results = pathlib.Path(__file__).parent / "results"
    (results / "gradient-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
