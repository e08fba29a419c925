"""`fit`: check, start, solve, report. A pure JAX function wherever its inputs are traced."""

import contextlib
import gc
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import data as checks
from jaxem.batch import Batch, as_blocks
from jaxem.check import check_init, check_start
from jaxem.init import NAMED, Start
from jaxem.methods.em import EM
from jaxem.model import Bank, adopt
from jaxem.pytree import float_dtype, is_traced, split
from jaxem.result import Result, report
from jaxem.solve import Spec, many, rank, single, transformable

CRITERIA = ("aitken", "change")
OPTIONS = ("key", "init", "restarts", "weights", "method", "tol", "max_iter", "criterion")
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
      data: an array (n, d), or a tree of arrays with one leading unit axis, such as `Labelled`:
        one fit. `Batch(array (b, n, d))` or `Batch([x0, x1, ...])`: b independent fits, every field
        of the result with a leading axis b, weights and given params too.
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
    restarts = checks.count(restarts, "restarts", 1)
    criterion = checks.one_of(criterion, "criterion", CRITERIA)
    if not isinstance(method, EM):
        raise TypeError(f"method must be jaxem.EM(), got {method!r}")
    limit = max_iter if is_traced(max_iter) else checks.count(max_iter, "max_iter", 0)
    limits = (1e-6 if tol is None else checks.tolerance(tol), limit)
    if isinstance(init, str):
        init = NAMED[checks.one_of(init, "init", NAMED)]
    if (init is None or (isinstance(init, Start) and init.random)) and key is None:
        raise ValueError("the start is random: pass key=jax.random.key(0), or an int")
    key = None if key is None else checks.as_key(key)
    options = (key, init, restarts, method, limits, criterion)
    if isinstance(data, Batch):
        result, x = _fit_batch(model, data, weights, *options), None
    else:
        x, n = checks.as_data(data)
        weights = checks.as_weights(weights, n, float_dtype(x))
        result = _fit_one(model, x, n, weights, *options)
    return result if is_traced(result.status) else report(result, model, x, weights, tol)


def _fit_one(model, x, n, weights, key, init, restarts, method, limits, criterion):
    """The result of one data set."""
    model.check(x)
    k = _check_size(model, n)
    if isinstance(init, Start):
        init = check_start(init, n, k)
    elif init is not None:
        init = check_init(model, init, x, () if restarts == 1 else (restarts,), float_dtype(x))
        init = jax.tree.map(lambda a: a[None], init) if restarts == 1 else init
    given = init is not None and not isinstance(init, Start)
    numeric, structure = split((model, method, None if given else init))
    spec = Spec(structure, criterion, weights is None and checks.is_clean(model, x), given)
    width = sum(leaf.size for leaf in jax.tree.leaves(x)) // n
    best, every = _run(
        numeric, x, weights, init if given else key, *limits,
        spec=spec, restarts=restarts, batched=False, work=n * width**2 * k * restarts,
    )  # fmt: skip
    every = jax.tree.map(_alone, best) if every is None else every
    return Result.of(model, best, every, tuple(jax.tree.leaves(x)[0].shape))


def _fit_batch(model, batch, weights, key, init, restarts, method, limits, criterion):
    """The result of many data sets, with a leading axis, in the order given."""
    blocks = as_blocks(batch, weights)
    sets, dtype = sum(len(block.index) for block in blocks), blocks[0].x.dtype
    like = jax.ShapeDtypeStruct(blocks[0].x.shape[1:], dtype)
    model.check(like)
    for block in blocks:
        _check_size(model, block.shortest)
    if isinstance(init, Start) and not init.random:
        raise TypeError("a Batch starts from a random rule or from params, with a leading axis")
    given = init is not None and not isinstance(init, Start)
    if given:
        init = check_init(model, init, like, (sets,) + (restarts,) * (restarts > 1), dtype)
        init = jax.tree.map(lambda a: a[:, None], init) if restarts == 1 else init
    numeric, structure = split((model, method, None if given else init))
    spec = Spec(structure, criterion, False, given)
    fits = []
    for block in blocks:
        here = (key, block.index)
        if given:
            here = jax.tree.map(lambda a: a[block.index], init)  # noqa: B023
        fits.append(
            _run(numeric, block.x, block.weights, here, *limits, spec=spec, restarts=restarts,
                 batched=True, work=0)
        )  # fmt: skip
    if len(fits) > 1:
        order = np.argsort(np.concatenate([block.index for block in blocks]))
        fits = [jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *fits)]
    shape = (sets, *blocks[-1].x.shape[1:])
    return Result.of(model, *fits[0], shape)


def _check_size(model, n: int) -> int:
    k = getattr(model, "k", 1)
    if n < k:
        raise ValueError(f"data have {n} units and the model {k} components: use k <= {n}")
    return k


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

    On a CPU the default fusion emitters double the compile time; a single fit does not run faster
    for them (a batch does, by a tenth), and a step below a tenth of a millisecond is not worth
    optimising at all (measured with jaxlib 0.10.2). The options can only be set outside other
    transformations, and other versions may lack them.
    """
    traced = is_traced(args)
    if not (traced or static["batched"]) and jax.default_backend() == "cpu":
        try:
            with collector_paused():
                solver = _solve_small if work <= SMALL else _solve_on_cpu
                return solver(*args, transformed=False, **static)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            if "compile" not in str(error):
                raise
            traced = True
    return _solve_anywhere(*args, transformed=traced, **static)


def _solve(numeric, x, weights, start, tol, max_iter, *, spec, restarts, batched, transformed):
    """The best `Fit` and every restart's, None where a single one needs no axis.

    Every restart's have a leading axis of restarts; with `batched` an axis of data sets precedes.
    """
    if not (batched or transformed) and restarts == 1:
        first = jax.tree.map(lambda a: a[0], start) if spec.given else _typed(start)
        return single(spec, numeric, x, weights, first, tol, max_iter), None
    data = (x, weights)
    if batched:
        sets = jax.tree.leaves(x)[0].shape[0]
        starts = start
        if not spec.given:
            key, index = start
            keys = jax.vmap(jax.random.fold_in, (None, 0))(_typed(key), index)
            starts = jax.vmap(lambda key: _starts(key, restarts, False))(keys)
    else:
        sets = 1
        starts, data = jax.tree.map(lambda a: a[None], (_starts(start, restarts, spec.given), data))
    numeric = [jnp.broadcast_to(leaf, (sets, *jnp.shape(leaf))) for leaf in numeric]
    limits = tuple(jnp.broadcast_to(v, (sets, restarts)) for v in (tol, max_iter))
    climb = transformable(spec) if transformed else partial(many, spec)
    every = climb((numeric, *data), starts, limits)
    best = jax.vmap(lambda fits: jax.tree.map(lambda a: a[rank(fits)], fits))(every)
    return (best, every) if batched else jax.tree.map(lambda a: a[0], (best, every))


_STATIC = ("spec", "restarts", "batched", "transformed")
_solve_anywhere = jax.jit(_solve, static_argnames=_STATIC)
_solve_on_cpu = jax.jit(_solve, static_argnames=_STATIC, compiler_options=CPU_OPTIONS)
_solve_small = jax.jit(
    _solve,
    static_argnames=_STATIC,
    compiler_options=CPU_OPTIONS
    | {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1},
)


def _typed(key):
    """A typed key from an int's or a legacy key's words; key 0 where nothing is random."""
    key = np.uint32(0) if key is None else key
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key) if key.ndim else jax.random.key(key)


def _starts(start, restarts, given):
    """Given params as they are, or a key for every restart, each from its own number alone."""
    if given:
        return start
    key = _typed(start)
    if restarts == 1:
        return key[None]
    others = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, restarts))
    return jnp.concatenate([key[None], others])


def _alone(leaf):
    """A leaf with a leading axis of one, on the host where it is known: that compiles nothing."""
    return leaf[None] if is_traced(leaf) else np.asarray(leaf)[None]


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
