"""The cells of rows: which are observed, and the known variance of their noise."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxem.families.units import Frame
from jaxem.numerics.linalg import copies


class Cells(NamedTuple):
    """x (n, d), 0 where a cell is missing; observed (n, d), booleans; noise (n, d) or (n, d, d), 0
    for missing cells, or None."""

    x: Any
    observed: Any
    noise: Any

    @classmethod
    def of(cls, data):
        """Those of rows with NaN for missing cells, or of `jaxem.Data` of them with noise."""
        x, noise = rows_of(data), noise_of(data)
        observed = ~jnp.isnan(x)
        if noise is not None:
            is_known = observed if noise.ndim == 2 else observed[:, :, None] & observed[:, None]
            noise = jnp.where(is_known, noise, 0).astype(x.dtype)
        return cls(jnp.where(observed, x, 0), observed, noise)

    @property
    def any(self):
        """Whether a row has an observed cell (n,)."""
        return self.observed.any(1)

    def means(self, weights):
        """The weighted means of the observed cells of every component, (k, d), for weights (n, k);
        where a component has none, those of all components, else 0."""
        present = self.observed.astype(self.x.dtype)

        def of_columns(weights):
            count = jnp.matmul(weights.T, present, precision=Precision.HIGHEST)
            total = jnp.matmul(weights.T, self.x, precision=Precision.HIGHEST)
            return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0), count > 0

        of_all, _ = of_columns(weights.sum(1, keepdims=True))
        mean, is_known = of_columns(weights)
        return jnp.where(is_known, mean, of_all)

    def filled(self):
        """x (n, d) with the means of columns in missing cells."""
        return jnp.where(self.observed, self.x, self.means(jnp.ones_like(self.x[:, :1])))

    def draw(self, key):
        """Noise (n, d) with the known variances; 0 without noise."""
        if self.noise is None:
            return jnp.zeros_like(self.x)
        standard = jax.random.normal(key, self.x.shape, self.x.dtype)
        if self.noise.ndim == 2:
            return jnp.sqrt(self.noise) * standard
        values, axes = jnp.linalg.eigh(self.noise)
        along = jnp.sqrt(jnp.maximum(values, 0)) * standard
        return jnp.einsum("nij,nj->ni", axes, along, precision=Precision.HIGHEST)

    def standardize(self, frame: Frame):
        """(the rows in the units of the frame, NaN where cells are missing; their noise)."""
        n = self.x.shape[0]
        x = jnp.where(self.observed, frame.standardize(self.x), jnp.nan)
        if self.noise is None:
            return x, None
        scale = copies(frame.scale, n)
        if self.noise.ndim == 2:
            return x, self.noise / scale / scale
        return x, self.noise / scale[:, :, None] / scale[:, None]

    def log_volume(self, weights, scale):
        """The weighted mean over rows of the log volume of their observed cells."""
        volume = jnp.where(self.observed, jnp.log(scale), 0).sum(1)
        total = weights.sum()
        return (weights * volume).sum() / jnp.where(total > 0, total, 1)


def rows_of(data):
    """The rows (n, d) of an array or of `jaxem.Data`. (Families do not import that class.)"""
    return data.x if dataclasses.is_dataclass(data) else data


def noise_of(data):
    """The noise of `jaxem.Data`, None where there is none."""
    return data.noise if dataclasses.is_dataclass(data) else None


def with_rows(data, x, noise):
    """The data with other rows and another noise."""
    return dataclasses.replace(data, x=x, noise=noise) if dataclasses.is_dataclass(data) else x


def random_correlations(key, k: int, d: int, dtype):
    """Correlation matrices (k, d, d) about the identity, with eigenvalues above 0."""
    points = jax.random.normal(key, (k, d, 4 * d), dtype)
    second = jnp.matmul(points, points.swapaxes(1, 2), precision=Precision.HIGHEST)
    root = jnp.sqrt(jnp.diagonal(second, axis1=1, axis2=2))
    return second / (root[:, :, None] * root[:, None])
