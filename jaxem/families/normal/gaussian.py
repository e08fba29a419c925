"""What all normal components stand on: params, statistics, and what a covariance structure is."""

from typing import Any, NamedTuple

from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import safe


@pytree(eq=False)
class NormalParams:
    """mean (k, d); covariance (k, d, d) full, (d, d) tied, (k, d) diagonal, (k,) spherical."""

    mean: Any
    covariance: Any


class NormalStatistics(NamedTuple):
    """Moments about the mean that params hold: Σw (k,), Σw·c (k, d), Σw·c cᵀ by structure."""

    count: Any
    first: Any
    second: Any


class Structure:
    """A covariance structure: one object, in a file of its own, by its name in `STRUCTURES`.

    It has all methods of `Full`, whose docstrings say what they return. Shapes: `centred` (k, d, n)
    with the units minor, `weights` (k, n), `count` (k,), `v` (k, d); a covariance has the shape
    that its structure names.
    """

    space: Any
    """The `Space` of its covariances."""

    form: Any
    """Its `Form`."""

    whole: bool
    """It is of matrices: their prior is inverse Wishart, that of variances inverse gamma."""

    shared = False
    """One covariance is for all components, without an axis of its own for them."""

    common_scale = False
    """Data keep this structure only if one scale is for all features."""

    def seen(self, count, scatter, d, whole_prior):
        """The units that every precision has seen, and their scatter.

        whole_prior: it is of a whole matrix for every component, and what is shared sees the mean.
        """
        return count, scatter

    def shared_by(self, k, d):
        """How many of the k components, or of the d features, have one precision between them."""
        return 1


class Form:
    """Normal log densities as linear functions of features: two matrix products a pass.

    It has `size(d)`, how many features there are of d of the data, and `one(d)`, the feature that
    is 1; `features(x)`, (m, n) from (d, n); `coefficients(mean, covariance, level)`, (k, m), with
    level (k,) added to every log density; `moments(mean, sums)`, the moments about the means from
    Σ w · features (m, k); `terms(mean, covariance)`, (k,), the size of the terms of which a log
    density is the small difference, on average over a component's own units.
    """

    def pays(self, d):
        """Whether the products cost less than centred rows."""
        return True


def centred_moments(structure, mean, stats):
    """The means (k, d) of the data and the scatter about them, from the moments about `mean`."""
    shift = stats.first / safe(stats.count)[:, None]
    return mean + shift, stats.second - structure.outer(stats.count, shift)


def with_prior_mean(structure, prior, count, mean, scatter):
    """Means and scatter with what a normal prior of the means adds to both."""
    shrink = count / (count + prior.kappa)
    away = mean - prior.mean
    scatter = scatter + structure.outer(prior.kappa * shrink, away)
    return prior.mean + shrink[:, None] * away, scatter
