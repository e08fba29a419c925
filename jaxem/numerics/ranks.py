"""Linearly independent vectors among given ones, by NumPy."""

import numpy as np

SHORTEST = 1e-7
"""The part of a vector, by length, that must be independent of the vectors before it."""


def independent(vectors, order=None, shortest: float = SHORTEST):
    """The indices, ascending, of a largest set of linearly independent rows of vectors (p, m).

    Rows are taken in the given order, each where it is independent of those taken before it, by
    Gram-Schmidt orthogonalisation of the rows at length 1; rows of 0 never are.
    """
    vectors = np.asarray(vectors, float)
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.arange(len(vectors)) if order is None else order
    basis, chosen = np.zeros((min(vectors.shape), vectors.shape[1])), []
    for i in order:
        if len(chosen) == len(basis):
            break
        if not 0 < lengths[i] < np.inf:
            continue
        rest = vectors[i] / lengths[i]
        for _ in range(2):  # the second time removes rounding errors of the first
            rest = rest - basis[: len(chosen)].T @ (basis[: len(chosen)] @ rest)
        length = np.linalg.norm(rest)
        if length > shortest:
            basis[len(chosen)] = rest / length
            chosen.append(int(i))
    return np.sort(np.asarray(chosen, int))
