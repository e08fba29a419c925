"""`kmeans`: Lloyd's algorithm, which is hard EM of normals of one fixed spherical variance."""

import dataclasses
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jaxem.data import arrays as checks
from jaxem.data.options import integer
from jaxem.data.precision import float64, in_own_precision, needs_float64, on_host
from jaxem.families.normal.moments import LOG_2PI
from jaxem.families.units import Affine, frame
from jaxem.fit import fit
from jaxem.methods.em import Evaluation, Signal
from jaxem.numerics.storage import DAMAGE, decode, encode, read, write
from jaxem.numerics.tree import in_jit, is_traced, pytree
from jaxem.passes.chunks import row_sum
from jaxem.protocol.counts import is_empty, keep_empty, safe
from jaxem.protocol.domains import REALS, require_matrix
from jaxem.protocol.model import Model
from jaxem.protocol.starts import KMeansPlusPlus
from jaxem.protocol.status import Status, warn
from jaxem.protocol.units import Standardized

UNROLLED_FEATURES = 16
"""The most features whose squared differences are added one by one."""

DISTINCT = 4
"""A unit that is farther from its centre than DISTINCT · ε · (1 + its norm), in standardised units,
differs from it by more than rounding."""


@pytree(static=("k",))
class Centres(Model):
    """k normals of equal weights and unit variance; params are their means (k, d).

    With `Hard()` the steps do not depend on the variance σ², which divides all squared distances
    alike, so that each step is that of the limit σ → 0.
    F = −½ Σ_i w_i min_k ‖x_i − mean_k‖²/σ² + a constant, where σ is the scale of the data.
    """

    k: int

    @property
    def domain(self):
        return replace(REALS, components=self.k)

    def _name(self):
        return "kmeans"

    def init(self, key, x, weights):
        r = KMeansPlusPlus(outliers=True).responsibilities(key, x, weights, self.k)
        nearest = jax.nn.one_hot(jnp.argmax(r, axis=1), self.k, dtype=x.dtype)
        stats = self.statistics(None, x, nearest, weights)
        mean = jnp.broadcast_to(stats[1].sum(0) / weights.sum(), (self.k, x.shape[1]))
        return self.maximize(mean, stats)

    def log_joint(self, params, x):
        distance = jax.vmap(lambda centre: _squares(x.T, centre), out_axes=1)(params)
        return -0.5 * (distance + x.shape[1] * LOG_2PI) - jnp.log(self.k).astype(x.dtype)

    def statistics(self, params, x, q, weights):
        weighted = q * weights[:, None]
        return weighted.sum(0), jnp.matmul(weighted.T, x, precision=Precision.HIGHEST)

    def maximize(self, params, stats):
        count, total = stats
        return keep_empty(count, total / safe(count)[:, None], params)

    def standardize(self, x, weights):
        units = frame(x, weights, True)
        return Standardized(self, units.standardize(x), Affine(units.location, units.scale))

    def inward(self, units, params):
        return (params - units.location) / units.scale

    def outward(self, units, params):
        return params * units.scale + units.location


class LloydMemory(NamedTuple):
    """labels (n,): the nearest centre of each unit at the step before, −1 before the first."""

    labels: Any


@pytree
class Lloyd:
    """A step of Lloyd's algorithm, for `Centres`.

    It ends when no unit changes its centre; or where units change it at no gain but rounding, as
    between equal distances. The gain of a step is a sum of terms that are not negative, so that it
    is known far below the rounding error of the sum of squares. A centre that is nearest to no unit
    moves to the unit farthest from its own centre, one in each step.
    """

    plain = prepares = False
    accelerator = None

    def suited(self, model, x):
        return self

    def stationary(self, model, x):
        """None: labels have no derivative."""
        return None

    def start(self, model, params, x, weights):
        return LloydMemory(jnp.full(weights.shape, -1, jnp.int32))

    def evaluate(self, model, params, x, weights, memory=()):
        """The nearest centres of all units and the means of the units of each centre."""
        eps = jnp.finfo(x.dtype).eps
        previous = (memory or self.start(model, params, x, weights)).labels
        labels, squares = _nearest(x, params)
        members = jnp.where(labels[:, None] == jnp.arange(model.k), weights[:, None], 0)
        count = members.sum(0)
        total = jnp.matmul(members.T, x - params[labels], precision=Precision.HIGHEST)
        step = total / safe(count)[:, None]
        centres = params + jnp.where(is_empty(count)[:, None], 0, step)

        magnitude = jnp.square(x).sum(1) + 1
        weighted = jnp.where(weights > 0, weights * squares, 0)
        farthest = jnp.argmax(weighted)
        is_apart = squares[farthest] > jnp.square(DISTINCT * eps) * magnitude[farthest]
        relocates = jnp.any(is_empty(count)) & is_apart & (weighted[farthest] > 0)
        relocated = centres.at[jnp.argmax(is_empty(count))].set(x[farthest])
        centres = jnp.where(relocates, relocated, centres)

        moved = (weights > 0) & (labels != previous)
        from_previous = jnp.square(x - params[jnp.maximum(previous, 0)]).sum(1)
        by_labels = jnp.where(moved, weights * (from_previous - squares), 0).sum()
        rounding = eps * x.shape[1] * jnp.where(moved, weights * from_previous, 0).sum()
        by_centres = (count * jnp.square(step).sum(1)).sum()
        is_first = jnp.all(previous < 0)
        is_rounding = ~is_first & (by_labels + by_centres <= rounding)
        is_over = (~jnp.any(moved) | is_rounding) & ~relocates

        value = row_sum(weights, jnp.where(weights > 0, squares, 0))
        value_magnitude = value + eps * row_sum(weights, magnitude)
        # A stopping rule takes a gain of 0 for convergence, and no other.
        gain = jnp.where(is_over, 0, jnp.inf).astype(x.dtype)
        signal = Signal(gain=gain, error=jnp.ones((), x.dtype))
        return Evaluation(
            centres, -0.5 * value, value_magnitude, LloydMemory(labels), signal=signal
        )

    def map(self, model, params, x, weights, memory=()):
        """One step."""
        return self.evaluate(model, params, x, weights, memory)

    def measures(self, n_iter):
        """True: the objective is that of all units at the params of the step."""
        return True

    def log_likelihood(self, model, params, x, weights):
        """None: the objective stands for it."""
        return None


@pytree(eq=False)
class Clusters:
    """The result of `kmeans`.

    centres (k, d); labels (n,): the index of the nearest centre of each unit; sum_of_squares:
    Σ_i w_i ‖x_i − its centre‖², in float64 outside of jit, vmap and grad; n_iter: the number of
    updates of the centres; status: a `Status`, as an integer.
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

    def save(self, path) -> None:
        """Writes the clusters to the file `path` for `jaxem.load`, arrays as npz, structure as
        JSON. ValueError for a field that is no array."""
        arrays = []
        fields = {f.name: encode(getattr(self, f.name), arrays) for f in dataclasses.fields(self)}
        write(path, {"kind": KIND, "fields": fields}, arrays)

    @in_own_precision
    def predict(self, x):
        """The nearest centre of every unit of x (n, d), shape (n,); −1 for one that is not finite.

        Raises ValueError or TypeError where x is no array of units as wide as the centres.
        """
        if np.ndim(self.centres) != 2:
            raise TypeError(
                f"these are several results, with centres of shape {np.shape(self.centres)}: take "
                "one with jax.tree.map(lambda leaf: leaf[i], clusters)"
            )
        x = checks.as_array(x, "data")
        require_matrix(x, "kmeans")
        width = self.centres.shape[-1]
        if x.shape[1] != width:
            raise ValueError(
                f"X has {x.shape[1]} features, but the centres have {width}: pass the columns of "
                "the fit"
            )
        return assign(jnp.asarray(x), self.centres).labels

    @property
    def params(self):
        """The centres, as the params of a model."""
        return self.centres


KIND = "clusters"


def load(path) -> Clusters:
    """The `Clusters` that `Clusters.save` wrote; ValueError where the file is damaged."""
    try:
        content, arrays = read(path)
        fields = {name: decode(field, arrays, {}.get) for name, field in content["fields"].items()}
        return Clusters(**fields)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no jaxem clusters: {error}") from error


def kmeans(x, k: int, *, key=None, init=None, restarts=1, weights=None, max_iter=300) -> Clusters:
    """k-means by Lloyd's algorithm from k-means++ seeds: the best of all restarts.

    This is hard EM of normals with one vanishing variance, by the loop of `fit`: it works under
    `jit` and `vmap`, and runs all restarts at once. It ends when no unit changes its centre. A
    centre that is nearest to no unit moves to the unit farthest from its own centre; it keeps its
    place, with a `FitWarning`, where fewer than k distinct units are left. Sources: Lloyd 1982;
    Arthur & Vassilvitskii 2007.

    Args:
      x: (n, d).  k: the number of centres.  key: a JAX key or an int; needed unless init is given.
      init: centres (k, d) to start from, or (restarts, k, d) where restarts > 1; None: k-means++.
      restarts: the number of restarts, or a `Restarts` plan.  weights: (n,), or None for 1.
      max_iter: the most updates.

    Raises ValueError or TypeError for arguments that cannot be used.
    """
    if needs_float64(x) and not in_jit():
        options = {"key": key, "init": init, "restarts": restarts, "weights": weights}
        with float64():
            return on_host(kmeans(x, k, max_iter=max_iter, **options))
    model = Centres(integer(k, "k", 1))
    result = fit(
        model,
        x,
        key=key,
        init=init,
        restarts=restarts,
        weights=weights,
        method=Lloyd(),
        max_iter=max_iter,
        criterion="change",
    )
    x, n = checks.as_data(x)
    weights = checks.as_weights(weights, n, x.dtype)
    weights = jnp.ones(n, x.dtype) if weights is None else jnp.asarray(weights)
    assigned = assign(jnp.asarray(x), result.params)
    unit, scaled, is_used = _sum_of_squares(assigned, weights, model.k)
    if is_traced((unit, scaled)):
        total = unit * (unit * scaled)
    else:
        total = np.float64(unit) ** 2 * np.float64(scaled)
        _warn_of_unused(np.asarray(is_used))
    return Clusters(result.params, assigned.labels, total, result.n_iter, result.status)


def _warn_of_unused(is_used) -> None:
    """A `FitWarning` that names the centres that are nearest to no unit."""
    if is_used.all():
        return
    unused = ", ".join(map(str, np.flatnonzero(~is_used)[:10]))
    warn(
        f"{int((~is_used).sum())} of {is_used.size} centres are nearest to no unit (counted from "
        f"0: {unused}), and keep the place of their start: use k={int(is_used.sum())} or fewer, or "
        "raise max_iter",
        stacklevel=3,
    )


class Assigned(NamedTuple):
    """labels (n,): the nearest centre of each unit, −1 where it is not finite. The squared distance
    to it is unit² · squares, both (n,), where squares is 0 or of order 1."""

    labels: Any
    unit: Any
    squares: Any


@jax.jit
def assign(x, centres) -> Assigned:
    """The nearest centres of units, in units of the arithmetic that neither overflow nor underflow
    whatever the scale of x.

    Each unit is measured by its own length: its distance to the nearest centre in the maximum norm.
    """
    centres = jnp.asarray(centres, x.dtype)
    columns = x.T

    def add(j, least):
        return jnp.minimum(least, jnp.abs(columns / 2 - centres[j][:, None] / 2).max(0))

    half = jax.lax.fori_loop(0, len(centres), add, jnp.full(len(x), jnp.inf, x.dtype))
    scale = jnp.where((half > 0) & jnp.isfinite(half), half, 1)
    labels, squares = _nearest_of(
        len(centres), lambda j: _squares(columns / 2, centres[j] / 2, scale), x
    )
    labels = jnp.where(jnp.isfinite(x).all(1), labels, -1)
    return Assigned(labels, 2 * scale, squares)


@partial(jax.jit, static_argnums=2)
def _sum_of_squares(assigned: Assigned, weights, k):
    """(u, s, used): the weighted sum of squares is u² · s; which centres have a unit, (k,)."""
    labels, unit, squares = assigned
    present = (weights > 0) & (squares > 0)
    largest = jnp.max(jnp.where(present, unit, 0))
    largest = jnp.where(largest > 0, largest, 1)
    scaled = row_sum(weights, jnp.where(present, jnp.square(unit / largest) * squares, 0))
    is_used = jnp.any((labels[:, None] == jnp.arange(k)) & (weights > 0)[:, None], axis=0)
    return largest, scaled, is_used


def _nearest(x, centres):
    """The nearest centre of each unit (n,), and the squared distance to it (n,).

    Distances are computed from differences: a product of x and centres would lose digits.
    """
    columns = x.T
    return _nearest_of(len(centres), lambda j: _squares(columns, centres[j]), x)


def _nearest_of(k: int, squares_of, x):
    """(index (n,), value (n,)) of the least of squares_of(j) (n,), j = 0 … k − 1."""

    def add(j, carry):
        label, least = carry
        squares = squares_of(j)
        is_nearer = squares < least
        return jnp.where(is_nearer, j, label), jnp.where(is_nearer, squares, least)

    carry = jnp.zeros(len(x), jnp.int32), jnp.full(len(x), jnp.inf, x.dtype)
    return jax.lax.fori_loop(0, k, add, carry)


def _squares(columns, centre, scale=None):
    """Squared distances (n,) of columns (d, n) to a centre (d,), in units of scale (n,).

    Features are the leading axis and are added one by one, in groups: XLA does not vectorise sums
    along the minor axis on a CPU, and its sums along others are slow.
    """
    d, n = columns.shape

    def add(first, count, total):
        for i in range(count):
            difference = columns[first + i] - centre[first + i]
            total = total + jnp.square(difference if scale is None else difference / scale)
        return total

    total = jnp.zeros(n, columns.dtype)
    groups, left = divmod(d, UNROLLED_FEATURES)
    total = add(groups * UNROLLED_FEATURES, left, total)
    if groups == 1:
        return add(0, UNROLLED_FEATURES, total)

    def add_group(i, total):
        return add(i * UNROLLED_FEATURES, UNROLLED_FEATURES, total)

    return jax.lax.fori_loop(0, groups, add_group, total) if groups else total
