"""Proper priors for maximum a posteriori fits; each family says which one it takes.

Every class gives a log density, with its normalising constant, in the parametrisation of the
params themselves; the family adds the matching pseudo-statistics in its M-step. The mode found is
the mode in that parametrisation.

The densities are written out because those of `jax.scipy.stats` fail on the boundary, where a mode
may lie: at a concentration of 1 and a probability of 0 the Dirichlet's is −∞ and the slope of the
beta's is NaN, as is the gamma's at a shape of 1 and a rate of 0. The Dirichlet's is also −∞ where
rounding moves the sum of the probabilities from 1 by 1e-6.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, multigammaln

from jaxem.numerics.linalg import Factor, lower_factor
from jaxem.numerics.special import betaln, safe_xlog1py, safe_xlogy
from jaxem.numerics.tree import is_traced, pytree


@pytree
class NormalPrior:
    """The normal–inverse-Wishart prior of a mean and a covariance.

    mean | Σ ~ N(`mean`, Σ/`kappa`);  Σ ~ inverse Wishart(`df`, `scale`), for diagonal and spherical
    covariances inverse gamma(df/2, scale/2) per variance. Shapes: mean (d,) or a scalar; scale
    (d, d) full and tied, (d,) diagonal, scalar spherical. For a tied covariance the inverse Wishart
    is counted once and the normal k times. Mean and scale are in the units of the data, scales in
    their squares. Source: Fraley & Raftery 2007.

    Raises ValueError where kappa or df is not above 0, or mean or scale not finite.
    """

    mean: Any
    kappa: Any
    df: Any
    scale: Any

    def __post_init__(self):
        above_zero(self, "kappa", "df")
        finite(self, "mean", "scale")

    @staticmethod
    def from_data(x, k: int, covariance: str = "full"):
        """Fraley & Raftery's default: kappa 0.01, df d + 2, scale the data's covariance / k^(2/d).

        Raises ValueError or TypeError unless x is (n, d) with finite entries, k an int of 1 or more
        and covariance "full", "tied", "diagonal" or "spherical", or the same by mclust's names.
        """
        if not hasattr(x, "dtype"):
            x = np.asarray(x)
        if x.dtype.kind not in "fiub" and not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x has dtype {x.dtype}: pass real numbers")
        if x.ndim != 2 or 0 in x.shape:
            remedy = ": for one feature use x[:, None]" if x.ndim == 1 else ""
            raise ValueError(f"x must have shape (n, d), not empty, got {x.shape}{remedy}")
        if not is_traced(x) and not np.isfinite(np.asarray(x, float)).all():
            raise ValueError("x holds values that are not finite: leave such rows out")
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be an int of 1 or more, got {k!r}")
        word = {"VVV": "full", "EEE": "tied", "VVI": "diagonal", "VII": "spherical"}
        word = word.get(covariance, covariance)
        if word not in ("full", "tied", "diagonal", "spherical"):
            raise ValueError(
                f"covariance must be 'full', 'tied', 'diagonal' or 'spherical', got {covariance!r}"
            )
        x = jnp.asarray(x)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
        d = x.shape[1]
        centred = x - x.mean(0)
        moments = jnp.matmul(centred.T, centred, precision="highest") / x.shape[0]
        shrunk = moments / k ** (2 / d)
        scale = {
            "full": shrunk,
            "tied": shrunk,
            "diagonal": jnp.diag(shrunk),
            "spherical": jnp.trace(shrunk) / d,
        }[word]
        return NormalPrior(x.mean(0), 0.01, d + 2.0, scale)


@pytree
class NormalWishartPrior:
    """A prior of full precision matrices, whatever structure their posterior has.

    mean | Λ ~ N(`mean`, (`kappa` Λ)⁻¹);  Λ ~ Wishart(`df`, `scale`⁻¹), for every component.

    For `BayesianMixture` alone. Components are then normals with full covariances, and the name of
    a covariance structure restricts their posterior alone: it is one for all components (tied), or
    has a diagonal or spherical scale. These are the updates of scikit-learn's
    BayesianGaussianMixture. With full covariances it is the same prior as a `NormalPrior`, under
    which the other structures are those of the covariances themselves. Shapes as there: mean (d,)
    or a scalar, scale (d, d), (d,) or a scalar, in the same units.

    Raises ValueError where kappa or df is not above 0, or mean or scale not finite. Source: Bishop
    2006, section 10.2.
    """

    mean: Any
    kappa: Any
    df: Any
    scale: Any

    def __post_init__(self):
        above_zero(self, "kappa", "df")
        finite(self, "mean", "scale")


@pytree
class GammaPrior:
    """rate ~ gamma(`shape`, `rate`), for every rate of `Poisson` or `Exponential`.

    Both are scalars or (d,); `rate` is in the units of the data. Raises ValueError where one is not
    above 0. Source: DeGroot 1970, chapter 9.
    """

    shape: Any
    rate: Any

    def __post_init__(self):
        above_zero(self, "shape", "rate")

    def log_density(self, value):
        """The sum of a·log b − log Γ(a) + (a−1) log value − b·value over all entries of value
        (k, d)."""
        a, b = jnp.asarray(self.shape, value.dtype), jnp.asarray(self.rate, value.dtype)
        return jnp.sum(a * jnp.log(b) - gammaln(a) + safe_xlogy(a - 1, value) - b * value)


@pytree
class BetaPrior:
    """probability ~ beta(`a`, `b`), for every probability of `Bernoulli`.

    Both are scalars or (d,). Raises ValueError where one is not above 0. Source: DeGroot 1970,
    chapter 9.
    """

    a: Any
    b: Any

    def __post_init__(self):
        above_zero(self, "a", "b")

    def log_density(self, value):
        """The sum of the log beta density over all entries of value (k, d)."""
        a, b = jnp.asarray(self.a, value.dtype), jnp.asarray(self.b, value.dtype)
        logs = safe_xlogy(a - 1, value) + safe_xlog1py(b - 1, -value)
        return jnp.sum(logs - betaln(a, b))


@pytree
class DirichletPrior:
    """A probability vector ~ symmetric Dirichlet(`concentration`).

    concentration: a scalar; 1 for a uniform density. Raises ValueError where it is an array or not
    above 0. Source: DeGroot 1970, chapter 9.
    """

    concentration: Any

    def __post_init__(self):
        above_zero(self, "concentration")
        if np.ndim(self.concentration):
            raise ValueError(
                f"concentration must be one number, got shape {np.shape(self.concentration)}"
            )

    def log_density(self, probs, levels=None):
        """The sum of the log density over all vectors, probs (..., v).

        `levels`, an integer array that broadcasts to (...), gives the length of vectors padded with
        zeros; the padding is left out. Raises ValueError for a concentration that is an array.
        """
        v = probs.shape[-1]
        levels = jnp.asarray(v if levels is None else levels, jnp.int32)
        alpha = jnp.asarray(self.concentration, probs.dtype)
        if alpha.ndim:
            raise ValueError(f"concentration must be one number, got shape {alpha.shape}")
        real = jnp.arange(v) < levels[..., None]
        constant = gammaln(alpha * levels) - levels * gammaln(alpha)
        logs = jnp.where(real, safe_xlogy(alpha - 1, jnp.where(real, probs, 1)), 0).sum(-1)
        return jnp.sum(constant + logs)


@pytree
class GammaConjugatePrior:
    """The conjugate prior of a gamma family's shape and rate, as pseudo-observations.

    log density = `count` · (shape·log rate − log Γ(shape) + (shape−1)·`mean_log` − rate·`mean`),
    proper when mean_log < log mean, and without its normalising constant, which has no closed form.
    All three are scalars or (d,), count in units of weight. Raises ValueError where count or mean
    is not above 0 or mean_log not below log mean. Source: Diaconis & Ylvisaker 1979 for the
    construction.
    """

    count: Any
    mean: Any
    mean_log: Any

    def __post_init__(self):
        above_zero(self, "count", "mean")
        if not is_traced(self) and not np.all(self.mean_log < np.log(self.mean)):
            raise ValueError(
                f"GammaConjugatePrior needs mean_log below log(mean) = {np.log(self.mean)}, the "
                f"most that positive numbers of that mean can have, got {self.mean_log!r}"
            )

    def log_density(self, shape, rate):
        """The sum over all entries of shape and rate (k, d), without the normalising constant."""
        per_unit = shape * jnp.log(rate) - gammaln(shape) + (shape - 1) * self.mean_log
        return jnp.sum(self.count * (per_unit - rate * self.mean))


@pytree
class CoefficientPrior:
    """A normal prior of the coefficients of a regression, independent, for every component.

    coefficient_j ~ N(`mean`_j, 1/`precision`_j). Shapes: both broadcast to (1 + p,), with the
    intercept first where there is one, in the units of the data. A precision of 0: no prior. Raises
    ValueError where a precision is below 0, or precision or mean not finite. Source: as ridge
    regression, Hoerl & Kennard 1970.
    """

    precision: Any
    mean: Any = 0.0

    def __post_init__(self):
        finite(self, "precision", "mean")
        if not is_traced(self.precision) and not np.all(np.asarray(self.precision) >= 0):
            raise ValueError(
                f"CoefficientPrior needs precision of 0 or more, got {self.precision!r}: that of a "
                "variance v is 1/v"
            )

    def log_density(self, coefficients):
        """The sum over all entries of coefficients (..., 1 + p) with a precision above 0."""
        precision = jnp.broadcast_to(
            jnp.asarray(self.precision, coefficients.dtype), coefficients.shape[-1:]
        )
        away = coefficients - jnp.asarray(self.mean, coefficients.dtype)
        proper = precision > 0
        constant = jnp.log(jnp.where(proper, precision, 1) / (2 * jnp.pi))
        each = jnp.where(proper, constant, 0) - precision * jnp.square(away)
        return 0.5 * jnp.sum(each)


def above_zero(prior, *names) -> None:
    """ValueError unless each of these hyperparameters, as far as known, is finite and above 0."""
    for name in names:
        value = getattr(prior, name)
        if is_traced(value):
            continue
        values = np.asarray(value)
        if values.dtype.kind not in "fiu" or not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(
                f"{type(prior).__name__} needs {name} above 0 and finite, got {value!r}"
            )


def finite(prior, *names) -> None:
    """ValueError unless each of these hyperparameters, as far as known, has finite numbers."""
    for name in names:
        value = getattr(prior, name)
        if is_traced(value):
            continue
        values = np.asarray(value)
        if values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
            raise ValueError(f"{type(prior).__name__} needs {name} finite, got {value!r}")


def require_kind(owner, *kinds) -> None:
    """TypeError unless the `prior` of a model is None or of one of these classes."""
    prior = owner.prior
    if prior is not None and not isinstance(prior, kinds):
        names = " or ".join(f"jaxem.{kind.__name__}(...)" for kind in kinds)
        raise TypeError(
            f"the prior of {type(owner).__name__} must be {names}, or None, got {prior!r}"
        )


def require_proper(prior, d: int, axes: int, whole: bool) -> None:
    """ValueError unless a prior of a normal, as far as known, has a density in d dimensions. axes:
    the most of its scale, 2 of full covariances, 1 of diagonal and 0 of spherical ones. whole: it
    is of a full covariance or precision matrix."""
    if is_traced(prior):
        return
    least, df, scale = (d - 1 if whole else 0), np.asarray(prior.df), np.asarray(prior.scale)
    most = {"mean": 1, "scale": axes if d > 1 else 2}
    for name, axes_of_it in most.items():
        shapes = [(d,) * i for i in range(axes_of_it + 1)]
        if np.shape(getattr(prior, name)) not in shapes:
            known = ("spherical", "diagonal", "full")[axes]
            accepted = " or ".join(f"shape {shape}" if shape else "a number" for shape in shapes)
            raise ValueError(
                f"{type(prior).__name__} has {name} of shape {np.shape(getattr(prior, name))}, the "
                f"data have {d} features and the covariances are {known}: give {accepted}, as "
                f"jaxem.NormalPrior.from_data(x, k, {known!r}) does"
            )
    if not np.all(df > least):
        raise ValueError(
            f"{type(prior).__name__} needs df > {least}, got {prior.df}: a usual choice is d + 2"
        )
    wide = scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale, (d,)))
    if not np.all(np.isfinite(wide)) or not np.all(np.linalg.eigvalsh(wide) > 0):
        raise ValueError(
            f"the scale of {type(prior).__name__} must be positive definite: give variances above "
            "0, such as jaxem.NormalPrior.from_data(x, k).scale"
        )


def inverse_wishart(df, scale, covariance):
    """log inverse-Wishart density of (..., d, d) covariances, summed over the batch."""
    d = covariance.shape[-1]
    df = jnp.asarray(df, covariance.dtype)
    constant = df / 2 * Factor(scale).log_det - df * d / 2 * jnp.log(2.0) - multigammaln(df / 2, d)
    factor = Factor(covariance)
    root = jnp.broadcast_to(lower_factor(jnp.asarray(scale)), covariance.shape)
    trace = factor.mahalanobis(root).sum(-1)
    return jnp.sum(constant - (df + d + 1) / 2 * factor.log_det - trace / 2)


def inverse_gamma(df, scale, variance):
    """log density of variance ~ inverse gamma(df/2, scale/2), summed over all entries."""
    a = jnp.asarray(df, variance.dtype) / 2
    b = jnp.asarray(scale, variance.dtype) / 2
    return jnp.sum(a * jnp.log(b) - gammaln(a) - (a + 1) * jnp.log(variance) - b / variance)
