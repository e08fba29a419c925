"""Which leaves of params have an axis of components."""

import contextlib
import dataclasses

import jax
import numpy as np

from jaxem.data.data import of_components
from jaxem.models.hmm.chained import Chained
from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.spaces import PositiveDefinite, Simplex
from jaxem.protocol.wrapper import Wrapper


def have_components(result, params):
    """Which leaves of params have a leading axis of components, a tree like params.

    The axis of a bank's leaf is the one that grows with the number of components; where the data of
    the fit are not at hand to ask the bank, a leaf of k entries whose own numbers have no axis.
    """
    model, k = unwrapped(result.model), result.model.domain.components
    found = jax.tree.map(lambda leaf: np.shape(leaf)[:1] == (k,), params)
    for kind, name in ((FiniteMixture, "components"), (Chained, "emissions")):
        if isinstance(model, kind):
            of_bank = _not_matrices(model.bank, vars(params)[name], vars(found)[name])
            with contextlib.suppress(TypeError, ValueError, AttributeError, NotImplementedError):
                of_bank = _grows(model.bank, _data_of_bank(result), k)
            return dataclasses.replace(found, **{name: of_bank})
    return found


def _not_matrices(bank, params, found):
    """`found` without the leaves that are one value of their space: a matrix for all components."""

    def is_of_each(space, leaf, has_k):
        own_axes = 2 if isinstance(space, PositiveDefinite) else isinstance(space, Simplex)
        return has_k and np.ndim(leaf) > own_axes

    return jax.tree.map(is_of_each, bank.spaces(params), params, found)


def _data_of_bank(result):
    """The data of the fit for its bank, or rows of the same width."""
    data = None if result.own_data is None else of_components(result.own_data[0])
    if data is None or not jax.tree_util.all_leaves([data]):
        shape = (4, *result._shape_of_one[1:]) if data is None else None
        return data if shape is None else jax.ShapeDtypeStruct(shape, np.float32)
    return data


def _grows(bank, x, k: int):
    """Which leaves of the params of a bank have one entry more for one component more."""
    n = jax.tree.leaves(x)[0].shape[0]

    def shapes(k):
        weights = jax.ShapeDtypeStruct((n, k), np.float32)
        return jax.eval_shape(bank.init, jax.random.key(0), x, weights)

    def grows(a, b):
        return a.shape[:1] == (k,) and b.shape[:1] == (k + 1,)

    return jax.tree.map(grows, shapes(k), shapes(k + 1))


def unwrapped(model):
    """The model that wrappers stand around."""
    return unwrapped(model.wrapped) if isinstance(model, Wrapper) else model
