"""Passes over the data that partial E-steps need beside EM's, on 100,000 rows.

Five overlapping diagonal normals in four dimensions, float64, the same start. A method is done once
the log-likelihood is within 0.01 nats of the end that SQUAREM finds with a tight tolerance. An
evaluation of `Incremental(blocks, sweeps)` counts 1 + sweeps passes: it contains one exact E-step
of all rows, and partial ones. Seconds are of one compiled climb to that gap.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.cold import machine
from jaxem.protocol.units import inward, standardized

N, D, K, GAP = 100_000, 4, 5, 0.01
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), k=K)
MOST = 5000
FAST = jaxem.EM(accelerator=jaxem.SQUAREM())
RULES = {
    "EM": jaxem.Exact(),
    "2 blocks": jaxem.Incremental(2),
    "16 blocks": jaxem.Incremental(16),
    "64 blocks": jaxem.Incremental(64),
}


def problem(seed):
    """Overlapping groups, and a start."""
    rng = np.random.default_rng(seed)
    centres = 1.3 * rng.normal(size=(K, D))
    x = centres[rng.integers(K, size=N)] + rng.normal(size=(N, D))
    return x, jaxem.fit(MODEL, x, key=0, max_iter=0, tol=0).params


def climb(x, weights, start, target, rule):
    """Evaluations until the log-likelihood reaches the target, and its value there."""
    method = jaxem.EM(e_step=rule)
    view = standardized(MODEL, x, weights)

    def body(carry):
        steps, params, _ = carry
        seen = method.evaluate(view.model, params, view.data, weights)
        return steps + 1, seen.proposal, seen.objective - N * view.log_volume

    def going(carry):
        return (carry[2] < target) & (carry[0] < MOST)

    begin = inward(MODEL, view.units, start)
    steps, _, value = jax.lax.while_loop(going, body, (0, begin, -jnp.inf))
    return steps, value


def measure(seed):
    """For every rule: passes and seconds until the gap is closed."""
    x, start = problem(seed)
    end = jaxem.fit(MODEL, x, init=start, tol=1e-10, max_iter=20_000, method=FAST)
    target, found = float(end.log_likelihood) - GAP, {}
    for name, rule in RULES.items():
        data = (jnp.asarray(x), jnp.ones(N), start, target)
        run = jax.jit(climb, static_argnums=4).lower(*data, rule).compile()
        begun = time.perf_counter()
        steps, value = jax.block_until_ready(run(*data))
        seconds = time.perf_counter() - begun
        assert value >= target, f"{name} did not close the gap"
        assert value <= target + 2 * GAP, "another optimum: no comparison"
        passes = int(steps) * (1 + getattr(rule, "sweeps", 0))
        found[name] = {"passes": passes, "seconds": seconds}
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    record = {"machine": machine(), "gap in nats": GAP, "rows": N, "problems": []}
    print(f"passes over {N} rows until {GAP} nats from the optimum, and seconds")
    folder = pathlib.Path(__file__).parent / "results"
    for seed in range(2):
        found = measure(seed)
        record["problems"].append(found)
        told = [f"{name}: {one['passes']} ({one['seconds']:.1f} s)" for name, one in found.items()]
        print(f"problem {seed}: " + ", ".join(told), flush=True)
        (folder / "incremental-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
