"""Refits of one data set with other weights: what bootstrap and cross-validation share."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_weights, explain_bad_weights
from jaxem.data.batch import Batch
from jaxem.data.data import as_units
from jaxem.data.options import as_key, iteration_limit, tolerance
from jaxem.data.precision import float64, is_beyond_float32
from jaxem.fit import hastened
from jaxem.gradient.rules import GRADIENTS
from jaxem.methods.em import EM
from jaxem.methods.suited import suited
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, is_traced, split
from jaxem.results.result import Result
from jaxem.solver.problem import Plan
from jaxem.solver.replicates import fits_by_weights
from jaxem.solver.stopping import CRITERIA


def refits(model, x, weights, sets, starts, *, given=True, restarts=1, tol=None, max_iter=2000):
    """The fits (b, r) of `model` to units x with each of the sets of weights: see
    `solver.replicates.fits_by_weights`. given: whether starts are params, not keys."""
    limits = 1e-6 if tol is None else tolerance(tol), iteration_limit(max_iter)
    plan = Plan(None, CRITERIA["aitken"], False, given, platform=tuning.platform())
    method, plan = hastened(suited(EM(), model, x), plan, limits, GRADIENTS["none"])
    numeric, structure = split((model, method, None))
    plan = plan._replace(structure=structure, restarts=restarts, entropy=False)
    return fits_by_weights(plan, numeric, x, weights, sets, starts, *limits)


def units_and_weights(x, weights):
    """(units, weights (n,) or None, n) of data and weights as they were given, checked."""
    x, n, names = as_units(x)
    weights = weights if names is None else names.weights(weights)
    weights = as_weights(weights, n, float_dtype(x))
    if weights is not None:
        weights = np.asarray(weights)
        explanation = explain_bad_weights(weights)
        if explanation is not None:
            raise ValueError(explanation)
    return x, weights, n


def precision_of(params):
    """The context in which the params of a fit were computed."""
    return float64() if is_beyond_float32(params) else contextlib.nullcontext()


def generator(key) -> np.random.Generator:
    """NumPy's random numbers, by a key of JAX or an int."""
    key = as_key(key)
    if isinstance(key, np.uint32):
        return np.random.default_rng(int(key))
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data).ravel().tolist())


def require_result(result, call: str) -> None:
    """TypeError unless the first argument is the result of a fit. call: how it is called."""
    if not isinstance(result, Result):
        raise TypeError(f"the result of a fit comes first, jaxem.{call}, got {result!r:.60}")


def require_one_data_set(x, name: str) -> None:
    """TypeError for a `Batch`."""
    if isinstance(x, Batch):
        raise TypeError(f"{name} takes one data set, got a Batch: call it for each of them")


def require_concrete(name, *trees) -> None:
    """TypeError under a transformation of JAX."""
    if is_traced(trees):
        raise TypeError(
            f"{name} refits a finished fit many times, which jit, vmap and grad do not have: call "
            "it outside"
        )
