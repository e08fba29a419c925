"""Which leaves of params have an axis of components, and of which."""

import contextlib
import dataclasses

import jax
import numpy as np

from jaxem.data.data import of_components
from jaxem.families.components import Components
from jaxem.models.hmm.chained import Chained
from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.spaces import PositiveDefinite, Simplex
from jaxem.protocol.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Axis:
    """Of a leaf of params: components, the range of those that it belongs to; is_leading, whether
    its first axis is that of these components, else they share it."""

    components: range
    is_leading: bool


def have_components(result, params):
    """Which leaves of params have a leading axis of all components, a tree like params."""
    every = range(result.model.domain.components)
    return jax.tree.map(
        lambda axis: axis.is_leading and axis.components == every, axes(result, params)
    )


def axes(result, params):
    """The `Axis` of every leaf of params, a tree like params.

    The axis of a bank's leaf is the one that grows with the number of components; where the data of
    the fit are not at hand to ask the bank, a leaf of k entries whose own numbers have no axis.
    """
    model, every = unwrapped(result.model), range(result.model.domain.components)
    shape = (len(every),)
    found = jax.tree.map(lambda leaf: Axis(every, np.shape(leaf)[:1] == shape), params)
    for kind, name in ((FiniteMixture, "components"), (Chained, "emissions")):
        if isinstance(model, kind):
            of_bank = _of_bank(model.bank, vars(params)[name], every, _data_of_bank(result))
            return dataclasses.replace(found, **{name: of_bank})
    return found


def _of_bank(bank, params, components, x):
    """As `axes`, of the params of a bank with these components; x: data of it, or None."""
    if isinstance(bank, Components):
        stops = np.cumsum(bank.counts)
        return {
            name: _of_bank(family, params[name], components[stop - count : stop], x)
            for name, family, count, stop in zip(
                bank.names, bank.families, bank.counts, stops, strict=True
            )
        }
    k = len(components)
    found = jax.tree.map(lambda leaf: np.shape(leaf)[:1] == (k,), params)
    found = _not_matrices(bank, params, found)
    with contextlib.suppress(TypeError, ValueError, AttributeError, NotImplementedError):
        found = _grows(bank, x, k)
    return jax.tree.map(lambda is_leading: Axis(components, is_leading), found)


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
