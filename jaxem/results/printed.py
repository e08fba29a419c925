"""A `Result` in print."""

from collections import Counter

import jax
import numpy as np

from jaxem.numerics.tree import is_traced
from jaxem.protocol.status import Status


def text(result) -> str:
    """A result in a few lines: its model, how it ended, and how its restarts did."""
    model = jax.tree.map(_PrintedLeaf, result.model)
    if is_traced(result.status):
        return f"Result({model!r}, batch shape {np.shape(result.status)})"
    n = result._shape_of_one[0]
    status = np.asarray(result.restarts.status).ravel()
    counts = Counter(Status(int(s)).name for s in status)
    ended = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    if np.ndim(result.status):
        converged = int(np.sum(np.asarray(result.converged)))
        sizes = n if result.n_units is None else np.asarray(result.n_units)
        units = f"{np.min(sizes)} to {np.max(sizes)}" if np.ptp(sizes) else f"{np.max(sizes)}"
        return (
            f"{model!r}: batch shape {np.shape(result.status)}, {units} units each\n"
            f"{converged} of {np.size(result.status)} CONVERGED\nrestarts: {ended}"
        )
    lines = [
        f"{model!r}: {n} units",
        f"{Status(int(result.status)).name} after {int(result.n_iter)} EM steps, log-likelihood "
        f"{float(result.log_likelihood):.6g}, objective {float(result.objective):.6g}",
        f"restarts: {ended}",
    ]
    return "\n".join(lines)


class _PrintedLeaf:
    """A leaf of a model in print: an array is shown by its dtype and shape, a user's model without
    an address."""

    def __init__(self, leaf):
        self.leaf = leaf

    def __repr__(self):
        leaf = self.leaf
        if type(leaf).__repr__ is object.__repr__:
            return f"{type(leaf).__name__}()"
        if is_traced(leaf) or not isinstance(leaf, (np.ndarray, jax.Array)):
            return repr(leaf)
        if leaf.ndim:
            return f"{leaf.dtype}[{', '.join(str(size) for size in leaf.shape)}]"
        return f"{leaf.item():.6g}"
