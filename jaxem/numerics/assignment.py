"""The best assignment of components to others, by NumPy."""

import itertools

import numpy as np

MOST_EXACT = 7
"""The most components of which all permutations are tried."""


def assigned(cost):
    """The permutations (b, k) with the least Σ_j cost[j, permutation[j]], of costs (b, k, k).

    Of more than 7 components, where the nearest ones are no permutation: the best one after
    exchanges of two from the identity.
    """
    cost = np.asarray(cost, float)
    b, k, _ = cost.shape
    found = np.tile(np.arange(k), (b, 1))
    nearest = cost.argmin(2)
    is_same = (nearest == np.arange(k)).all(1)
    is_permutation = (np.sort(nearest, 1) == np.arange(k)).all(1)
    found[is_permutation] = nearest[is_permutation]
    hard = np.flatnonzero(~is_same & ~is_permutation)
    if k <= MOST_EXACT and len(hard):
        every = np.array(list(itertools.permutations(range(k))))
        totals = sum(cost[hard][:, j, every[:, j]] for j in range(k))
        found[hard] = every[totals.argmin(1)]
        return found
    for i in hard:
        found[i] = _exchanged(cost[i])
    return found


def _exchanged(cost):
    order = np.arange(len(cost))
    while True:
        assigned_cost = cost[np.arange(len(cost)), order]
        swapped = cost[np.arange(len(cost))[:, None], order[None, :]]
        gain = assigned_cost[:, None] + assigned_cost[None, :] - swapped - swapped.T
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, j] <= 1e-12 * np.abs(assigned_cost).sum():
            return order
        order[[i, j]] = order[[j, i]]
