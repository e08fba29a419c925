"""Hidden Markov models beside hmmlearn and dynamax: milliseconds an iteration of EM, compile time
apart.

`python -m benchmarks hmm` draws series from a Gaussian HMM and runs every side from the same start
for the same number of iterations: hmmlearn 0.3 with implementation="scaling" and without its
priors, dynamax 1.0 jitted, with priors as weak as it takes, in float32 as jaxem. hmmlearn computes
in float64. Every answer is scored by one independent float64 function; a side that ends more than
1e-3 nats a row below another is printed as FAILED. Seconds are medians of interleaved runs, of
whole calls without compilation. A side that is not installed is left out. Writes
results/hmm-<device>.json.
"""

import functools
import json
import logging
import pathlib
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.cold import machine
from benchmarks.gpu import file_name
from jaxem.numerics import chains

try:
    from hmmlearn.hmm import GaussianHMM
except ImportError:
    GaussianHMM = None

ITERATIONS, REPEATS, SLACK = 30, 5, 1e-3
CASES = {
    "1,000 series x 200, k = 4, d = 2, full": ("shared", 1000, 200, 4, 2),
    "200 series x 500, k = 8, d = 4, full": ("shared", 200, 500, 8, 4),
    "1,000 separate fits of 200, k = 3, d = 1": ("fleet", 1000, 200, 3, 1),
    "1,000 separate fits of 40 to 400, k = 3, d = 1": ("ragged", 1000, 400, 3, 1),
    "one series of 100,000, k = 3, d = 1": ("shared", 1, 100_000, 3, 1),
}

LARGE = {
    "8,192 separate fits of 200, k = 3, d = 1": ("fleet", 8192, 200, 3, 1),
    "one series of 1,000,000, k = 3, d = 1": ("shared", 1, 1_000_000, 3, 1),
}
"""Further cases on an accelerator."""


def drawn(seed, n, t, k, d):
    """(series (n, t, d), a start) of a chain that stays with probability 0.9."""
    rng = np.random.default_rng(seed)
    mean = 3 * rng.normal(size=(k, d))
    z = np.empty((n, t), int)
    z[:, 0] = rng.integers(k, size=n)
    for row in range(1, t):
        stays = rng.uniform(size=n) < 0.9
        z[:, row] = np.where(stays, z[:, row - 1], rng.integers(k, size=n))
    x = (mean[z] + rng.normal(size=(n, t, d))).astype(np.float32)
    transition = np.full((k, k), 0.1 / k) + 0.9 * np.eye(k)
    transition /= transition.sum(1, keepdims=True)
    covariance = np.broadcast_to(2 * np.eye(d), (k, d, d))
    start = (np.full(k, 1 / k), transition, mean + 0.5 * rng.normal(size=(k, d)), covariance)
    return x, start


def ours(start, dtype=np.float32):
    initial, transition, mean, covariance = (np.asarray(a, dtype) for a in start)
    return jaxem.HMMParams(initial, transition, jaxem.NormalParams(mean, covariance))


def theirs(start, k):
    """hmmlearn's model at a start, without priors."""
    model = GaussianHMM(
        k,
        "full",
        min_covar=0,
        covars_prior=0,
        covars_weight=0,
        n_iter=ITERATIONS,
        tol=-np.inf,
        init_params="",
        implementation="scaling",
    )
    model.startprob_, model.transmat_, model.means_, model.covars_ = map(np.array, start)
    return model


def score(x, params):
    """The float64 log-likelihood of series (n, t, d)."""
    initial, transition, mean, covariance = (np.asarray(a, float) for a in params)
    if np.linalg.eigvalsh(covariance).min() <= 0:
        return -np.inf  # a state has collapsed
    away = x[:, :, None].astype(float) - mean
    distance = np.einsum("ntkd,kde,ntke->ntk", away, np.linalg.inv(covariance), away)
    log_det = np.linalg.slogdet(covariance)[1]
    logs = -0.5 * (x.shape[-1] * np.log(2 * np.pi) + log_det + distance)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        chain = chains.Chain(jnp.asarray(initial)[:, None], jnp.asarray(transition)[..., None])
        found = chain.forward(jnp.asarray(np.moveaxis(logs, 0, 2)))
        return float(found.evidence.sum())


def fields(p):
    return p.initial, p.transition, p.emissions.mean, p.emissions.covariance


def shared(n, t, k, d):
    """The sides of one model of all series: functions that return (log-likelihood, rows)."""
    x, start = drawn(0, n, t, k, d)
    sequences = jaxem.Sequences(x)
    model = jaxem.HMM(jaxem.Normal(), k)
    options = {"init": ours(start), "tol": 0, "max_iter": ITERATIONS}

    def jaxem_side():
        return fields(jax.block_until_ready(jaxem.fit(model, sequences, **options).params))

    def hmmlearn_side():
        found = theirs(start, k).fit(x.reshape(-1, d).astype(float), [t] * n)
        return found.startprob_, found.transmat_, found.means_, found.covars_

    sides = {"jaxem": jaxem_side}
    if GaussianHMM is not None:
        sides["hmmlearn"] = hmmlearn_side
    run = dynamax_side(x, start, k, d)
    if run is not None:
        sides["dynamax"] = run
    return sides, lambda params: np.array([score(x, params)]), x.size // d


def dynamax_side(x, start, k, d):
    """dynamax from the same start, its whole fit jitted; None where it is not installed."""
    try:
        from dynamax.hidden_markov_model import GaussianHMM as Model
    except ImportError:
        return None
    weak = {"emission_prior_concentration": 1e-8, "emission_prior_scale": 1e-8}
    model = Model(
        k,
        d,
        initial_probs_concentration=1.0 + 1e-6,
        transition_matrix_concentration=1.0 + 1e-6,
        emission_prior_extra_df=1e-6,
        **weak,
    )
    initial, transition, mean, covariance = (jnp.asarray(a, jnp.float32) for a in start)
    params, props = model.initialize(
        jax.random.key(0),
        initial_probs=initial,
        transition_matrix=transition,
        emission_means=mean,
        emission_covariances=covariance,
    )
    fit = functools.partial(model.fit_em, props=props, num_iters=ITERATIONS, verbose=False)
    jitted = jax.jit(lambda params, x: fit(params, emissions=x)[0])
    data = jnp.asarray(x if len(x) > 1 else x[0])

    def run():
        p = jax.block_until_ready(jitted(params, data))
        return p.initial.probs, p.transitions.transition_matrix, p.emissions.means, p.emissions.covs

    return run


def fleet(n, t, k, d, ragged=False):
    """The sides of n models of one series each."""
    drawings = [drawn(i, 1, t, k, d) for i in range(n)]
    rng = np.random.default_rng(1)
    lengths = rng.integers(40, t, size=n) if ragged else np.full(n, t)
    series = [x[0, :length] for (x, _), length in zip(drawings, lengths, strict=True)]
    starts = [start for _, start in drawings]
    init = jax.tree.map(lambda *a: np.stack(a), *map(ours, starts))
    batch = jaxem.Batch([jaxem.Sequences([x]) for x in series])
    model = jaxem.HMM(jaxem.Normal(), k)
    options = {"init": init, "tol": 0, "max_iter": ITERATIONS}

    def jaxem_side():
        fits = jaxem.fit(model, batch, **options)
        parts = zip(*map(np.asarray, fields(jax.block_until_ready(fits.params))), strict=True)
        return list(parts)

    def hmmlearn_side():
        found = [
            theirs(start, k).fit(x.astype(float)) for start, x in zip(starts, series, strict=True)
        ]
        return [(m.startprob_, m.transmat_, m.means_, m.covars_) for m in found]

    def total(params):
        pairs = zip(series[::20], params[::20], strict=True)
        return np.array([score(x[None], p) for x, p in pairs])

    sides = {"jaxem": jaxem_side}
    if GaussianHMM is not None:
        sides["hmmlearn"] = hmmlearn_side
    return sides, total, sum(map(len, series[::20]))


KINDS = {"shared": shared, "fleet": fleet, "ragged": functools.partial(fleet, ragged=True)}


def main():
    warnings.simplefilter("ignore", jaxem.FitWarning)
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    backend, device = jax.default_backend(), jax.devices()[0].device_kind
    place = {"machine": machine()} if backend == "cpu" else {"device": device}
    record = {**place, "iterations": ITERATIONS}
    name = "hmm-cpu.json" if backend == "cpu" else file_name(device).replace("gpu-", "hmm-")
    path = pathlib.Path(__file__).parent / "results" / name
    for name, (kind, *sizes) in (CASES if backend == "cpu" else CASES | LARGE).items():
        sides, total, rows = KINDS[kind](*sizes)
        ends, seconds = {}, {side: [] for side in sides}
        for turn in range(REPEATS + 1):
            for side, run in sides.items():
                if side == "hmmlearn" and kind != "shared" and turn > 2:
                    continue
                begun = time.perf_counter()
                ends[side] = run()
                if turn:
                    seconds[side].append((time.perf_counter() - begun) / ITERATIONS)
        found = {side: total(params) for side, params in ends.items()}
        are_sound = np.all([np.isfinite(values) for values in found.values()], axis=0)
        scores = {side: float(values[are_sound].sum()) for side, values in found.items()}
        best, row = max(scores.values()), {"left out": int((~are_sound).sum())}
        if row["left out"]:
            print(f"{name}: {row['left out']} of {are_sound.size} left out, collapsed on a side")
        for side in sides:
            milliseconds = 1e3 * statistics.median(seconds[side])
            failed = scores[side] < best - SLACK * rows
            ratio = milliseconds / (1e3 * statistics.median(seconds["jaxem"]))
            row[side] = {"ms": milliseconds, "times": ratio, "log_likelihood": scores[side]}
            print(
                f"{name}: {side} {milliseconds:.2f} ms an iteration, {ratio:.1f} times, "
                f"log-likelihood {scores[side]:.2f}{' FAILED' if failed else ''}",
                flush=True,
            )
        record[name] = row
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
