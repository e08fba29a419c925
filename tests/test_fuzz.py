"""Random fits end with a sound result, a status or a message of jaxem, and with nothing else.

What every call must fulfil, `check`: no error but ValueError and TypeError, raised by jaxem itself;
no warning but a `FitWarning`; the input is not written; CONVERGED only beside finite params; and
the log-likelihood of every finite result is that of an independent float64 scorer at the returned
params. Under transformations values become a status instead of an error.
"""

import collections
import contextlib
import faulthandler
import functools
import pathlib
import sys
import time
import traceback
import warnings

import fuzz
import jax
import numpy as np
import pytest
import scorer
from compare import equal

import jaxem
from jaxem import Status

ENDS = (Status.CONVERGED, Status.MAX_ITER, Status.DECREASED, Status.NONFINITE, Status.DEGENERATE)
RELATIVE = {"float32": 1e-3, "float64": 1e-8}
LANES = 3
PACKAGE = str(pathlib.Path(jaxem.__file__).parent)


def precision(setting):
    return contextlib.nullcontext() if setting.x64 else jax.enable_x64(False)


def run(setting, seed):
    """What became of a call: the name of an error or of a status. AssertionError where it is not
    as it must be."""
    with precision(setting):
        return {"eager": eager, "jit": jitted, "vmap": mapped}.get(setting.mode, differentiated)(
            setting, seed
        )


# Eager calls


def eager(setting, seed):
    family = fuzz.FAMILIES[setting.family](setting.d)
    call = fuzz.random_call(setting, family, seed)
    model = jaxem.Mixture(family.bank, setting.k)
    options = {"restarts": setting.restarts, "criterion": setting.criterion}
    options |= {"method": fuzz.METHODS[setting.method]} | call.arguments
    data = options.pop("data")
    before = np.array(data) if isinstance(data, np.ndarray) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = jaxem.fit(model, data, **options)
        except (ValueError, TypeError) as error:
            result = error
    for warning in caught:
        assert issubclass(warning.category, jaxem.FitWarning), warning
    if before is not None:
        assert equal(before, np.array(data)) or before.dtype.kind in "OfVMc", "the input is changed"
    if isinstance(result, Exception):
        assert is_own(result), "".join(traceback.format_exception(result))
        assert call.certain or not are_valid(setting, family, call, np.float32), result
        return type(result).__name__
    assert not call.certain, f"accepted: {call.fault}"
    dtype = np.asarray(result.log_likelihood).dtype
    assert are_valid(setting, family, call, dtype), f"accepted: {call.fault}"
    assert dtype == setting.dtype or not setting.x64
    check(setting, family, result, call.x.astype(dtype), call.weights.astype(dtype))
    return Status(int(result.status)).name


def is_own(error):
    """Whether an error is jaxem's: raised in one of its files, no class of JAX, with a message."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    of_jax = type(error).__module__.startswith(("jax", "numpy"))
    return last.startswith(PACKAGE) and not of_jax and len(str(error)) > 20


def are_valid(setting, family, call, dtype):
    """Whether the values and weights of a call lie in the support, as the fit sees them."""
    with np.errstate(over="ignore"):
        x, w = call.x.astype(dtype), call.weights.astype(dtype)
    if not (np.isfinite(w) & (w >= 0)).all() or not (w > 0).any():
        return False
    return bool(fuzz.is_valid(family.kind, x)[w > 0].all())


def check(setting, family, fit, x, w):
    """One fit of valid data."""
    status = int(fit.status)
    assert status in ENDS, Status(status).name
    if setting.method in ("EM", "SQUAREM", "Anderson"):
        resolved = not is_nearly_singular(fit.params.components)
        assert status != Status.DECREASED or not resolved, "the objective fell"
    if status == Status.NONFINITE and setting.method not in ("Incremental", "OnlineEM"):
        possible = scorer.log_likelihood(family.density, fit.params, x, w) > -np.inf
        assert not possible, "not finite, though no unit has probability 0"
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((fit.params, fit.log_likelihood))]
    if status == Status.CONVERGED:
        assert all(finite), "CONVERGED beside params that are not finite"
    if not all(finite) or not representable(setting, fit.params):
        assert status != Status.CONVERGED
        return
    if status == Status.DEGENERATE and is_at_rounding(fit.params.components):
        return
    try:
        expected = scorer.log_likelihood(family.density, fit.params, x, w)
    except np.linalg.LinAlgError:  # a covariance that is singular to rounding
        assert status == Status.DEGENERATE
        return
    got, dtype = float(fit.log_likelihood), np.asarray(fit.log_likelihood).dtype.name
    allowed = RELATIVE[dtype] * max(1.0, abs(expected))
    if not abs(got - expected) <= allowed:
        allowed += 4 * sensitivity(family.density, fit.params, x, w)
    message = f"{Status(status).name}: log-likelihood {got!r}, by the scorer {expected!r}"
    assert abs(got - expected) <= allowed, message


def representable(setting, params):
    """Whether the dtype holds all params: none at its largest number, no variance or rate that has
    underflowed."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params.components):
        info, size = np.finfo(leaf.dtype), np.abs(np.asarray(leaf))
        is_matrix = path[-1].name == "scale" or setting.family in ("full", "tied")
        if is_matrix and path[-1].name in ("covariance", "scale"):
            size = np.diagonal(size, axis1=-2, axis2=-1)
        if (size >= info.max).any() or ((size > 0) & (size < info.tiny)).any():
            return False
        if path[-1].name in ("covariance", "scale") and (size == 0).any():
            return False
    return True


def is_nearly_singular(components):
    """Whether features of a component are so correlated that distances lose most digits."""
    matrix = np.asarray(getattr(components, "scale", getattr(components, "covariance", 0.0)))
    mean = getattr(components, "mean", None)
    if mean is None or matrix.shape[-2:] != (mean.shape[-1],) * 2 or not np.isfinite(matrix).all():
        return False
    root = np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1).astype(float))
    correlation = matrix / root[..., None] / root[..., None, :]
    return np.linalg.eigvalsh(correlation).min() < 1e3 * np.finfo(mean.dtype).eps


def is_at_rounding(components):
    """Whether a component is as narrow as the rounding of its mean, so that its params do not
    determine its density."""
    mean = getattr(components, "mean", None)
    matrix = getattr(components, "scale", getattr(components, "covariance", None))
    if mean is None:
        return False
    mean, matrix = np.asarray(mean), np.asarray(matrix)
    d = mean.shape[1]
    if matrix.shape[-2:] == (d, d):
        variances = np.diagonal(matrix, axis1=-2, axis2=-1)
    else:
        variances = matrix.reshape(-1, 1) if matrix.ndim == 1 else matrix
    return bool((np.sqrt(variances) < 64 * np.finfo(mean.dtype).eps * np.abs(mean)).any())


def sensitivity(density, params, x, w):
    """The change of the scorer's value when params are moved by a unit in the last place: params
    of narrow components do not determine it better. ∞ where a matrix becomes indefinite."""
    rng, params = np.random.default_rng(0), jax.tree.map(np.asarray, params)
    at, changes = scorer.log_likelihood(density, params, x, w), []

    def moved(leaf):
        leaf = np.asarray(leaf)
        step = np.finfo(leaf.dtype).eps * rng.choice([-1, 1], leaf.shape)
        return leaf.astype(np.float64) * (1 + step)

    for _ in range(6):
        try:
            changed = scorer.log_likelihood(density, jax.tree.map(moved, params), x, w)
        except np.linalg.LinAlgError:
            return np.inf
        changes.append(abs(changed - at))
    return max(changes)


# Traced calls


@functools.lru_cache(maxsize=8)
def program(setting):
    """The compiled fit (x, weights, seed, init, tol, max_iter) -> Result, or its gradient by x."""
    family = fuzz.FAMILIES[setting.family](setting.d)
    model = jaxem.Mixture(family.bank, setting.k)

    def fit(x, weights, seed, start, tol, max_iter):
        options = {"method": fuzz.METHODS[setting.method], "criterion": setting.criterion}
        options["init"] = start if setting.init in ("labels", "responsibilities") else setting.init
        options |= {"tol": tol, "max_iter": max_iter, "weights": weights}
        return jaxem.fit(model, x, key=jax.random.key(seed), **options)

    def value(*arguments):
        result = fit(*arguments)
        if setting.mode == "value":
            return result.log_likelihood, result
        return sum(leaf.sum() for leaf in jax.tree.leaves(result.params)), result

    if setting.mode == "jit":
        return jax.jit(fit)
    if setting.mode == "vmap":
        return jax.jit(jax.vmap(fit))
    return jax.jit(jax.grad(value, has_aux=True))


def traced_arguments(setting, family, seed):
    call = fuzz.random_call(setting, family, seed, form_free=False)
    a, dtype = call.arguments, np.dtype(setting.dtype)
    start = a.get("init")
    if isinstance(start, jaxem.Responsibilities):
        start = jaxem.Responsibilities(start.values.astype(dtype))
    start = None if isinstance(start, str) else start
    with np.errstate(over="ignore"):
        weights = None if a["weights"] is None else np.asarray(a["weights"]).astype(dtype)
    tol = dtype.type(1e-6 if a["tol"] is None else a["tol"])
    return call, (a["data"], weights, np.uint32(a["key"]), start, tol, np.int32(a["max_iter"]))


def checked_lane(setting, family, call, result, x, w):
    """The name of the status of one traced fit."""
    status = int(result.status)
    w = np.ones(len(x)) if w is None else w
    if not are_valid(setting, family, call, setting.dtype):
        empty = not np.isnan(w).any() and (w >= 0).all() and not (w > 0).any()
        expected = Status.EMPTY if empty else Status.BAD_INPUT
        assert status == expected, f"{Status(status).name} for {call.fault}"
    else:
        check(setting, family, result, np.asarray(x), w)
    return Status(status).name


def jitted(setting, seed):
    family = fuzz.FAMILIES[setting.family](setting.d)
    call, arguments = traced_arguments(setting, family, seed)
    result = jax.device_get(program(setting)(*arguments))
    return checked_lane(setting, family, call, result, *arguments[:2])


def mapped(setting, seed):
    """Three fits at once; a lane that is changed leaves the bits of the others alone."""
    family = fuzz.FAMILIES[setting.family](setting.d)
    seeds = [4 * seed + i for i in range(LANES + 1)]
    calls, lanes = zip(*(traced_arguments(setting, family, s) for s in seeds), strict=True)

    def fits(chosen):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(lanes[i] for i in chosen))
        return jax.device_get(program(setting)(*stacked))

    results, names = fits(range(LANES)), []
    for i in range(LANES):
        result = jax.tree.map(lambda leaf: leaf[i], results)  # noqa: B023
        names.append(checked_lane(setting, family, calls[i], result, *lanes[i][:2]))
    others = fits([0, LANES, 2])
    for i in (0, 2):
        one, other = (jax.tree.map(lambda leaf: leaf[i], r.params) for r in (results, others))  # noqa: B023
        assert equal(one, other), f"lane {i} depends on lane 1"
    return names[seed % LANES]


def differentiated(setting, seed):
    """The gradient is finite wherever it is said to be sound; that of the log-likelihood is then
    the one at fixed params."""
    family = fuzz.FAMILIES[setting.family](setting.d)
    call, arguments = traced_arguments(setting, family, seed)
    x, w = arguments[:2]
    gradient, result = jax.device_get(program(setting)(*arguments))
    name = checked_lane(setting, family, call, result, x, w)
    if not result.gradient_ok or not are_valid(setting, family, call, setting.dtype):
        return name
    assert result.status == Status.CONVERGED
    assert np.isfinite(gradient).all(), "a gradient that is not finite, and gradient_ok"
    smooth = family.kind in ("real", "positive") and setting.dtype == "float64"
    if setting.mode == "value" and smooth and arguments[4] <= 1e-6:
        w = np.ones(len(x)) if w is None else w
        spread = np.maximum(x.std(0), 1e-6 * abs(x).max(0))
        step = 1e-5 * spread * np.random.default_rng(seed).normal(size=x.shape)
        step = np.clip(step, -1e-3 * abs(x), 1e-3 * abs(x)) if family.kind == "positive" else step
        up, down = (
            scorer.log_likelihood(family.density, result.params, x + s, w) for s in (step, -step)
        )
        slope, expected = (gradient * step).sum(), (up - down) / 2
        size = np.sqrt(((gradient * step) ** 2).sum()) + 1e-12 * abs(up)
        assert abs(slope - expected) <= 0.05 * size, f"gradient {slope}, by the scorer {expected}"
    return name


# The tests

NORMAL = fuzz.Setting("diagonal")
SETTINGS = [
    NORMAL,
    fuzz.Setting("full", "float32"),
    fuzz.Setting("tied"),
    fuzz.Setting("spherical", "float32", weighted=False),
    fuzz.Setting("student"),
    fuzz.Setting("gamma", "float32"),
    fuzz.Setting("exponential"),
    fuzz.Setting("poisson", "float32"),
    fuzz.Setting("bernoulli", weighted=False),
    fuzz.Setting("categorical"),
    fuzz.Setting("multinomial", "float32"),
    fuzz.Setting("product", d=3),
    fuzz.Setting("full", n=3, method="SQUAREM"),
    fuzz.Setting("diagonal", restarts=3, init="random"),
    fuzz.Setting("full", mode="jit"),
    fuzz.Setting("poisson", mode="vmap"),
    fuzz.Setting("gamma", mode="jit"),
    fuzz.Setting("diagonal", mode="value"),
    fuzz.Setting("diagonal", mode="params"),
]
CALLS = 40


def name_of(setting):
    defaults = fuzz.Setting._field_defaults
    return "-".join(str(v) for k, v in setting._asdict().items() if v != defaults.get(k))


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_random_calls(setting):
    calls = CALLS if setting.mode != "vmap" else CALLS // LANES
    failures, ends = survey([setting], calls)
    assert not failures, report(failures)
    assert len(ends) > 1  # the calls differ


@pytest.mark.parametrize(
    "number, seed",
    [
        (280, 8),  # multinomial counts of 1e6 in float32: the objective fell
        (6, 12),  # incremental Poisson in float32: the log-likelihood lost digits
        (10, 12),  # Student's t, a constant column: the objective fell
        (113, 39),  # a component on one value: its mean was not that value
        (132, 33),  # gamma data of 1e-15, differentiated: a gradient that is not finite
        (194, 32),  # multinomial, a probability of 6e-9: a log-likelihood of −∞
        (379, 42),  # Poisson, a count of 1e9: a ratio that XLA computed twice
        (188, 45),  # Bernoulli at 0 · log 0, large weights: a gradient that is not finite
        (49, 10),  # gamma, an outlier 1e42 times the other values: NaN
        (78, 0),  # incremental EM of few units
    ],
)
def test_calls_that_failed(number, seed):
    assert run(fuzz.random_setting(number), seed) != "NONFINITE"


@pytest.mark.slow
def test_many_random_calls():
    """400 programs, 20,000 calls."""
    failures, ends = survey(map(fuzz.random_setting, range(400)), 50, progress=True)
    print(dict(ends))
    assert not failures, report(failures)


def survey(settings, calls, progress=False, first=0):
    """(failures as (setting, seed, text), how often every end was seen)."""
    failures, ends = [], collections.Counter()
    for i, setting in enumerate(settings):
        begin = time.perf_counter()
        for seed in range(first, first + calls):
            if progress:
                faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
            try:
                ends[run(setting, seed)] += 1
            except Exception as error:
                own = isinstance(error, AssertionError)
                text = str(error) if own else "".join(traceback.format_exception(error)[-4:])
                failures.append((setting, seed, text))
        if progress:
            faulthandler.cancel_dump_traceback_later()
            seconds = time.perf_counter() - begin
            print(i, name_of(setting), f"{seconds:.1f} s, {len(failures)} failures", flush=True)
    return failures, ends


def report(failures):
    shown = [f"run({setting}, {seed}): {text[:600]}" for setting, seed, text in failures[:20]]
    return "\n".join([f"{len(failures)} calls failed:", *shown])
