"""What normal components take: rows, with missing cells or with noise of known variance."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from jaxem.families.normal.cells import noise_of, rows_of
from jaxem.protocol.domains import Matrix, finite, require_matrix

SYMMETRIC = 1e-6
"""The largest asymmetry of a noise matrix, and the least eigenvalue below 0, as a part of its
largest entry."""


COPIES = 4
"""Matrices of a row in a pass over incomplete rows."""


@dataclass(frozen=True)
class NormalDomain(Matrix):
    """Rows (n, d), or `Data` of rows with noise. missing: whether cells may be NaN. whole: whether
    covariances are matrices."""

    whole: bool = False

    def numbers(self, x):
        if not (self.whole and self.completes(x)):
            return super().numbers(x)
        return COPIES * rows_of(x).shape[-1] * super().numbers(x)

    def valid(self, x):
        noise, x_rows = noise_of(x), rows_of(x)
        mask = super().valid(x_rows)
        if noise is None:
            return mask if x is x_rows else dataclasses.replace(x, x=mask)
        is_missing = x_rows != x_rows
        if noise.ndim == 2:
            is_valid = (finite(noise) & (noise >= 0)) | is_missing
        else:
            ignored = is_missing[:, :, None] | is_missing[:, None]
            off_diagonal = ~np.eye(noise.shape[-1], dtype=bool)
            is_valid = (finite(noise) & ((noise >= 0) | off_diagonal)) | ignored
        return dataclasses.replace(x, x=mask, noise=is_valid)

    def accepted(self, path, values):
        if path == ".noise":
            return "variances, finite numbers of 0 or more", "give variances, not their logarithms"
        words, remedy = super().accepted(path, values)
        is_nan_alone = not self.missing and np.isfinite(values).all()
        return words, "Normal(missing=True) takes NaN for missing cells" if is_nan_alone else remedy

    def is_observed(self, x):
        return super().is_observed(rows_of(x))

    def completes(self, x):
        return self.missing or noise_of(x) is not None

    def check(self, x, name):
        rows, noise = rows_of(x), noise_of(x)
        require_matrix(rows, name)
        n, d = rows.shape
        if noise is not None and tuple(noise.shape) not in ((n, d), (n, d, d)):
            raise ValueError(
                f"data.noise must have shape {(n, d)}, variances of the noise of every cell, or "
                f"{(n, d, d)}, its covariance in every row, got {tuple(noise.shape)}"
            )
        for function in self.further:
            function(rows)

    def check_values(self, x, weights):
        rows, noise = np.asarray(rows_of(x)), noise_of(x)
        present = slice(None) if weights is None else np.asarray(weights) > 0
        super().check_values(rows, weights)
        if noise is not None and noise.ndim == 3:
            _check_matrices(np.asarray(noise)[present], ~np.isnan(rows[present]))


def _check_matrices(noise, observed):
    """ValueError where a noise matrix is not symmetric and positive semidefinite."""
    known = observed[:, :, None] & observed[:, None]
    noise = np.where(known, noise, 0)
    if not np.isfinite(noise).all():
        return  # the check of the support says so
    size = np.abs(noise).max((1, 2))
    wrong = np.abs(noise - noise.swapaxes(1, 2)).max((1, 2)) > SYMMETRIC * size
    wrong |= np.linalg.eigvalsh(noise)[:, 0] < -SYMMETRIC * size
    if wrong.any():
        raise ValueError(
            f"data.noise is no covariance in {int(wrong.sum())} of {len(noise)} rows, first in row "
            f"{int(np.argmax(wrong))}: give symmetric matrices without negative eigenvalues"
        )
