"""`Data`: observations or regressors with responses, covariates of the weights, labels, groups."""

from dataclasses import field, fields, replace
from typing import Any

import jax.numpy as jnp

from jaxem.data.arrays import as_array, as_data
from jaxem.data.grouped import Grouped, Names, grouped
from jaxem.numerics.tree import pytree

OF_COMPONENTS = ("gate", "labels", "groups")
"""The fields that concern the component of a unit, which a mixture reads and its bank does not."""


@pytree(eq=False)
class Data:
    """Observations of n rows, and what else is known of them. Fields that are None are absent.

    x: (n, d), observations or, where y is given, regressors; y: (n,) or (n, m), responses; gate:
    (n, g), covariates of the mixing weights; labels: (n,), the component 0 … k−1 of a row, or −1
    where it is unknown; groups: (n,), integers or strings: rows of one group share their component,
    and the group is the unit; offset, trials: (n,), those of a generalised linear model
    (`Regression`); noise: (n, d) or (n, d, d), the known variances or covariance of the noise of a
    row. A pytree.

    The evidence of a labelled unit is its joint log p(x, z = label). With groups, gate and labels
    are the same in all rows of a group; scores and weights have one value a group, in the order of
    their sorted names, predictions one a row.
    """

    x: Any
    y: Any = None
    gate: Any = field(default=None, kw_only=True)
    labels: Any = field(default=None, kw_only=True)
    groups: Any = field(default=None, kw_only=True)
    offset: Any = field(default=None, kw_only=True)
    trials: Any = field(default=None, kw_only=True)
    noise: Any = field(default=None, kw_only=True)

    def grouped(self) -> Grouped:
        """The data as a tree with one leading axis of groups, which can cross `jit`, `vmap` and
        `grad`; `fit` does the same to data with groups. TypeError where groups are None or
        traced, ValueError where gate or labels have another number of rows."""
        if self.groups is None:
            raise TypeError("data.groups is None: give jaxem.Data(x, groups=...)")
        return _grouped(self, "data")[0]


FIELDS = tuple(f.name for f in fields(Data))


def Labelled(x, labels) -> Data:
    """`Data(x, labels=labels)`: the component of some units is known. x: (n, d), or what the model
    takes; labels: (n,), the component 0 … k−1 of a unit, or −1 where it is unknown."""
    return Data(x, labels=labels)


def _grouped(data: Data, name: str):
    names = Names.of(data.groups, f"{name}.groups")
    gate, labels = data.gate, data.labels
    gate = None if gate is None else as_array(gate, f"{name}.gate", keep_integers=True)
    labels = None if labels is None else as_array(labels, f"{name}.labels", keep_integers=True)
    for field_name, values in (("gate", gate), ("labels", labels)):
        if values is not None and values.shape[:1] != names.place.shape:
            raise ValueError(
                f"{name}.{field_name} has shape {values.shape} and {name}.groups "
                f"{names.place.shape}: give one row for each row of x"
            )
    return grouped(of_components(data), gate, labels, names, name), names


def as_units(data, name: str = "data"):
    """(the data as a tree of arrays with one leading axis of units, their number, the `Names` of
    groups or None): see `as_data`."""
    if not isinstance(data, Data) or data.groups is None:
        return *as_data(data, name), None
    data, names = _grouped(data, name)
    return *as_data(data, name), names


def of_components(data):
    """The data that a bank takes: x alone, or `Data` without the fields of the mixture. Of groups
    all their rows, padding included."""
    if isinstance(data, Grouped):
        return _alone(data.plain)
    if not isinstance(data, Data):
        return data
    return _alone(replace(data, **dict.fromkeys(OF_COMPONENTS)))


def _alone(data):
    """x of `Data` that have nothing else, else the data."""
    return data.x if isinstance(data, Data) and given(data) == ("x",) else data


def shapes_of_components(data):
    """What `of_components` gives, or its shapes."""
    return _alone(data.shapes()) if isinstance(data, Grouped) else of_components(data)


def labels_of(data):
    """The labels (n,) of data; None where they hold none."""
    return data.labels if isinstance(data, (Data, Grouped)) else None


def gate_of(data):
    """The covariates (n, g) of the mixing weights; None where the data hold none."""
    return data.gate if isinstance(data, (Data, Grouped)) else None


def given_response(data) -> bool:
    """Whether the data hold responses y."""
    if isinstance(data, Grouped):
        data = data.shapes()
    return isinstance(data, Data) and data.y is not None


def without_gate(data):
    """The data without covariates of the mixing weights."""
    return _alone(replace(data, gate=None))


def within_units(data, values):
    """Σ of values of the rows that a bank takes over the rows of every unit."""
    return data.summed(values) if isinstance(data, Grouped) else values


def of_rows(data, values):
    """Values (n, ...) of units, for the rows that a bank takes; 0 for padding."""
    return data.spread(values) if isinstance(data, Grouped) else values


def unit_of_rows(data):
    """For the rows that a bank takes the number of the unit of each, that of 0 for padding; None
    where every row is a unit."""
    if not isinstance(data, Grouped):
        return None
    return data.spread(jnp.arange(len(data)))


def rows_of_units(data, dtype):
    """The number of rows of every unit (n,), or 1."""
    return jnp.asarray(data.rows.length, dtype) if isinstance(data, Grouped) else 1


def given(data: Data) -> tuple[str, ...]:
    """The names of the fields that are not None."""
    return tuple(name for name in FIELDS if getattr(data, name) is not None)


def with_components(data, inner):
    """The data with `inner`, what `of_components` gave of them, in another form."""
    if isinstance(data, Grouped):
        return data.with_plain(inner)
    if not isinstance(data, Data):
        return inner
    if not isinstance(inner, Data):
        return replace(data, x=inner)
    return replace(inner, **{name: getattr(data, name) for name in OF_COMPONENTS})
