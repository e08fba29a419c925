"""What all estimators share: checks of arguments, precision, padded data, warnings.

A program is compiled for every number of rows. So data are padded with rows of weight 0 to one of
few numbers, which the folds of a cross-validation and data sets of similar size share.
"""

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from jaxem.data.batch import padded_length
from jaxem.data.precision import float64
from jaxem.fit import fit
from jaxem.numerics import tuning
from jaxem.numerics.tree import merge, split
from jaxem.protocol.status import Status, collected_warnings, sentence

MOST_PADDED = 2**16
"""The most rows of data that are padded, and the rows of a block of predictions."""

COARSE = 256
"""Up to so many rows the padded lengths have a ratio of 1.5; beyond, of at most 1.125."""


class Rule(NamedTuple):
    """accepts(value): whether an argument can be used. words: what it must be."""

    accepts: Callable
    words: str


def integer(least: int) -> Rule:
    """An int of `least` or more."""

    def accepts(value):
        return isinstance(value, Integral) and not isinstance(value, bool) and value >= least

    return Rule(accepts, f"an int of {least} or more")


def number(least: float = 0.0, above: bool = False) -> Rule:
    """A finite number of `least` or more; above it where `above`."""

    def accepts(value):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and np.isfinite(value) and (value > least if above else value >= least)

    return Rule(accepts, f"a finite number {'above' if above else 'of at least'} {least:g}")


def one_of(*values) -> Rule:
    """One of these values."""

    def accepts(value):
        return any(type(value) is type(other) and value == other for other in values)

    return Rule(accepts, "one of " + ", ".join(map(repr, values)))


def optional(rule: Rule) -> Rule:
    """None, or what `rule` accepts."""
    return Rule(lambda value: value is None or rule.accepts(value), f"None or {rule.words}")


BOOLEAN = Rule(lambda value: isinstance(value, (bool, np.bool_)), "True or False")

VERBOSE = Rule(
    lambda value: isinstance(value, (bool, Integral)) and value >= 0, "an int of 0 or more"
)


def require(estimator, rules: dict) -> None:
    """ValueError that names the first argument of an estimator that cannot be used."""
    arguments = estimator.get_params(deep=False)
    for name, rule in rules.items():
        if not rule.accepts(arguments[name]):
            raise ValueError(
                f"{name} of {type(estimator).__name__} must be {rule.words}, got "
                f"{arguments[name]!r}"
            )


def checked_weights(sample_weight, x):
    """sample_weight (n,) in the dtype of x (n, d), None for None. ValueError where it is not one
    weight of 0 or more a row, or all are 0."""
    if sample_weight is None:
        return None
    options = {"ensure_2d": False, "dtype": x.dtype, "input_name": "sample_weight"}
    weights = check_array(sample_weight, **options)
    if weights.ndim != 1:
        raise ValueError(f"sample_weight must be 1D, got an array of shape {weights.shape}")
    if len(weights) != x.shape[0]:
        raise ValueError(
            f"sample_weight.shape == {weights.shape}, expected {(x.shape[0],)}: give one weight a "
            "row"
        )
    if (weights < 0).any():
        raise ValueError("sample_weight must not be negative: weight 0 leaves a row out")
    if not (weights > 0).any():
        raise ValueError("sample_weight must have an entry above zero, all are 0")
    return weights


def precision_of(dtype):
    """A context with x64 on for float64; the setting of JAX is as before after it."""
    return float64() if dtype == np.float64 else contextlib.nullcontext()


def padded_rows(n: int) -> int:
    """The number of rows to which n rows are padded."""
    if n <= COARSE:
        return padded_length(n)
    if n > MOST_PADDED:
        return n
    step = 2 ** (n.bit_length() - 4)
    return -(-n // step) * step


def padded(x, n: int):
    """x with copies of its first row up to n rows."""
    return (
        x
        if len(x) == n
        else np.concatenate([x, np.broadcast_to(x[:1], (n - len(x), *x.shape[1:]))])
    )


def fitted(model, x, weights, **options):
    """(the `Result` of `fit` with NumPy arrays, the texts of its warnings). x (n, d), or a tree of
    arrays with n rows; weights (n,), or None for 1. options: of `fit`."""
    leaves, tree = jax.tree.flatten(x)
    n = len(leaves[0])
    size = padded_rows(n)
    if n <= MOST_PADDED:
        weights = np.ones(n, leaves[0].dtype) if weights is None else weights
        weights = np.concatenate([weights, np.zeros(size - n, weights.dtype)])
    x = jax.tree.unflatten(tree, [padded(leaf, size) for leaf in leaves])
    return climbed(model, x, weights, leaves[0].dtype, **options)


def climbed(model, x, weights, dtype, **options):
    """`fitted` without padding; dtype: the precision."""
    with precision_of(dtype), collected_warnings() as texts:
        return fit(model, x, weights=weights, **options).on_host(), texts


@partial(jax.jit, static_argnums=(0, 4))
def _applied(function, numeric, params, x, structure):
    return function(merge(numeric, structure), params, x)


def by_rows(function, model, params, x):
    """function(model, params, x), which has a leading axis of rows, as a NumPy array. x: as in
    `fitted`."""
    numeric, structure = split(model)

    def of_block(block):
        with precision_of(jax.tree.leaves(x)[0].dtype), tuning.full_products():
            return np.asarray(_applied(function, numeric, params, block, structure))

    return in_blocks(of_block, x)


def in_blocks(function, x):
    """function(x), which has a leading axis of rows, as a NumPy array; in padded blocks of rows, so
    that memory is bounded. x: as in `fitted`."""
    leaves, tree = jax.tree.flatten(x)
    found = []
    for begin in range(0, len(leaves[0]), MOST_PADDED):
        block = [leaf[begin : begin + MOST_PADDED] for leaf in leaves]
        n = len(block[0])
        block = jax.tree.unflatten(tree, [padded(leaf, padded_rows(n)) for leaf in block])
        found.append(np.asarray(function(block))[:n])
    return np.concatenate(found)


def log_joint(model, params, x):
    """log p(x, z | params) of every row and component, (n, k), as a NumPy array."""
    return by_rows(_log_joint, model, params, x)


def _log_joint(model, params, x):
    return model.log_joint(params, x)


def warn_unless_converged(result, stacklevel: int = 3) -> None:
    """One ConvergenceWarning of scikit-learn where a fit has not converged; none for 0 steps."""
    status = int(result.status)
    if status == Status.CONVERGED or (status == Status.MAX_ITER and int(result.n_iter) == 0):
        return
    message = f"Best performing initialization did not converge: {sentence(status)}"
    warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)
