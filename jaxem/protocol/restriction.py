"""M-steps under fixed and tied params."""

import jax
import numpy as np

from jaxem.protocol.capabilities import Restrictable, has
from jaxem.protocol.held import averaged, is_held
from jaxem.protocol.model import Bank


def by_rows(bank, held):
    """`maximize(params, stats)` of a bank whose components are fixed or tied as a whole, or None
    where they are not. Components that are tied share their statistics.

    They get the mean of their statistics, so that the prior counts once for every component.
    """
    leaves = jax.tree.leaves(held, is_leaf=is_held)
    if all(h.free for h in leaves):
        return bank.maximize
    rows = [h.rows for h in leaves]
    if any(r is None or not all(map(np.array_equal, r, rows[0])) for r in rows):
        return None
    group = rows[0][1]

    def maximize(params, stats):
        return bank.maximize(params, jax.tree.map(lambda s: averaged(group, s), stats))

    return maximize


def restricted(model, held):
    """`maximize(params, stats)` under the restrictions `held`, a tree like params, or None where it
    has no closed form. That of the model where it is `Restrictable`."""
    if has(model, Restrictable):
        return model.restricted(held)
    if isinstance(model, Bank):
        return by_rows(model, held)
    free = all(h.free for h in jax.tree.leaves(held, is_leaf=is_held))
    return model.maximize if free else None
