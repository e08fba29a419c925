"""Data of which some units have a known component."""

from typing import Any

from jaxem.numerics.tree import pytree


@pytree(eq=False)
class Labelled:
    """Data of which some units have a known component.

    x: the data, n units; labels (n,): the component 0 … k−1 of a unit, or −1 where it is unknown.
    The evidence of a labelled unit is its joint log p(x, z = label).
    """

    x: Any
    labels: Any


def unlabelled(data):
    """The data and the labels, None where there are none."""
    return (data.x, data.labels) if isinstance(data, Labelled) else (data, None)
