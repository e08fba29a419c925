"""`Labelled`: data in which the component of some units is known."""

from typing import Any

from jaxem.numerics.tree import pytree


@pytree(eq=False)
class Labelled:
    """Data in which the component of some units is known.

    x: the data, n units; labels (n,): the component 0 … k−1 of a unit, or −1 where it is unknown.
    The evidence of a labelled unit is its joint log p(x, z = label).
    """

    x: Any
    labels: Any


def unlabelled(data):
    """(x, labels) of `Labelled` data, (data, None) of any other."""
    return (data.x, data.labels) if isinstance(data, Labelled) else (data, None)
