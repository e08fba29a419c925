"""The part of `Normal` for rows with missing cells or with noise of known variance."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxem.families.normal import incomplete
from jaxem.families.normal.cells import Cells, random_correlations
from jaxem.families.normal.gaussian import NormalStatistics
from jaxem.protocol.model import Bank


class Completing(Bank):
    """A normal bank whose statistics are those of rows completed by what is expected of them."""

    structure: Any
    missing: bool
    limits: Any

    def _first_statistics(self, key, start, x, weights):
        """Those at the middle of the data. Where cells are missing, at correlations drawn by the
        key: from correlation 0 EM may not come away (Murray 1977)."""
        if not (self.missing and self.structure.whole):
            return self.statistics(start, x, None, weights)
        k, d = start.mean.shape
        covariance = random_correlations(key, k, d, start.mean.dtype)
        if self.limits is not None:
            varies = self.limits.varies
            eye = jnp.eye(d, dtype=covariance.dtype)
            covariance = jnp.where(varies[:, None] & varies, covariance, eye)
        return self._completed(start.mean, covariance, Cells.of(x), weights, once=True)

    def _completed(self, mean, covariance, cells, weights, q=None, once=False):
        """Statistics of rows with missing cells or with noise. q: of `incomplete.posterior`;
        once: as in `swept`."""
        varies = None if self.limits is None else self.limits.varies
        count, first, second = incomplete.moments(mean, covariance, cells, weights, varies, q, once)
        return NormalStatistics(count, first, self.structure.gathered(second))

    def _covariances(self, params, cells):
        """Covariances as `incomplete` takes them."""
        k, d = params.mean.shape
        are_apart = cells.noise is None or cells.noise.ndim == 2
        if are_apart and not self.structure.whole:
            return self.structure.by_feature(params.covariance, d)
        return self.structure.matrices(params.covariance, k, d)

    def given(self, params, cells):
        """What the observed cells say of every row: `incomplete.Given`."""
        return incomplete.given_cells(params.mean, self._covariances(params, cells), cells)

    def scaled_statistics(self, params, cells, weights, precision):
        """Statistics of rows, observed `cells`, whose covariance is divided by a precision u
        (n, k): of weights · u, in which the conditional covariance is not multiplied by u."""
        found = self.given(params, cells)
        u = precision.T.reshape(-1, *(1,) * (found.spread.ndim - 2), precision.shape[0])
        varies = None if self.limits is None else self.limits.varies
        found = found._replace(spread=found.spread / u)
        args = (params.mean, None, cells, weights * precision, varies, found)
        count, first, second = incomplete.moments(*args)
        return NormalStatistics(count, first, self.structure.gathered(second))

    def completed(self, params, x):
        cells = Cells.of(x)
        covariance = self._covariances(params, cells)
        return incomplete.completed(params.mean, covariance, cells)

    def drawn(self, key, params, x, z):
        """A row is drawn with all its cells. Then the expectation given its own cells that are
        observed in x is replaced by that given those of x."""
        cells, (of_value, of_noise) = Cells.of(x), jax.random.split(key)
        value = self.sample(of_value, params, z)
        noisy = cells._replace(x=jnp.where(cells.observed, value + cells.draw(of_noise), 0))
        covariance = self._covariances(params, cells)
        means = [incomplete.completed(params.mean, covariance, c) for c in (cells, noisy)]
        given, own = (jnp.take_along_axis(m, z[:, None, None], axis=1)[:, 0] for m in means)
        return jnp.where(cells.observed, cells.x, value + given - own)
