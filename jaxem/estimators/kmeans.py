"""`kmeans`: Lloyd's algorithm, which is hard EM of normals of one fixed spherical variance."""

import warnings
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.data import arrays as checks
from jaxem.data.options import integer
from jaxem.families.normal.moments import LOG_2PI
from jaxem.families.units import Affine, frame
from jaxem.fit import fit
from jaxem.methods.e_steps import Hard
from jaxem.methods.em import EM
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import keep_empty, safe
from jaxem.protocol.domains import REALS, require_matrix
from jaxem.protocol.model import Model
from jaxem.protocol.starts import KMeansPlusPlus
from jaxem.protocol.status import FitWarning, Status
from jaxem.protocol.units import Standardized


@pytree(static=("k",))
class Centres(Model):
    """k normals of equal weights and unit variance; params are their means (k, d).

    With `Hard()` the steps do not depend on the variance σ², which divides all squared distances
    alike, so that each step is that of the limit σ → 0.
    F = −½ Σ_i w_i min_k ‖x_i − mean_k‖²/σ² + a constant.
    """

    k: int

    @property
    def domain(self):
        return replace(REALS, components=self.k)

    def _name(self):
        return "kmeans"

    def init(self, key, x, weights):
        r = KMeansPlusPlus().responsibilities(key, x, weights, self.k)
        nearest = jax.nn.one_hot(jnp.argmax(r, axis=1), self.k, dtype=x.dtype)
        stats = self.statistics(None, x, nearest, weights)
        mean = jnp.broadcast_to(stats[1].sum(0) / weights.sum(), (self.k, x.shape[1]))
        return self.maximize(mean, stats)

    def log_joint(self, params, x):
        cross = jnp.matmul(x, params.T, precision=Precision.HIGHEST)
        distance = jnp.square(x).sum(1)[:, None] - 2 * cross + jnp.square(params).sum(1)
        return -0.5 * (distance + x.shape[1] * LOG_2PI) - jnp.log(self.k).astype(x.dtype)

    def statistics(self, params, x, q, weights):
        weighted = q * weights[:, None]
        return weighted.sum(0), jnp.matmul(weighted.T, x, precision=Precision.HIGHEST)

    def maximize(self, params, stats):
        count, total = stats
        return keep_empty(count, total / safe(count)[:, None], params)

    def standardize(self, x, weights):
        units = frame(x, weights, True)
        volume = jnp.log(units.scale).sum()
        affine = Affine(units.location, units.scale)
        return Standardized(self, units.standardize(x), affine, volume)

    def inward(self, units, params):
        return (params - units.location) / units.scale

    def outward(self, units, params):
        return params * units.scale + units.location


@pytree(eq=False)
class Clusters:
    """The result of `kmeans`.

    centres (k, d); labels (n,): the index of the nearest centre of each unit; sum_of_squares:
    Σ_i w_i ‖x_i − its centre‖²; n_iter: the number of updates of the centres; status: a `Status`,
    as an integer.
    """

    centres: Any
    labels: Any
    sum_of_squares: Any
    n_iter: Any
    status: Any

    @property
    def converged(self):
        """Whether a further update would lower the sum of squares by no more than rounding."""
        return self.status == int(Status.CONVERGED)

    def predict(self, x):
        """The nearest centre of every unit, shape (n,); −1 where x holds a NaN or an infinity.

        Raises ValueError or TypeError unless x has the shape (n, d) of the centres.
        """
        if np.ndim(self.centres) != 2:
            raise TypeError(
                f"these are several results, with centres of shape {np.shape(self.centres)}: take "
                "one with jax.tree.map(lambda leaf: leaf[i], clusters)"
            )
        x, _ = checks.as_data(x)
        require_matrix(x, "kmeans")
        if x.shape[1] != self.centres.shape[1]:
            raise ValueError(
                f"X has {x.shape[1]} features, but the centres have {self.centres.shape[1]}"
            )
        return _labels(jnp.asarray(x), self.centres)


def kmeans(x, k: int, *, key=None, init=None, restarts=1, weights=None, max_iter=300) -> Clusters:
    """k-means by Lloyd's algorithm from k-means++ seeds: the best of all restarts.

    Hard EM in the limit of a vanishing variance, by the loop of `fit`: it works under `jit` and
    `vmap`, and runs all restarts at once. A centre that is nearest to no unit keeps its place.
    Sources: Lloyd 1982; Arthur & Vassilvitskii 2007.

    Args:
      x: (n, d).  k: the number of centres.  key: a JAX key or an int; needed unless init is given.
      init: centres (k, d) to start from, or (restarts, k, d) where restarts > 1; None: k-means++.
      restarts: the number of restarts, or a `Restarts` plan.  weights: (n,), or None for 1.
      max_iter: the most updates.

    Raises ValueError or TypeError for arguments that cannot be used.
    """
    model = Centres(integer(k, "k", 1))
    with warnings.catch_warnings():
        # `fit` raises this tolerance to the rounding error of the objective, as intended here.
        warnings.filterwarnings("ignore", "tol=.* is below the rounding", FitWarning)
        result = fit(
            model,
            x,
            key=key,
            init=init,
            restarts=restarts,
            weights=weights,
            method=EM(e_step=Hard()),
            tol=1e-30,
            max_iter=max_iter,
            criterion="change",
        )
    x, n = checks.as_data(x)
    weights = checks.as_weights(weights, n, x.dtype)
    labels, squares = _nearest(jnp.asarray(x), result.params)
    total = squares.sum() if weights is None else jnp.where(weights > 0, weights * squares, 0).sum()
    return Clusters(result.params, labels, total, result.n_iter, result.status)


@jax.jit
def _labels(x, centres):
    """The nearest centre of each unit (n,), −1 where it is not finite. A unit whose squares would
    overflow is scaled down with its centres."""
    limit = jnp.sqrt(jnp.finfo(x.dtype).max) / (4 * x.shape[1])
    is_known = jnp.isfinite(x).all(1)
    largest = jnp.maximum(jnp.abs(jnp.where(is_known[:, None], x, 0)).max(1), limit)
    scale = (limit / largest)[:, None]

    def squares(centre):
        return jnp.square(x * scale - centre * scale).sum(1)

    nearest = jnp.argmin(jax.lax.map(squares, centres), axis=0)
    return jnp.where(is_known, nearest, -1)


@jax.jit
def _nearest(x, centres):
    """The nearest centre of each unit (n,), and the squared distance to it (n,).

    Distances are computed from differences: a product of x and centres would lose digits.
    """

    def squares(centre):
        return jnp.square(x - centre).sum(1)

    distance = jax.lax.map(squares, centres)
    return jnp.argmin(distance, axis=0), distance.min(0)
