"""The uniform noise component of a mixture: its density, its box, and weights that count it.

The weights of k components and of the noise sum to 1. The space of a leaf knows nothing of other
leaves, so that all k + 1 are one leaf, `shares`; `weights` and `noise_weight` are parts of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision, stop_gradient

from jaxem.data.data import of_components, of_rows, rows_of_units
from jaxem.models.mixing import ConstantWeights, MixtureParams
from jaxem.numerics.paths import JoinedKey
from jaxem.numerics.tree import CONSTRUCTORS, is_array, is_traced, pytree, register
from jaxem.protocol.spaces import SIMPLEX
from jaxem.protocol.units import Standardized, standardized

START_SHARE = 0.05
"""The weight of the noise at a start. Outliers of the start are noise in addition."""

CONSISTENT = 1e-3
"""How far a given volume may be from that of the box beside it, as a part of it."""


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class NoiseMixtureParams:
    """weights (k,) and noise_weight, a scalar, which sum to 1 together; components: the params of
    the bank. In the pytree both are one leaf, shares (k + 1,), the noise last; tables, messages and
    the paths of `Restricted` have a name for each."""

    weights: Any
    noise_weight: Any
    components: Any

    def __init__(self, weights, noise_weight, components):
        xp = jnp if is_traced((weights, noise_weight)) or _any_jax(weights, noise_weight) else np
        weights, noise_weight = xp.asarray(weights), xp.asarray(noise_weight)
        shares = xp.concatenate([weights, noise_weight[..., None]], axis=-1)
        self.__dict__.update(shares=shares, components=components)

    @classmethod
    def of(cls, shares, components):
        """Params from one leaf, shares (k + 1,), and components, the params of the bank."""
        params = object.__new__(cls)
        params.__dict__.update(shares=shares, components=components)
        return params

    @property
    def weights(self):
        """The weights of the components without the noise, (k,)."""
        return self.shares[..., :-1]

    @property
    def noise_weight(self):
        """The weight of the noise, a scalar."""
        return self.shares[..., -1]

    def __repr__(self):
        if not is_array(self.shares):
            return f"NoiseMixtureParams(shares={self.shares!r}, components={self.components!r})"
        return (
            f"NoiseMixtureParams(weights={self.weights!r}, noise_weight={self.noise_weight!r}, "
            f"components={self.components!r})"
        )


KEYS = {"shares": JoinedKey("weights", "noise_weight")}
register(NoiseMixtureParams, ("shares", "components"), (), KEYS)
CONSTRUCTORS[NoiseMixtureParams] = lambda params: {
    f.name: getattr(params, f.name) for f in dataclasses.fields(params)
}


def _any_jax(*values) -> bool:
    return any(isinstance(value, jax.Array) for value in values)


@pytree
class UniformNoise:
    """A component of a mixture with the same density, 1 / volume, for every row.

    Args:
      volume: a number above 0, in the units of the columns multiplied, such as the volume of the
        region where noise may lie; of counts or codes the number of values. None: from the data of
        the fit, rows of real numbers with weights above 0: that of the smallest box around them
        along the axes or along their principal components, whichever is smaller.
      axes, lower, upper: set by `fit` where the volume is from data, for `sample`: the box, from
        lower (d,) to upper (d,) in the orthogonal axes, the columns of axes (d, d).

    Raises TypeError or ValueError where volume is not a number above 0, or not that of the box.
    Source: Banfield & Raftery 1993; the volume as in mclust.
    """

    volume: Any = None
    axes: Any = None
    lower: Any = None
    upper: Any = None

    def __post_init__(self):
        box = (self.axes, self.lower, self.upper)
        is_partial = any(side is None for side in box) and any(side is not None for side in box)
        if is_partial or (self.lower is not None and self.volume is None):
            raise ValueError("axes, lower and upper belong together, with their volume: give all")
        if self.volume is None or is_traced((self.volume, box)):
            return
        value = np.asarray(self.volume)
        if value.dtype.kind not in "fiu":
            raise TypeError(f"volume must be one number above 0, or None, got {self.volume!r}")
        if not (value > 0).all() or (self.lower is None and not np.isfinite(value).all()):
            raise ValueError(f"volume must be a finite number above 0, got {self.volume!r}")
        if self.lower is None or value.ndim:
            return
        with np.errstate(over="ignore"):
            found = np.exp(np.log(np.subtract(self.upper, self.lower)).sum())
        if np.isfinite(value) and abs(value - found) > CONSISTENT * value:
            raise ValueError(
                f"volume is {float(value):g} and that of the box beside it {float(found):g}: for "
                "another volume give jaxem.UniformNoise(volume) alone"
            )

    @property
    def log_volume(self):
        """log V, a scalar; also where V itself overflows."""
        if self.lower is not None:
            return jnp.log(jnp.asarray(self.upper) - jnp.asarray(self.lower)).sum(-1)
        if self.volume is None:
            raise ValueError(
                "UniformNoise has no volume yet: fit sets it from the data of the mixture that it "
                "fits; give jaxem.UniformNoise(volume=...), or take result.model"
            )
        return jnp.log(jnp.asarray(self.volume, jnp.result_type(float)))

    def of_data(self, x, weights):
        """The noise in the smaller box of the rows x (n, d) with weights (n,) above 0."""
        d = x.shape[1]
        identity, is_present = jnp.eye(d, dtype=x.dtype), (weights > 0)[:, None]
        lower, upper = _ends(x, is_present)
        if d > 1:
            axes = _principal_axes(stop_gradient(x), weights, identity)
            found = _ends(matmul(stop_gradient(x), axes), is_present)
            is_chosen = _is_smaller(found, stop_gradient((lower, upper)))
            # Not those of a box that is not chosen: equal variances make their derivative NaN.
            axes = _principal_axes(x, weights, identity, is_chosen)
            axes = jnp.where(is_chosen, axes, identity)
            rotated = _ends(matmul(x, axes), is_present)
            lower, upper = (
                jnp.where(is_chosen, *pair) for pair in zip(rotated, (lower, upper), strict=True)
            )
        else:
            axes = identity
        volume = jnp.exp(jnp.log(upper - lower).sum())
        return UniformNoise(volume, axes, lower, upper)

    def sample(self, key, n: int):
        """n rows (n, d), uniform in the box. ValueError where it is not known."""
        if self.lower is None:
            raise ValueError(
                "a volume alone says not where noise lies, so that it cannot be drawn: fit with "
                "jaxem.UniformNoise(), which keeps the box of the data"
            )
        lower, upper = jnp.asarray(self.lower), jnp.asarray(self.upper)
        u = jax.random.uniform(key, (n, lower.shape[0]), lower.dtype)
        return matmul(lower + u * (upper - lower), jnp.asarray(self.axes).T)


@pytree
class LogVolume:
    """A `UniformNoise` in the units of the arithmetic. log_volume: log V there, a scalar."""

    log_volume: Any


def _ends(x, is_present):
    """(the least, the largest) entries of every column of the rows that are present."""
    return jnp.where(is_present, x, jnp.inf).min(0), jnp.where(is_present, x, -jnp.inf).max(0)


def _principal_axes(x, weights, identity, is_wanted=True):
    """The eigenvectors of the covariance, as columns; where they are not wanted those of a matrix
    of which they have a derivative."""
    mean = jnp.matmul(weights, x, precision=Precision.HIGHEST) / weights.sum()
    centred = jnp.where((weights > 0)[:, None], x - mean, 0)
    scale = jnp.abs(stop_gradient(centred)).max()
    centred = centred / jnp.where(scale > 0, scale, 1)
    covariance = matmul(centred.T * weights, centred) / weights.sum()
    other = identity * jnp.arange(1, len(identity) + 1, dtype=x.dtype)
    return jnp.linalg.eigh(jnp.where(is_wanted, covariance, other))[1]


def _is_smaller(rotated, plain):
    """Whether a box, a pair of its ends, is the smaller one of two. A flat one is none: its least
    width is of rounding errors."""
    width, other = rotated[1] - rotated[0], plain[1] - plain[0]
    is_flat = width.min() <= 64 * jnp.finfo(width.dtype).eps * jnp.abs(jnp.stack(rotated)).max()
    return (jnp.log(width).sum() < jnp.log(other).sum()) & ~is_flat


def check_noise(mixture) -> None:
    """TypeError or ValueError where the noise of a mixture is none, or beside a gate."""
    noise = mixture.noise
    if noise is None:
        return
    if not isinstance(noise, (UniformNoise, LogVolume)):
        got = noise.__name__ if isinstance(noise, type) else repr(noise)[:60]
        raise TypeError(
            f"noise must be jaxem.UniformNoise(volume=...) or None, got {got}: write "
            "noise=jaxem.UniformNoise()"
        )
    if mixture.gate is not None:
        raise ValueError(
            "noise has a constant weight, and gate makes weights depend on covariates: leave one "
            "of them None"
        )


def check_box(noise, x, weights) -> None:
    """ValueError where host data x have missing cells, or the volume is from them and a column is
    the same in all rows with weights (n,) above 0, None for 1."""
    if noise is None or getattr(x, "ndim", 0) != 2:
        return
    if np.isnan(np.asarray(x)).any():
        raise ValueError(
            "noise=UniformNoise() takes complete rows, and the data have missing cells: their "
            "density under the noise is not defined; impute them first, or leave noise out"
        )
    if noise.volume is not None:
        return
    rows = np.asarray(x) if weights is None else np.asarray(x)[np.asarray(weights) > 0]
    flat = np.flatnonzero(np.ptp(rows, axis=0) == 0) if len(rows) else []
    if len(flat):
        raise ValueError(
            f"column {flat[0]} (counted from 0) is the same in all rows, so that their box, from "
            "which noise=UniformNoise() takes its volume, has none: leave the column out, or give "
            "jaxem.UniformNoise(volume=...)"
        )


def volume_of_rows(mixture, x, weights) -> UniformNoise:
    """The noise of a mixture in the box of the rows x that its bank takes, with weights (n,).

    ValueError where they are not rows of real numbers alone.
    """
    is_rows = getattr(x, "ndim", 0) == 2 and jnp.issubdtype(x.dtype, jnp.floating)
    if not is_rows or mixture.bank.domain.discrete:
        raise ValueError(
            "noise=UniformNoise() takes its volume from rows of real numbers (n, d) alone, and "
            "these data are others: give jaxem.UniformNoise(volume=...), for counts or codes the "
            "number of values, for responses the length of their range"
        )
    return mixture.noise.of_data(x, weights)


def with_noise(mixture, found, x, weights):
    """`Standardized` of a mixture from that without the noise, which is the same but for units.
    Where the volume of the units differs by row, the data stay in their own units."""
    volume = standardized(mixture.bank, of_components(x), of_rows(x, weights)).log_volume
    if jnp.ndim(volume):
        return Standardized(mixture, x)
    noise = LogVolume(mixture.noise.log_volume - volume)
    return found._replace(model=dataclasses.replace(found.model, noise=noise))


@dataclasses.dataclass(frozen=True)
class NoiseWeights(ConstantWeights):
    """k weights and that of the noise; a prior is of all k + 1."""

    noise: Any

    def params(self, count, components):
        shares = super().params(count, components).weights
        return NoiseMixtureParams.of(shares, components)

    def joint(self, params, x, density):
        rows = rows_of_units(x, density.dtype)
        background = jnp.broadcast_to(self.background * rows, density.shape[:1])
        density = jnp.concatenate([density, background.astype(density.dtype)[:, None]], 1)
        return density + self.levels(params, x)

    @property
    def background(self):
        return -self.noise.log_volume

    def completed(self, responsibilities):
        if responsibilities.shape[1] > self.k:
            return responsibilities
        shares = responsibilities * (1 - START_SHARE)
        rest = jnp.maximum(1 - shares.sum(1, keepdims=True), 0)
        return jnp.concatenate([shares, rest], 1)

    def levels(self, params, x):
        """log shares (k + 1,). A share of 0, where that of the noise may end, has no derivative."""
        is_positive = params.shares > 0
        return jnp.where(is_positive, jnp.log(jnp.where(is_positive, params.shares, 1)), -jnp.inf)

    def spaces(self, components):
        return NoiseMixtureParams.of(SIMPLEX, components)

    def whitened(self, params, step, components):
        of_shares = step.shares * jnp.sqrt(SIMPLEX.metric(params.shares))
        return NoiseMixtureParams.of(of_shares, components)

    def log_prior(self, params):
        return None if self.prior is None else self.prior.log_density(params.shares)

    def drawn(self, key, params, n: int, gate):
        """Components (n,), k for the noise."""
        return super().drawn(key, MixtureParams(params.shares, None), n, gate)


def matmul(a, b):
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
