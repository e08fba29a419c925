"""`Data`: observations or regressors with responses, covariates of the weights, labels, groups."""

from dataclasses import field, fields, replace
from typing import Any

from jaxem.numerics.tree import pytree

OF_COMPONENTS = ("gate", "labels", "groups")
"""The fields that concern the component of a unit, which a mixture reads and its bank does not."""


@pytree(eq=False)
class Data:
    """What is known of n rows beside their observations. Fields that are None are absent.

    x: (n, d), observations or, where y is given, regressors; y: (n,) or (n, m), responses; gate:
    (n, g), covariates of the mixing weights; labels: (n,), the component 0 … k−1 of a row, or −1
    where it is unknown; groups: (n,), integers or strings: rows of one group share their component,
    and the group is the unit; offset, trials: (n,), those of a generalised linear model; noise:
    (n, d) or (n, d, d), the known variance of the noise of a row. A pytree.

    The evidence of a labelled unit is its joint log p(x, z = label).
    """

    x: Any
    y: Any = None
    gate: Any = field(default=None, kw_only=True)
    labels: Any = field(default=None, kw_only=True)
    groups: Any = field(default=None, kw_only=True)
    offset: Any = field(default=None, kw_only=True)
    trials: Any = field(default=None, kw_only=True)
    noise: Any = field(default=None, kw_only=True)


FIELDS = tuple(f.name for f in fields(Data))


def Labelled(x, labels) -> Data:
    """`Data` in which the component of some units is known: labels (n,), the component 0 … k−1 of a
    unit, or −1 where it is unknown."""
    return Data(x, labels=labels)


def of_components(data):
    """The data that a bank takes: x alone, or `Data` without the fields of the mixture."""
    if not isinstance(data, Data):
        return data
    data = replace(data, **dict.fromkeys(OF_COMPONENTS))
    return data.x if given(data) == ("x",) else data


def labels_of(data):
    """The labels (n,) of data; None where they hold none."""
    return data.labels if isinstance(data, Data) else None


def given(data: Data) -> tuple[str, ...]:
    """The names of the fields that are not None."""
    return tuple(name for name in FIELDS if getattr(data, name) is not None)


def with_components(data, inner):
    """The data with `inner`, what `of_components` gave of them, in another form."""
    if not isinstance(data, Data):
        return inner
    if not isinstance(inner, Data):
        return replace(data, x=inner)
    return replace(inner, **{name: getattr(data, name) for name in OF_COMPONENTS})
