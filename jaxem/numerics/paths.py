"""Names of the leaves of trees, and of their entries, such as "components.mean[0, 1]"."""

import jax
import numpy as np


class JoinedKey(jax.tree_util.GetAttrKey):
    """The key of a leaf that holds two values side by side: along its last axis the entries of the
    array `first` and then, as the last one, the number `last`."""

    def __init__(self, first: str, last: str):
        super().__init__(f"{first} and {last}")
        self.first, self.last = first, last


def names_of_leaf(path) -> list[str]:
    """The name of the leaf at a path; of a `JoinedKey` those of both values."""
    *above, _ = path or [None]
    key = path[-1] if path else None
    if not isinstance(key, JoinedKey):
        return [jax.tree_util.keystr(path, simple=True, separator=".")]
    title = jax.tree_util.keystr(above, simple=True, separator=".")
    return [f"{title}.{name}" if title else name for name in (key.first, key.last)]


def values_of_leaf(path, leaf) -> dict:
    """The array at a path by its name; of a `JoinedKey` both values by theirs. Views of the leaf, a
    NumPy array."""
    names = names_of_leaf(path)
    if len(names) == 1:
        return {names[0]: leaf}
    return dict(zip(names, (leaf[..., :-1], leaf[..., -1]), strict=True))


def names_of_entries(path, shape) -> list[str]:
    """The names of the entries of a leaf of this shape at a path, in the order of its entries; of
    the leaf that is the whole tree "value"."""
    names, found = names_of_leaf(path), []
    for index in np.ndindex(*shape):
        title = names[0] or "value"
        if len(names) > 1 and index[-1] == shape[-1] - 1:
            title, index = names[1], index[:-1]
        found.append(f"{title}[{', '.join(map(str, index))}]" if index else title)
    return found
