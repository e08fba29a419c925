"""The workloads of `gpu`: each a function of a `Context` that returns its record.

A record has `sides`: of jaxem and of every rival the seconds of interleaved runs, the first call
with its compilation apart, a float64 score and a verdict. Data lie on the device on all sides,
except where a side is named "from NumPy". A rival that fails leaves its error in its place.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import gpu_problems as problems
from benchmarks import lda
from benchmarks.gpu_contest import (
    SLACK,
    as_arrays,
    as_params,
    contest,
    described,
    judged,
    note_plain,
    quiet_fit,
    seconds,
    with_torch,
)

K, TOL, LIMIT = 3, 1e-5, 1000
RULES = {
    "default tol": ({}, ("aitken", 1e-6, 2000)),
    "change, tol=1e-5": (
        {"criterion": "change", "tol": TOL, "max_iter": LIMIT},
        ("change", TOL, LIMIT),
    ),
}
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
HIGHEST = jax.lax.Precision.HIGHEST


def ceilings(context):
    """Bandwidth of a copy, float32 products at full precision, and what a tiny kernel costs."""
    size = context.size
    x = jnp.ones(size.copied, jnp.float32)
    matrix = jnp.ones((size.product, size.product), jnp.float32)
    dispatched, scalar = min(size.loops, 1000), jnp.zeros((), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=HIGHEST))

    def chain(kernels):
        """A loop of steps that need so many kernels each: a sum ends a kernel."""

        def step(_, x):
            for _ in range(kernels):
                x = 0.5 * x + 1e-3 * x.sum()
            return x

        return jax.jit(lambda x: jax.lax.fori_loop(0, size.loops, step, x))

    def dispatches():
        value = scalar
        for _ in range(dispatched):
            value = copy(value)
        return value

    few, many, row = chain(1), chain(9), jnp.ones(512, jnp.float32)
    runs = {
        "copy": lambda: copy(x), "product": lambda: product(matrix), "dispatch": dispatches,
        "few kernels": lambda: few(row), "many kernels": lambda: many(row),
    }  # fmt: skip
    best = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        best[name] = min(seconds(lambda: jax.block_until_ready(run()))[0] for _ in range(5))  # noqa: B023
    found = {
        "copy GB/s": 2 * x.nbytes / best["copy"] / 1e9,
        "float32 TFLOP/s": 2 * size.product**3 / best["product"] / 1e12,
        "µs a dispatch": 1e6 * best["dispatch"] / dispatched,
        "µs a loop step": 1e6 * best["few kernels"] / size.loops,
        "µs a further kernel": 1e6 * (best["many kernels"] - best["few kernels"]) / size.loops / 8,
    }
    context.ceilings.update(found)
    return found


def parameters(d):
    """Numbers of a quadratic function of d features."""
    return 1 + d + d * (d + 1) // 2


def fleet(context, fits, rule, d=2):
    """A Batch of one length beside PyTorch."""
    options, torch_rule = RULES[rule]
    size = context.size
    x, start = problems.fleet(fits, size.rows, d, K)
    on_device, init = jax.device_put((x, as_params(start)))

    def fit(x, **more):
        return quiet_fit(MODEL, jaxem.Batch(x), init=init, **options, **more)

    sides = {"jaxem": lambda: fit(on_device)}
    if fits == size.fits and d == 2:
        sides["jaxem, from NumPy"] = lambda: fit(x)
    fast = with_torch(
        context, sides, "PyTorch",
        lambda torch: torch.fleet(x, None, start, *torch_rule, context.device),
    )  # fmt: skip
    record, answers = contest(sides, size, fits)
    note_plain(record, fast)
    about_steps(context, record["jaxem"], answers.get("jaxem"), size.rows, d)
    judge_fleet(record, answers, x, size)
    return {"unit": "fit", "sides": record}


def about_steps(context, side, fits, rows, d):
    """Writes EM steps, how many converged, and what the useful steps would take at the ceilings."""
    if fits is None:
        return
    steps = np.asarray(fits.n_iter)
    side |= {
        "steps, mean": float(steps.mean()),
        "steps, most": int(steps.max()),
        "converged": float(np.mean(fits.converged)),
        "floor": context.floor(4 * rows * K * parameters(d) * float(steps.sum())),
    }


def judge_fleet(record, answers, x, size, present=None, others=()):
    """Scores and verdicts, over fits of which no side has a collapsed component."""
    chosen = np.unique(np.linspace(0, len(x) - 1, size.scored).astype(int))
    x, present = x[chosen], None if present is None else present[chosen]
    fits = {name: [a[chosen] for a in as_arrays(answer)] for name, answer in answers.items()}
    if not fits:
        return
    collapsed = {name: problems.collapsed(x, parts[2]) for name, parts in fits.items()}
    sound = ~np.any(list(collapsed.values()), axis=0)
    if not sound.any():
        raise ValueError("a component of every fit has collapsed: nothing can be compared")
    there = None if present is None else present[sound]
    scores = {
        name: problems.scores(x[sound], *(a[sound] for a in parts), present=there)
        for name, parts in fits.items()
    }
    judged(record, scores, others)
    for name, lost in collapsed.items():
        record[name]["collapsed"] = float(lost.mean())


def lanes(context):
    """The same fits with several widths: `fit(..., lanes=...)`."""
    size, options = context.size, RULES["change, tol=1e-5"][0]
    x, start = problems.fleet(size.fits, size.rows, 2, K)
    data, init = jax.device_put((x, as_params(start)))
    sides = {
        f"{width} lanes": lambda width=width: quiet_fit(
            MODEL, jaxem.Batch(data), init=init, lanes=width, **options
        )
        for width in size.lanes
    }
    record, answers = contest(sides, size, size.fits)
    judge_fleet(record, answers, x, size)
    return {"unit": "fit", "sides": record}


def squarem(context):
    """SQUAREM beside plain EM, both by the default tolerance."""
    size = context.size
    x, start = problems.fleet(size.fits, size.rows, 2, K)
    data, init = jax.device_put((x, as_params(start)))
    fast = jaxem.EM(accelerator=jaxem.SQUAREM())
    sides = {
        "jaxem": lambda: quiet_fit(MODEL, jaxem.Batch(data), init=init),
        "jaxem, SQUAREM": lambda: quiet_fit(MODEL, jaxem.Batch(data), init=init, method=fast),
    }
    record, answers = contest(sides, size, size.fits)
    for name, answer in answers.items():
        about_steps(context, record[name], answer, size.rows, 2)
    judge_fleet(record, answers, x, size, others=("jaxem, SQUAREM",))
    return {"unit": "fit", "sides": record}


def ragged(context):
    """A Batch of a list from NumPy, beside PyTorch on data padded to the longest on the device."""
    size, (options, torch_rule) = context.size, RULES["change, tol=1e-5"]
    sets, padded, present, start = problems.ragged(size.fits, *size.ragged, 2, K)
    init = jax.device_put(as_params(start))
    sides = {"jaxem, from NumPy": lambda: quiet_fit(MODEL, jaxem.Batch(sets), init=init, **options)}
    fast = with_torch(
        context, sides, "PyTorch, padded",
        lambda torch: torch.fleet(padded, present, start, *torch_rule, context.device),
    )  # fmt: skip
    record, answers = contest(sides, size, size.fits)
    note_plain(record, fast, "PyTorch, padded")
    judge_fleet(record, answers, padded, size, present)
    return {"unit": "fit", "sides": record}


def by_gmmx(x, start, covariance):
    """iterations -> params by gmmx; ImportError where it is missing."""
    import gmmx

    kind = {"full": "full", "diagonal": "diag"}[covariance]
    rows = jnp.asarray(x)

    def run(iterations):
        fitter = gmmx.EMFitter(max_iter=iterations, tol=0.0, reg_covar=0.0)
        with jax.enable_x64(False), jax.default_matmul_precision("highest"):
            mixture = gmmx.GaussianMixtureModelJax.from_squeezed(
                start[1], start[2], start[0], covariance_type=kind
            )
            found = jax.block_until_ready(fitter.fit(rows, mixture).gmm)
        spread = np.asarray(found.covariances.values)[0]
        spread = spread if covariance == "full" else spread[..., 0]
        return found.weights_numpy, found.means_numpy, spread

    return run


def large(context, shape, covariance):
    """One step of a large fit, from a run of many and a run of few, beside its floor."""
    (n, d, k), (few, many) = shape, context.size.steps
    x, start = problems.large(n, d, k, covariance)
    data, init = jax.device_put((x, as_params(start)))
    model = jaxem.Mixture(jaxem.Normal(covariance), k=k)
    runs = {"jaxem": lambda i: quiet_fit(model, data, init=init, tol=0, max_iter=i)}
    most = 2**16 if covariance == "full" else 2**18
    rows = n // next(pieces for pieces in range(-(-n // most), n + 1) if n % pieces == 0)
    fast = with_torch(
        context, runs, "PyTorch",
        lambda torch: torch.large(x, start, covariance, rows, context.device),
    )  # fmt: skip
    record, scores = {}, {}
    try:
        runs["gmmx"] = by_gmmx(x, start, covariance)
    except ImportError:
        print("  gmmx is not installed")
    for name, run in list(runs.items()):
        record[name] = {"units": 1, "seconds": []}
        try:
            record[name]["first call"], answer = seconds(lambda: run(few))  # noqa: B023
            scores[name] = np.array([problems.large_score(x, *as_arrays(answer))])
            run(many)  # gmmx compiles for every number of steps
        except Exception as error:
            record[name] = {"units": 1, "error": described(error)}
            del runs[name]
    end = time.perf_counter() + context.size.seconds
    for turn in range(context.size.repeats):
        for name, run in runs.items():
            short, long = (seconds(lambda: run(i))[0] for i in (few, many))  # noqa: B023
            record[name]["seconds"].append((long - short) / (many - few))
        if turn and time.perf_counter() > end:
            break
    if "error" not in record.get("PyTorch", {}):
        note_plain(record, fast)
    size = parameters(d) if covariance == "full" else 1 + 2 * d
    for name in runs:
        record[name]["floor"] = context.floor(4 * n * k * size, 4 * n * d)
    if scores:
        judged(record, scores)
    return {"unit": "step", "sides": record}


def gradient(context):
    """The gradient of a fleet beside the fit alone, and beside differences of float64 fits."""
    size = context.size
    x, start = problems.fleet(size.fits, size.rows, 2, K)
    data, init = jax.device_put((x, as_params(start)))
    rng = np.random.default_rng(5)
    factors = [rng.normal(size=part.shape[1:]).astype(np.float32) for part in start]

    def value(x):
        fits = jaxem.fit(MODEL, jaxem.Batch(x), init=init)
        bank = fits.params.components
        parts = zip(factors, (fits.params.weights, bank.mean, bank.covariance), strict=True)
        sums = sum((factor * part).reshape(len(x), -1).sum(1) for factor, part in parts)
        return jnp.where(fits.gradient_ok, sums, 0).sum(), (fits.gradient_ok, fits)

    functions = {"fit": value, "fit and gradient": jax.value_and_grad(value, has_aux=True)}
    functions = {name: jax.jit(function) for name, function in functions.items()}
    record, answers = contest(
        {
            name: lambda function=function: jax.block_until_ready(function(data))
            for name, function in functions.items()
        },
        size,
        size.fits,
    )
    if "fit and gradient" not in answers:
        return {"unit": "fit", "sides": record}
    (_, (trusted, fits)), slopes = answers["fit and gradient"]
    trusted, slopes = np.asarray(trusted), np.asarray(slopes, float)
    quick = np.flatnonzero(trusted & (np.asarray(fits.n_iter) < 60))[:3]
    errors = []
    for i in quick:
        params = [a[i] for a in as_arrays(fits)]
        direction, h = rng.normal(size=x[i].shape), 1e-4
        ends = [
            problems.combination(problems.ended(x[i] + step * direction, params))
            for step in (h, -h)
        ]
        off = (slopes[i] * direction).sum() - (ends[0] - ends[1]) / (2 * h)
        errors.append(float(abs(off) / np.linalg.norm(slopes[i])))
    finite = bool(np.all(np.isfinite(slopes[trusted])))
    wrong = not finite or (errors and float(np.median(errors)) > 0.02)
    record["fit and gradient"] |= {"trusted": float(trusted.mean()), "failed": bool(wrong)}
    return {"unit": "fit", "sides": record, "error beside differences": errors}


def documents(context):
    """A sweep of LDA with Dirichlet topics beside PyTorch's on dense counts."""
    size = context.size
    counts = problems.corpus(size.documents + size.held_out, size.words, size.topics, 200)
    counts, held_out = counts[: size.documents], lda.halves(counts[size.documents :])
    start = lda.first_topics(size.topics, size.words)
    model, data = jaxem.LDA(size.topics, inference="bayes"), jaxem.Documents(counts)
    alpha, mass = np.full(size.topics, 1 / size.topics, np.float32), start.sum(1)
    init = jaxem.LDAParams(start / mass[:, None], alpha, mass)

    def ours():
        found = quiet_fit(model, data, init=init, tol=0, max_iter=size.sweeps).params
        return found.topics * found.mass[:, None]

    sides = {"jaxem": ours}
    fast = with_torch(
        context, sides, "PyTorch, dense",
        lambda torch: torch.topics(counts, start, size.sweeps, 20, context.device),
    )  # fmt: skip
    record, answers = contest(sides, size, size.sweeps)
    note_plain(record, fast, "PyTorch, dense")
    found = {
        name: lda.score(np.asarray(a.cpu() if hasattr(a, "cpu") else a), *held_out, 1 / size.topics)
        for name, a in answers.items()
    }
    for name, perplexity in found.items():
        late = not perplexity <= (1 + lda.SLACK) * min(found.values())
        record[name] |= {"perplexity": perplexity, "failed": late}
    return {"unit": "sweep", "sides": record}


def agreement(context):
    """The float64 score of equal fits in float32 on the device and on the CPU."""
    size, found, scores = context.size, {}, {}
    x, start = problems.fleet(size.fits, size.rows, 2, K)
    few = x[: size.agreed], tuple(a[: size.agreed] for a in start)
    cpu = jax.devices("cpu")[0]
    for place, (data, begin) in {"device": (x, start), "CPU": few}.items():
        with jax.default_device(cpu if place == "CPU" else jax.devices()[0]):
            data, init = jnp.asarray(data), jax.tree.map(jnp.asarray, as_params(begin))
            fits = as_arrays(quiet_fit(MODEL, jaxem.Batch(data), init=init))
        scores[place] = problems.scores(few[0], *(a[: size.agreed] for a in fits))
    away = scores["device"] - scores["CPU"]
    found["mean objective a row"] = {place: float(s.mean()) for place, s in scores.items()}
    found["mean difference"] = float(away.mean())
    found["share of fits that differ by more than 1e-3"] = float(np.mean(~(abs(away) <= SLACK)))
    found["failed"] = not abs(away.mean()) <= SLACK
    return found


WORKLOADS = {
    "ceilings": ceilings,
    "fleet, default tol": lambda c: fleet(c, c.size.fits, "default tol"),
    "fleet, change": lambda c: fleet(c, c.size.fits, "change, tol=1e-5"),
    "large full": lambda c: large(c, c.size.full, "full"),
    "large diagonal": lambda c: large(c, c.size.diagonal, "diagonal"),
    "large fleet, default tol": lambda c: fleet(c, c.size.many, "default tol"),
    "large fleet, change": lambda c: fleet(c, c.size.many, "change, tol=1e-5"),
    "lanes": lanes,
    "agreement with the CPU": agreement,
    "gradient": gradient,
    "fleet, d = 8": lambda c: fleet(c, c.size.fits, "change, tol=1e-5", c.size.wide[0]),
    "fleet, d = 16": lambda c: fleet(c, c.size.fits, "change, tol=1e-5", c.size.wide[1]),
    "SQUAREM": squarem,
    "LDA": documents,
    "ragged": ragged,
}
"""In the order in which they run: those that count most come first, if the budget ends early."""
