"""What data say about the free coordinates of params: their information, and where there is none.

Axes: `m` coordinates, `k` of them kept: those that are not on a bound.
"""

from dataclasses import dataclass

import numpy as np

NULL = 1e-7
"""Information on a direction, as a part of that on its coordinates one at a time, below which the
direction is not identified."""

UNCERTAIN = 1e-2
"""Information on a direction, of the same kind, below which the end of the fit is too far from the
maximum to tell whether there is any: Newton steps then come first."""

NOTHING = 1e-14
"""The least information on a coordinate in the units of the arithmetic that counts as one."""

AT_BOUND, NEAR_BOUND, LONG_STEP = 1e-12, 1e-2, 0.5
"""An entry is on a bound where its relative distance is at most AT_BOUND, or at most NEAR_BOUND and
a Newton step of its logarithm, which is −1 where the maximum is on the bound, at least
LONG_STEP."""

LOWEST, HIGHEST = -70.0, 36.0
"""The logarithm, or log odds, at which an entry on a bound is held."""

MOST_STEPS = 6
"""The most Newton steps where information is small."""


@dataclass(frozen=True)
class Information:
    """matrix (m, m) and outer (m, m), None where not asked for, at the maximum near params. kept
    (k,): the coordinates off a bound; scale (k,): units in which the information on each alone is
    1. gauge (g, k): directions that no data can identify, orthonormal in these units. distance: of
    the params from the maximum, in standard errors."""

    matrix: np.ndarray
    outer: np.ndarray | None
    kept: np.ndarray
    scale: np.ndarray
    gauge: np.ndarray
    distance: float

    def spectrum(self, matrix):
        """(eigenvalues (k,), eigenvectors (k, k), which have no information) of a matrix (m, m), in
        the units of the coordinates."""
        part = self.scale[:, None] * matrix[np.ix_(self.kept, self.kept)] * self.scale
        return _spectrum(part, self.gauge)

    @property
    def is_maximum(self) -> bool:
        """Whether the information is not negative in any direction."""
        return bool(np.all(self.spectrum(self.matrix)[0] > -NULL))

    def covariance(self, method: str):
        """(the covariance (k, k) of the coordinates kept, directions (u, k) in their units that are
        not identified)."""
        base = self.outer if method == "empirical" else self.matrix
        values, vectors, is_null = self.spectrum(base)
        inverse = np.where(is_null, 0, 1 / np.where(is_null, 1, values))
        inverse = (vectors * inverse) @ vectors.T
        if method == "sandwich":
            outer = self.outer[np.ix_(self.kept, self.kept)]
            inverse = inverse @ (self.scale[:, None] * outer * self.scale) @ inverse
        return self.scale[:, None] * inverse * self.scale, vectors[:, is_null].T


def information(curvature_at, origin, margins, kinds, gauge, *, is_degenerate) -> Information:
    """The `Information` near params.

    curvature_at(shift (m,)): the `Curvature` at shifted coordinates. origin, margins, kinds (m,):
    as of a `Frame`. gauge (g, m): directions that no data can identify. is_degenerate: whether the
    fit ended on a floor, so that every entry with a logarithm may be on its bound.
    """
    shift = np.zeros(len(origin))
    found = curvature_at(shift)
    held, up = _on_bound(found, margins, kinds, is_degenerate)
    movable = held & (kinds > 0)
    if movable.any():
        bound = np.where(up & (kinds == 2), HIGHEST, LOWEST)
        shift = np.where(movable & ~_beyond(origin, bound), bound - origin, 0)
        found = curvature_at(shift) if shift.any() else found
    kept, distance = np.flatnonzero(~held), None
    gauge = gauge[~(np.abs(gauge) > 0)[:, held].any(1)][:, kept]
    for count in range(MOST_STEPS + 1):
        matrix = -np.asarray(found.hessian, float)
        matrix = (matrix + matrix.T) / 2
        diagonal = np.abs(np.diag(matrix))[kept]
        has_any = diagonal > NOTHING
        scale = 1 / np.sqrt(np.where(has_any, diagonal, 1))
        basis = _orthonormal(gauge / scale)
        outer = None if found.outer is None else np.asarray(found.outer, float)
        result = Information(matrix, outer, kept, scale, basis, 0.0)
        values, vectors, is_null = result.spectrum(matrix)
        along = vectors.T @ (scale * np.asarray(found.gradient, float)[kept])
        safe = np.where(is_null | (values <= 0), np.inf, values)
        length = float(np.sqrt(np.sum(along**2 / safe)))
        distance = length if distance is None else distance
        unsure = ~_in_span(vectors, basis) & (values < UNCERTAIN)
        if not unsure.any() or length < NULL or count == MOST_STEPS or not np.isfinite(length):
            break
        step = vectors @ (along / np.maximum(np.abs(values), UNCERTAIN / 10))
        step = step / max(1.0, np.linalg.norm(step))
        shift = shift.copy()
        shift[kept] += scale * np.where(has_any, step, 0)
        found = curvature_at(shift)
    return Information(matrix, outer, kept, scale, basis, distance)


def _on_bound(found, margins, kinds, is_degenerate):
    """Which coordinates belong to entries on a bound (m,), and which of them on the upper one."""
    slope, curve = np.asarray(found.gradient, float), -np.diag(np.asarray(found.hessian, float))
    step = np.where(np.abs(curve) > 0, slope / np.where(curve == 0, 1, np.abs(curve)), 0)
    is_long = (np.abs(step) >= LONG_STEP) & np.isfinite(margins)
    near = NEAR_BOUND if not is_degenerate else np.inf
    held = (margins <= AT_BOUND) | (is_long & (margins <= near))
    return held, step > 0


def _beyond(origin, bound):
    return np.where(bound > 0, origin >= bound, origin <= bound)


def _orthonormal(directions):
    if not len(directions):
        return directions
    _, lengths, basis = np.linalg.svd(directions, full_matrices=False)
    return basis[lengths > NULL * lengths.max()]


def _in_span(vectors, basis):
    """Which of the vectors (k, j), columns of length 1, lie in the span of an orthonormal basis."""
    return ((basis @ vectors) ** 2).sum(0) > 0.5


def _spectrum(matrix, basis):
    """Eigenvalues, eigenvectors and which of them are null, with the span of the basis null."""
    outside = np.eye(len(matrix)) - basis.T @ basis
    matrix = outside @ matrix @ outside
    matrix = np.where(np.isfinite(matrix), matrix, 0)
    # The span of the basis comes last, apart from all other null directions.
    values, vectors = np.linalg.eigh(matrix + 4 * len(matrix) * basis.T @ basis)
    in_span = _in_span(vectors, basis)
    values = np.where(in_span, 0, values)
    return values, vectors, in_span | (np.abs(values) <= NULL)
