"""`fit`: check, start, solve, report. A pure JAX function wherever its inputs are traced."""

import contextlib
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import data as checks
from jaxem import loop
from jaxem.check import check_init, check_start, check_step
from jaxem.init import NAMED, Start
from jaxem.methods.em import EM
from jaxem.model import Bank, adopt
from jaxem.pytree import is_traced, merge, split
from jaxem.result import Fit, Result, report
from jaxem.status import Status

CRITERIA = ("aitken", "change")
OPTIONS = ("key", "init", "restarts", "weights", "method", "tol", "max_iter", "criterion")
FOLDED = 4096
CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}
SMALL = 4096
"""Units × features² × components × restarts below which a step takes under 0.1 ms however built."""


def fit(
    model: Any,
    data: Any,
    *,
    key: Any = None,
    init: Any = None,
    restarts: int = 1,
    weights: Any = None,
    method: EM = EM(),  # noqa: B008 - frozen and stateless
    tol: float | None = None,
    max_iter: int = 2000,
    criterion: str = "aitken",
    **unknown,
) -> Result:
    """Fits a model by EM: params = argmax Σ_i weights_i · log p(x_i | params) + log p(params).

    Args:
      model: a `Mixture`, or any object with the five functions of `Model`.
      data: an array (n, d), or a tree of arrays with one leading unit axis, such as `Labelled`.
      key: a JAX key or an int; needed unless `init` is a start that is not random.
      init: None (the model's own start, for mixtures k-means++), "kmeans++", "random_rows",
        "random", `Responsibilities(r)`, `Labels(z)`, or params to start from. With `restarts` > 1
        given params carry a leading axis of that size.
      restarts: how many independent starts to climb from; the best sound one is returned. Start i
        depends on the key and i alone.
      weights: (n,), one per unit; 0 = absent, 2 = seen twice. None: all 1.
      method: `EM()`.
      tol: per unit of weight, in nats. With "aitken" the estimated gain still to come is below it.
        None: 1e-6. Raised to the rounding of the objective where that is larger, with a warning if
        it was given. 0: exactly max_iter iterations.
      max_iter: the most applications of the EM map; 0 returns the start, evaluated.
      criterion: "aitken", or "change" (the last gain is below tol: scikit-learn's rule).

    Returns:
      A `Result`. `result.status` says how the fit ended; nothing raises from inside a compiled fit.

    Raises:
      ValueError, TypeError: data, weights or options that cannot be used. Under `jit`, `vmap` and
      `grad` only shapes and dtypes can raise; bad values become the `Status` of that fit.
    """
    checks.refuse_unknown(unknown, OPTIONS)
    _check_model(model)
    model = adopt(model)
    x, n = checks.as_data(data)
    model.check(x)
    k = getattr(model, "k", 1)
    if n < k:
        raise ValueError(f"data have {n} units and the model {k} components: use k <= {n}")
    dtype = checks.float_dtype(x)
    weights = checks.as_weights(weights, n, dtype)
    restarts = checks.count(restarts, "restarts", 1)
    criterion = checks.one_of(criterion, "criterion", CRITERIA)
    if not isinstance(method, EM):
        raise TypeError(f"method must be jaxem.EM(), got {method!r}")
    limit = max_iter if is_traced(max_iter) else checks.count(max_iter, "max_iter", 0)
    wanted = 1e-6 if tol is None else checks.tolerance(tol)

    if isinstance(init, str):
        init = NAMED[checks.one_of(init, "init", NAMED)]
    if (init is None or (isinstance(init, Start) and init.random)) and key is None:
        raise ValueError("the start is random: pass key=jax.random.key(0), or an int")
    key = None if key is None else checks.as_key(key)
    if isinstance(init, Start):
        init = check_start(init, n, k)
    elif init is not None:
        init = check_init(model, init, x, restarts, dtype)

    numeric, structure = split((model, method, init))
    width = sum(leaf.size for leaf in jax.tree.leaves(x)) // n
    best, every = _run(
        numeric, x, weights, key, wanted, limit,
        structure=structure, restarts=restarts, criterion=criterion,
        clean=weights is None and checks.is_clean(model, x),
        work=n * width**2 * k * restarts,
    )  # fmt: skip
    shape = tuple(jax.tree.leaves(x)[0].shape)
    every = jax.tree.map(_alone, best) if every is None else every
    result = Result.of(model, best, every, shape)
    if is_traced(best, every):
        return result
    return report(result, model, x, weights, tol)


@contextlib.contextmanager
def collector_paused():
    """Python's cyclic garbage collector off while a fit is traced and compiled, then as it was: one
    full collection walks over all of JAX and takes as long as compiling a small fit."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(*args, work: int, **static):
    """`_solve`, compiled with as much effort as it is worth.

    On a CPU the default fusion emitters double the compile time and do not run faster here, and a
    step below a tenth of a millisecond is not worth optimising (measured with jaxlib 0.10.2). The
    options can only be set outside other transformations, and other versions may lack them.
    """
    if not is_traced(args) and jax.default_backend() == "cpu":
        try:
            with collector_paused():
                return (_solve_small if work <= SMALL else _solve_on_cpu)(*args, **static)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            if "compile" not in str(error):
                raise
    return _solve(*args, **static)


def _solve_everywhere(
    numeric, x, weights, key, tol, max_iter, *, structure, restarts, criterion, clean
):
    """The best `Fit`, and every restart's with a leading axis, None where there is one."""
    dtype = checks.float_dtype(x)
    model, method, init = merge([_in_dtype(leaf, dtype) for leaf in numeric], structure)
    if clean:
        status, weights = Status.RUNNING, _ones(jax.tree.leaves(x)[0].shape[0], dtype)
    else:
        x, weights, status = sanitize(model, x, weights)
    view = model.view(x, weights)
    total = weights.sum()

    def evaluate(params):
        return method.evaluate(view.model, params, view.data, weights)

    def begin(key, params):
        if params is not None:
            return view.inward(params)
        if init is None:
            return view.model.init(key, view.data, weights)
        return init.params(view.model, key, view.data, weights)

    def one(key, params):
        first = jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), begin(key, params))
        state = loop.start(first, weights.dtype, status)
        limits = {"tol": tol * total, "max_iter": max_iter, "criterion": criterion}
        try:
            state = loop.run(state, evaluate, **limits)
        except TypeError:
            check_step(view.model, first, evaluate)
            raise
        return finish(model, view, state, total)

    given = None if init is None or isinstance(init, Start) else init
    keys = None if given is not None else _keys(key, restarts)
    if restarts == 1:  # no vmap: half the time to trace and compile
        return one(*jax.tree.map(lambda a: a[0], (keys, given))), None
    every = jax.vmap(one)(keys, given)
    return jax.tree.map(lambda a: a[rank(every)], every), every


_STATIC = ("structure", "restarts", "criterion", "clean")
_solve = jax.jit(_solve_everywhere, static_argnames=_STATIC)
_solve_on_cpu = jax.jit(_solve_everywhere, static_argnames=_STATIC, compiler_options=CPU_OPTIONS)
_solve_small = jax.jit(
    _solve_everywhere,
    static_argnames=_STATIC,
    compiler_options=CPU_OPTIONS
    | {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1},
)


def sanitize(model, x, weights):
    """Data and weights in which every unit is present and valid or has weight 0, and a status.

    A unit that is absent or outside the model's support becomes a copy of the first that is not, so
    that nothing it holds, NaN included, can reach a sum.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    valid = jnp.ones(n, bool)
    for mask in jax.tree.leaves(model.valid(x)):
        valid &= jnp.all(mask.reshape(n, -1), axis=1)
    if weights is None:
        weights = jnp.ones(n, checks.float_dtype(x))
    present = weights > 0
    wrong = jnp.any((present & ~valid) | ~((weights >= 0) & jnp.isfinite(weights)))
    status = jnp.where(wrong, Status.BAD_INPUT, Status.RUNNING)
    status = jnp.where(jnp.any(present) | wrong, status, Status.EMPTY)

    use = present & valid & jnp.isfinite(weights)
    some = jnp.any(use)
    first = jnp.argmax(use)

    def clean(leaf):
        stand_in = jnp.where(some, leaf[first], jnp.ones((), leaf.dtype))
        return jnp.where(use.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf, stand_in)

    return jax.tree.map(clean, x), jnp.where(use | ~some, jnp.where(some, weights, 1), 0), status


def finish(model, view, state, total) -> Fit:
    """The state of a finished loop in the units of the data."""
    inner, objective, n_iter = loop.settled(state)
    params = view.outward(inner)
    # A step refused because it collapsed is a collapse, although the params kept are sound; and so
    # is a variance that vanishes in the units of the data.
    last = view.inward(view.outward(state.params))
    degenerate = jnp.any(jnp.asarray(view.model.degenerate(last)))
    degenerate &= jnp.isfinite(loop.blemish(last))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.blemish(params)), status, Status.NONFINITE)
    status = jnp.where(state.status < Status.DEGENERATE, status, state.status)
    log_likelihood = objective - view.model.log_prior(inner) - total * view.log_volume
    log_likelihood = log_likelihood.astype(objective.dtype)
    return Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(log_likelihood + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
    )


def _ones(n, dtype):
    """Weights of 1. XLA folds constants: welcome for small n, seconds of compile time for large."""
    ones = jnp.ones(n, dtype)
    return ones if n <= FOLDED else jax.lax.optimization_barrier(ones)


def _in_dtype(leaf, dtype):
    """A hyperparameter in the precision of the data."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def _alone(leaf):
    """A leaf with a leading axis of one, on the host where it is known: that compiles nothing."""
    return leaf[None] if is_traced(leaf) else np.asarray(leaf)[None]


def _clip(leaf):
    """The nearest finite value, for params that overflow in the units of the data."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    largest = jnp.finfo(leaf.dtype).max
    return jnp.clip(leaf, -largest, largest)


def rank(every: Fit):
    """The index of the best restart: sound ones first, then by objective; NaN never wins."""
    tiers = jnp.asarray([5, 0, 0, 1, 3, 2, 4, 4])
    objective = jnp.where(jnp.isnan(every.objective), -jnp.inf, every.objective)
    tier = tiers[every.status]
    best = tier == tier.min()
    top = jnp.where(best, objective, -jnp.inf).max()
    return jnp.argmax(best & (objective >= top))


def _keys(key, restarts):
    """One key a restart, each from its own number alone, so more restarts keep the first ones."""
    if key is None:
        key = np.uint32(0)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key) if key.ndim else jax.random.key(key)
    if restarts == 1:
        return key[None]
    others = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, restarts))
    return jnp.concatenate([key[None], others])


def _check_model(model):
    if isinstance(model, type):
        raise TypeError(f"model must be an instance, got the class: write {model.__name__}(...)")
    if isinstance(model, Bank):
        name = type(model).__name__
        raise TypeError(
            f"{name} is a bank of components, not a model: use jaxem.Mixture({name}(...), k=...)"
        )
    if isinstance(model, (jax.Array, np.ndarray, list)):
        raise TypeError("model is an array: the model comes first, fit(model, data)")
    missing = [f for f in ("init", "statistics", "maximize") if not callable(getattr(model, f, 0))]
    if not any(callable(getattr(model, f, 0)) for f in ("posterior", "log_joint")):
        missing.append("log_joint (or posterior)")
    if missing:
        raise TypeError(
            f"{type(model).__name__} is no model: it lacks {', '.join(missing)}; "
            "jaxem.Model describes what a model defines"
        )
