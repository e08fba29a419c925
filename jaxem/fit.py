"""`fit`: checks, starts, climbs and a report. A pure JAX function where its inputs are traced."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data import arrays as checks
from jaxem.data.batch import Batch, as_blocks, check_data_sets
from jaxem.data.check_starts import check_init, check_start, without_outliers
from jaxem.data.data import as_units
from jaxem.data.grouped import unit_shape
from jaxem.data.memory import require_room
from jaxem.data.meshes import automatic, explicit_mesh, moved
from jaxem.data.moments import Moments
from jaxem.data.options import (
    as_key,
    integer,
    iteration_limit,
    one_of,
    refuse_unknown,
    tolerance,
)
from jaxem.data.precision import (
    float64,
    needs_float64,
    warn_of_lost_digits,
    warn_of_lost_digits_in_batch,
)
from jaxem.gradient.rules import GRADIENTS
from jaxem.methods.em import EM, collects
from jaxem.methods.suited import suited
from jaxem.models.mixture import FiniteMixture, Mixture
from jaxem.models.mixture_domain import MixtureDomain, require_units
from jaxem.models.mixture_starts import starts_among_units, warn_if_identical
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, in_jit, is_on_host, is_traced, split
from jaxem.protocol.capabilities import Bound, FiniteLatents, defines, has
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.starts import NAMED, Start
from jaxem.protocol.wrapper import Wrapper
from jaxem.results.columns import column_names
from jaxem.results.report import report
from jaxem.results.result import Result
from jaxem.results.trace import trace_of
from jaxem.solver.informed import informed
from jaxem.solver.lanes import Lanes
from jaxem.solver.problem import Plan
from jaxem.solver.recording import recording
from jaxem.solver.restarts import Restarts
from jaxem.solver.stopping import CRITERIA, PATIENCE, Aitken
from jaxem.wrappers.adopt import adopt

OPTIONS = (
    *("key", "init", "restarts", "weights", "method"),
    *("tol", "max_iter", "criterion", "lanes", "gradient", "trace"),
)


def fit(
    model: Any,
    data: Any,
    *,
    key: Any = None,
    init: Any = None,
    restarts: int | Restarts = 1,
    weights: Any = None,
    method: Any = EM(),  # noqa: B008 - frozen and stateless
    tol: float | None = None,
    max_iter: int = 2000,
    criterion: str = "aitken",
    lanes: Lanes | int = Lanes(),  # noqa: B008 - frozen
    gradient: str = "implicit",
    trace: bool = False,
    **unknown,
) -> Result:
    """Fits a model by EM: params = argmax Σ_i weights_i · log p(x_i | params) + log p(params).

    Sources: Dempster, Laird & Rubin 1977; Neal & Hinton 1998.

    Args:
      model: a `Mixture`, or any object with the five functions of `Model`.
      data: an array (n, d), or a tree of arrays with one leading unit axis, such as `Data` or
        a tuple (features, y): one fit. In a tree integers stay integers. `Batch(array (b, n, d))`
        or `Batch([x0, x1, ...])`: b independent fits, every field of the result with a leading
        axis b, weights and given params too. `Moments(covariance, n)`: n rows with these moments.
      key: a JAX key or an int; needed unless `init` is a start that is not random.
      init: None (the model's own start: k-means++, for regressions "elemental"), "kmeans++",
        "elemental", "random_rows", "random", `Responsibilities(r)`, `Labels(z)`, or params to start
        from. With `restarts` > 1 given params carry a leading axis of that size. For chains: None,
        params, or "left_to_right" or "cyclic", whose transitions of probability 0 stay 0.
      restarts: the number of independent starts, or a `Restarts` plan that screens them; the best
        fit that did not fail is returned. Start i depends on the key and i alone.
      weights: (n,), one per unit; 0 = absent, 2 = present twice. None: all 1.
      method: `EM(e_step=..., m_step=..., accelerator=...)`, or `OnlineEM(...)`.
      tol: in nats per unit of weight. With "aitken", a fit ends when its estimate of the remaining
        gain is below tol. None: 1e-6. tol is raised to the rounding error of the objective where
        that is larger, with a warning if tol was given. 0: exactly max_iter iterations.
      max_iter: the most applications of the EM map; 0 returns the start, evaluated.
      criterion: "aitken", or "change" (the last gain is below tol: scikit-learn's rule).
      lanes: how many restarts or data sets run at once: `Lanes`, or an int, its width.
      gradient: how `jax.grad` and the like differentiate the fit. "implicit": the derivative of the
        optimum, from one linear solve; NaN where `result.gradient_ok` is False. "unrolled": the
        derivative of exactly max_iter steps, an int, also by the start; memory grows with
        max_iter. "one_step": of the last step alone, cheap and biased. "none": raises TypeError.
      trace: whether every step is recorded, in `result.trace`. The host then waits for each step,
        so that a fit takes longer. For one data set, outside `jit`, `vmap` and `grad`.

    Returns:
      A `Result`. `result.status` says how the fit ended; nothing raises from inside a compiled fit.
      Its gradient is with respect to data, weights and hyperparameters; that of the start is 0.
      The best restart is differentiated; the gradient of `result.restarts` is NaN where there are
      several.

    Raises:
      ValueError, TypeError: data, weights or options that cannot be used. Under `jit`, `vmap` and
      `grad` only shapes and dtypes can raise; bad values become the `Status` of that fit.
    """
    refuse_unknown(unknown, OPTIONS)
    require_model(model)
    is_batch = isinstance(data, Batch)
    raw = data.data if is_batch else data
    options = (key, init, restarts, weights, method, tol, max_iter, criterion, lanes, gradient)
    options = dict(zip(OPTIONS, (*options, trace), strict=True))
    if isinstance(data, Moments):
        return _fit_moments(model, data, options)
    if needs_float64(raw, is_batch) and not in_jit():
        with float64():
            return fit(model, data, **options).on_host()
    platform = tuning.platform_of(raw)
    if platform != tuning.platform():
        with tuning.on_platform(platform):
            return fit(model, data, **options)
    mesh = explicit_mesh((model, raw, weights, init))
    if mesh is not None:
        auto = automatic(mesh)
        model, on_auto, options = moved((model, raw, options), mesh, auto)
        with jax.set_mesh(auto):
            result = fit(model, Batch(on_auto) if is_batch else on_auto, **options)
        return moved(result, auto, mesh).about(raw, weights, column_names(data))
    model = adopt(model)
    if not isinstance(restarts, Restarts):
        restarts = integer(restarts, "restarts", 1)
    stopping = CRITERIA[one_of(criterion, "criterion", CRITERIA)]
    gradient = GRADIENTS[one_of(gradient, "gradient", GRADIENTS)]
    if isinstance(method, type) or not callable(getattr(method, "evaluate", None)):
        raise TypeError(f"method must be jaxem.EM() or jaxem.OnlineEM(), got {method!r}")
    gradient.check(method, max_iter, restarts)
    if trace and (is_batch or gradient.unrolls):
        got = "a Batch, of which x[i] alone has one" if is_batch else 'gradient="unrolled"'
        raise TypeError(f"trace=True records the climb of one data set, got {got}")
    limits = (1e-6 if tol is None else tolerance(tol), iteration_limit(max_iter))
    if isinstance(init, str):
        init = NAMED[one_of(init, "init", NAMED)]
    if isinstance(init, Start):
        init.require(model)
    if (init is None or (isinstance(init, Start) and init.random)) and key is None:
        raise ValueError("the start is random: pass key=jax.random.key(0), or an int")
    key = None if key is None else as_key(key)
    lanes = lanes if isinstance(lanes, Lanes) else Lanes(integer(lanes, "lanes", 1))
    plan = Plan(None, stopping, False, False, lanes, restarts, platform=platform)
    call = (key, init, method, limits, plan, gradient)
    if is_batch:
        require_room(data.data, "Batch data")
        result, x = _fit_batch(model, data, weights, *call), None
    else:
        x, n, names = as_units(data)
        warn_of_lost_digits(x)
        weights = weights if names is None else names.weights(weights)
        weights = checks.as_weights(weights, n, float_dtype(x))
        with recording(trace) as recorder:
            result = _fit_one(model, x, n, weights, *call)
        model = result.model
    if is_traced(result):
        if trace:
            raise TypeError("trace=True needs the host, outside of jit, vmap and grad")
        return result
    if trace:
        result = dataclasses.replace(result, trace=trace_of(recorder, result.restarts))
    resolves_small_gains = (
        x is not None and isinstance(method, EM) and method.gains_from_steps(model, x)
    )
    names = column_names(data)
    result = report(result, model, x, weights, tol, resolves_small_gains, names)
    return result.about(data.data if is_batch else x, weights, names)


def _fit_moments(model, moments, options):
    """The result of weighted rows with these moments, on which alone the likelihood depends."""
    from jaxem.families.factors import Factors
    from jaxem.families.normal.normal import Normal

    mixture = model.wrapped if isinstance(model, Wrapper) else model
    is_mixture = isinstance(mixture, Mixture)
    is_mixture = is_mixture and mixture.k == 1 and mixture.noise is None
    if not is_mixture or not isinstance(mixture.components, (Normal, Factors)):
        is_noisy = isinstance(mixture, FiniteMixture) and mixture.noise is not None
        k = f" with k={mixture.k}" * isinstance(mixture, FiniteMixture) + " and noise" * is_noisy
        raise ValueError(
            f"data are Moments, from which Mixture(Factors(...), k=1) and Mixture(Normal(...), k=1)"
            f" alone can be fitted, got {name_of(mixture)}{k}: give rows"
        )
    if options["weights"] is not None:
        raise ValueError("weights must be None for Moments, which stand for n rows: change n")
    x, weights = moments.rows()
    result = fit(model, x, **(options | {"weights": weights}))
    if is_traced(moments.n) or is_traced(result):
        return result
    shape = (int(moments.n), *result.data_shape[1:])
    total = np.asarray(moments.n, result.total_weight.dtype)
    return dataclasses.replace(result, data_shape=shape, total_weight=total).like(result)


def _fit_one(model, x, n, weights, key, init, method, limits, plan, gradient):
    """The result of one data set."""
    require_units(model.domain, x, name_of(model))
    model.domain.check(x, name_of(model))
    if all(map(is_on_host, jax.tree.leaves(x))) and not is_traced(weights):
        model.domain.check_values(x, weights)
    _require_one_map(model, method)
    if model.informed is not None:
        model = informed(model, x, weights)
    method, plan = hastened(suited(method, model, x), plan, limits, gradient)
    gradient, plan = gradient.suited(plan, method, model, x)
    _check_size(model, n)
    many = _count(plan.restarts)
    if isinstance(init, Start):
        init = check_start(init, n, model.domain.classes)
    elif init is not None:
        init = _given(model, init, x, () if many == 1 else (many,), float_dtype(x))
        init = jax.tree.map(lambda a: a[None], init) if many == 1 else init
    clean = weights is None and checks.is_clean(model, x)
    if clean and starts_among_units(model):
        init = without_outliers(init, x)
    random = init is None or isinstance(init, Start)
    start = (key, np.arange(many)) if random else init
    numeric, plan = _planned(plan._replace(clean=clean), model, method, init)
    plan = plan._replace(entropy=is_traced((numeric, x, weights, start, limits)))
    fits = gradient.fit(plan, numeric, x, weights, start, *limits)
    shape, dtype = (n, *unit_shape(x)), float_dtype(x)
    total = _total_weight(model.domain.observations(x), weights, (n,), dtype)
    return Result.of(model, *fits[:2], shape, fits[2], total)


def _fit_batch(model, batch, weights, key, init, method, limits, plan, gradient):
    """The result of many data sets, with a leading axis, in the order given."""
    has_own_models = model.informed is not None and isinstance(model.domain, MixtureDomain)
    has_own_models = has_own_models and model.domain.noise is not None
    if model.informed is not None and not has_own_models:
        raise ValueError(
            "the components lack a prior, and those of a Batch share one: give it, such as "
            "jaxem.Normal(prior=jaxem.NormalPrior.from_data(x, k))"
        )
    blocks = as_blocks(batch, weights)
    warn_of_lost_digits_in_batch(blocks)
    sets, dtype = sum(len(block.index) for block in blocks), float_dtype(blocks[0].x)
    require_units(model.domain, blocks[0].x, name_of(model))
    shapes = check_data_sets(batch, blocks, model.domain, name_of(model))
    _require_one_map(model, method)
    method, plan = hastened(suited(method, model, shapes), plan, limits, gradient)
    gradient, plan = gradient.suited(plan, method, model, shapes)
    for block in blocks:
        position = np.argmin(block.sizes)
        subject = f"Batch data[{block.index[position]}] has"
        _check_size(model, int(block.sizes[position]), subject)
    if isinstance(init, Start) and not init.random:
        raise TypeError("a Batch starts from a random rule or from params, with a leading axis")
    given = init is not None and not isinstance(init, Start)
    if given:
        many = _count(plan.restarts)
        init = _given(model, init, shapes, (sets,) + (many,) * (many > 1), dtype)
        init = jax.tree.map(lambda a: a[:, None], init) if many == 1 else init
    numeric, plan = _planned(plan._replace(batched=True), model, method, init)
    arrays = [(block.x, block.weights) for block in blocks]
    plan = plan._replace(entropy=is_traced((numeric, arrays, key, init, limits)))
    fits, totals, models = [], [], []
    for block in blocks:
        if has_own_models:
            models.append(informed(model, block.x, block.weights, batched=True))
        start = (key, block.index)
        if given:
            start = jax.tree.map(lambda a: a[block.index], init)  # noqa: B023
        fits.append(gradient.fit(plan, numeric, block.x, block.weights, start, *limits))
        shape = jax.tree.leaves(block.x)[0].shape[:2]
        observations = model.domain.observations(block.x)
        totals.append(_total_weight(observations, block.weights, shape, dtype))
    order = np.argsort(np.concatenate([block.index for block in blocks]))
    if len(fits) > 1:
        join = jnp.concatenate if is_traced(fits) else np.concatenate
        fits = [jax.tree.map(lambda *leaves: join(leaves)[order], *fits)]
        models = [jax.tree.map(lambda *leaves: join(leaves)[order], *models)] if models else []
        totals = [(jnp if is_traced(totals) else np).concatenate(totals)[order]]
    best, every, ok = fits[0]
    shape = (jax.tree.leaves(blocks[-1].x)[0].shape[1], *unit_shape(shapes))
    sizes = np.concatenate([block.sizes for block in blocks])[order]
    sizes = None if (sizes == shape[0]).all() else sizes
    if has_own_models:
        return Result.of(models[0], best, every, shape, ok, totals[0], sizes)
    return Result.of(model, best, every, (sets, *shape), ok, totals[0], sizes, shares_model=True)


def _require_one_map(model, method):
    """TypeError where a method adds statistics at different params, and those of a gate are taken
    at the params of one step."""
    is_gated = isinstance(model.domain, MixtureDomain) and model.domain.gate is not None
    if is_gated and (not isinstance(method, EM) or collects(method.e_step)):
        rule = method.e_step if isinstance(method, EM) else method
        raise TypeError(
            f"{type(rule).__name__} adds statistics of different params, and those of a gate do "
            "not add: use method=jaxem.EM()"
        )


def hastened(method, plan, limits, gradient):
    """The method and the plan of a fit that accelerates slow climbs where that is wanted."""
    if not isinstance(method, EM):
        return method, plan
    tol = limits[0]
    is_exact = not is_traced(tol) and tol == 0
    stopping = plan.stopping
    is_plain = is_exact or not isinstance(stopping, Aitken) or gradient.unrolls
    if is_plain or method.later is None:
        return method.without_later(), plan
    return method, plan._replace(stopping=dataclasses.replace(stopping, patience=PATIENCE))


def _given(model, init, x, lead, dtype):
    """Given params, checked, with the leading axes `lead`."""
    init = check_init(model, init, x, lead, dtype)
    wraps = isinstance(model, Wrapper) and not isinstance(model, Bank)
    mixture = model.wrapped if wraps else model
    if isinstance(mixture, FiniteMixture) and not is_traced(init):
        warn_if_identical(init.components, mixture.k, len(lead))
    return init


def _planned(plan, model, method, init):
    """The arrays to trace, and the plan with the structure of model, method and start rule."""
    given = init is not None and not isinstance(init, Start)
    numeric, structure = split((model, method, None if given else init))
    return numeric, plan._replace(structure=structure, given=given)


def _total_weight(observations, weights, shape, dtype):
    """Σw over the last axis of weights (..., n), or of ones of that shape where they are None;
    times the observations in every unit, (..., n), where these are given."""
    if observations is not None:
        weights = observations if weights is None else weights * observations
    if weights is None:
        return np.full(shape[:-1], shape[-1], dtype)
    if isinstance(weights, jax.Array):
        return weights.sum(-1)
    return np.asarray(weights).sum(-1, dtype=float).astype(dtype)


def _count(restarts) -> int:
    return restarts.count if isinstance(restarts, Restarts) else restarts


def _check_size(model, n: int, subject: str = "data have") -> None:
    k = model.domain.components
    if n < model.domain.fewest:
        raise ValueError(f"{subject} {n} units and the model {k} components: use k <= {n}")


def require_model(model):
    """TypeError unless `model` is an object that defines what a model needs."""
    if isinstance(model, Wrapper) and not isinstance(model, Bank):
        return require_model(model.wrapped)
    if isinstance(model, type):
        raise TypeError(f"model must be an instance, got the class: write {model.__name__}(...)")
    if isinstance(model, Bank):
        name = type(model).__name__
        raise TypeError(
            f"{name} is a bank of components, not a model: use jaxem.Mixture({name}(...), k=...)"
        )
    if isinstance(model, (jax.Array, np.ndarray, list)):
        raise TypeError("model is an array: the model comes first, fit(model, data)")
    missing = [] if defines(model, "init") else ["init"]
    is_finite, has_posterior = has(model, FiniteLatents), defines(model, "posterior")
    defined = [name for name in ("statistics", "maximize") if defines(model, name)]
    if not is_finite and not has_posterior:
        if not defines(model, "free_energy"):
            missing.append("log_joint (or posterior)")
        elif not has(model, Bound):
            missing.append("init_q, the first q of its free_energy")
    elif defined:
        missing += [name for name in ("statistics", "maximize") if name not in defined]
    if missing:
        raise TypeError(
            f"{type(model).__name__} is no model: it lacks {', '.join(missing)}; "
            "jaxem.Model describes what a model defines"
        )
