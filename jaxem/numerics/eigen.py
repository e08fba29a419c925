"""Eigenvalues and eigenvectors of symmetric matrices, with a derivative where eigenvalues agree."""

import jax
import jax.numpy as jnp

from jaxem.numerics.triangular import times


@jax.custom_jvp
def eigh(matrix):
    """Eigenvalues (..., d), the largest first, and eigenvectors (..., d, d), in columns, of
    symmetric matrices (..., d, d).

    The derivative leaves out the rotation within the space of equal eigenvalues, which functions of
    that space as a whole do not depend on.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values[..., ::-1], vectors[..., ::-1]


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    values, vectors = eigh(*primals)
    (tangent,) = tangents
    tangent = (tangent + tangent.swapaxes(-1, -2)) / 2
    inner = times(vectors.swapaxes(-1, -2), times(tangent, vectors))
    gap = values[..., None, :] - values[..., :, None]
    turn = jnp.where(gap != 0, inner / jnp.where(gap != 0, gap, 1), 0)
    return (values, vectors), (jnp.diagonal(inner, axis1=-2, axis2=-1), times(vectors, turn))
