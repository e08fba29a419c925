"""The base of all normal components: params, statistics, and the interface of a structure."""

from typing import Any, NamedTuple

from jaxem.numerics.tree import pytree
from jaxem.passes.linear import Linear
from jaxem.protocol.counts import safe


@pytree(eq=False)
class NormalParams:
    """mean (k, d); covariance (k, d, d), but (d, d) tied, (k, d) diagonal, EEI, VEI and EVI, (k,)
    spherical and EII. In the units of the data, and their squares."""

    mean: Any
    covariance: Any


class NormalStatistics(NamedTuple):
    """Moments about the mean of params: Σw (k,), Σw·c (k, d), Σw·c cᵀ by structure."""

    count: Any
    first: Any
    second: Any


class Structure:
    """A covariance structure: one object, in its own file, with a name in `STRUCTURES`.

    It has all methods of `Full`, whose docstrings describe them. Shapes: `centred` (k, d, n)
    with the units minor, `weights` (k, n), `count` (k,), `v` (k, d); a covariance has the shape
    of its structure.
    """

    space: Any
    """The `Space` of its covariances."""

    form: Any
    """Its `Form`."""

    whole: bool
    """Whether covariances are matrices, with an inverse Wishart prior; that of variances is inverse
    gamma."""

    scale_axes: int
    """The most axes of the scale of a prior."""

    shared = False
    """Whether all components have one covariance, without an axis of components."""

    joint = False
    """Whether components have covariances of their own with common parts (`common.CommonParts`)."""

    one_variance = False
    """Whether a covariance is one number for all features."""

    common_scale = False
    """Whether data must be standardised with one scale for all features to keep this structure."""

    def counted(self, count, scatter, d, whole_prior):
        """The number of units from which every precision is estimated, and their scatter.

        whole_prior: whether the prior is of a whole matrix for every component; a shared precision
        is then estimated from the mean over components.
        """
        return count, scatter

    def shared_by(self, k, d):
        """How many of the k components, or of the d features, share one precision."""
        return 1


class Form:
    """Normal log densities as linear functions of features: two matrix products a pass.

    It has `size(d)`, the number of features m for d columns of data; `one(d)`, the index of the
    feature that is 1; `features(x)`, (m, n) from (d, n); `coefficients(mean, covariance, level)`,
    (k, m), with level (k,) added to every log density; `moments(mean, sums)`, the moments about the
    means from Σ w · features (m, k); `terms(mean, covariance)`, (k,), the size of the terms that
    cancel to a log density, on average over the units of a component.
    """

    def is_faster(self, d):
        """Whether the matrix products are faster than a pass over centred rows."""
        return True


def linear_form(bank, x, form, covariance) -> Linear | None:
    """The `Linear` form of a normal bank with `_framed` data for data shaped like x (n, d), None
    where it is no faster. covariance(params): what `form` takes as that of its components."""
    d = x.shape[1]
    if not form.is_faster(d):
        return None
    return Linear(
        size=form.size(d),
        one=form.one(d),
        room=bank.frame is None,
        columns=lambda x: bank._framed(x).T,
        features=form.features,
        coefficients=lambda p, level: form.coefficients(p.mean, covariance(p), level),
        base=lambda x: None,
        statistics=lambda p, sums: NormalStatistics(*form.moments(p.mean, sums)),
        terms=lambda p: form.terms(p.mean, covariance(p)).max(),
    )


def centred_moments(structure, mean, stats):
    """The means (k, d) of the data and the scatter about them, from the moments about `mean`."""
    shift = stats.first / safe(stats.count)[:, None]
    return mean + shift, stats.second - structure.outer(stats.count, shift)


def with_prior_mean(structure, prior, count, mean, scatter):
    """Means and scatter with the terms that a normal prior of the means adds to both."""
    shrink = count / (count + prior.kappa)
    away = mean - prior.mean
    scatter = scatter + structure.outer(prior.kappa * shrink, away)
    return prior.mean + shrink[:, None] * away, scatter
