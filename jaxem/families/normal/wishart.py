"""Normal components with random means and precisions: normal–Wishart and normal–gamma
posteriors."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.families.normal.gaussian import NormalParams, centred_moments, with_prior_mean
from jaxem.families.normal.moments import centre
from jaxem.numerics import divergence
from jaxem.numerics.special import log_gamma_ratio, log_minus_digamma
from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.model import Bank
from jaxem.protocol.priors import NormalWishartPrior, require_proper
from jaxem.protocol.spaces import ABOVE_ZERO, REAL


@pytree(eq=False)
class NormalPosterior:
    """q(μ, Λ) = N(μ | mean, (mean_precision · Λ)⁻¹) · Wishart(Λ | df, (df · covariance)⁻¹).

    mean (k, d); mean_precision (k,); df (k,), a scalar if tied; covariance (k, d, d) full, (d, d)
    tied, (k, d) diagonal, (k,) spherical: the inverse of the expected precision, E[Λ]⁻¹. Under a
    `NormalPrior` diagonal and spherical precisions are gamma(df/2, df·covariance/2). Mean and
    covariance are in the units of the data, and their squares.
    """

    mean: Any
    mean_precision: Any
    df: Any
    covariance: Any


@pytree
class NormalWishart(Bank):
    """The variational bank of `Normal`: params are a `NormalPosterior`.

    E[log p(x | k)] = log N(x | mean, covariance) + ½ (Σ_j ψ((df−j)/2) − d log(df/2) − d/κ), with
    j = 0 … d−1, and 0 d times where precisions are gamma. Source: Bishop 2006, section 10.2.
    """

    normal: Any

    @property
    def domain(self):
        if self.normal.prior is None:
            return domains.REALS
        return domains.REALS.also(self._check_prior)

    def _check_prior(self, x):
        normal = self.normal
        require_proper(normal.prior, x.shape[1], normal.structure.scale_axes, self._wishart)

    def _name(self):
        return "Normal"

    def variational(self):
        return self

    def init(self, key, x, weights):
        mean, unit = self.normal.middle(x, weights)
        one = jnp.ones_like(mean[:, 0])
        start = NormalPosterior(mean, one, one[0] if self.normal.structure.shared else one, unit)
        return self.maximize(start, self.statistics(start, x, None, weights))

    def posterior(self, params, x):
        q, log_density = self.normal.posterior(_as_normal(params), x)
        return q, log_density + self._level(params)

    def statistics(self, params, x, q, weights):
        return self.normal.statistics(_as_normal(params), x, q, weights)

    def linear(self, x):
        form = self.normal.linear(x)
        if form is None:
            return None

        def coefficients(params, level):
            return form.coefficients(_as_normal(params), level + self._level(params))

        def statistics(params, sums):
            return form.statistics(_as_normal(params), sums)

        return form._replace(
            coefficients=coefficients,
            statistics=statistics,
            terms=lambda params: form.terms(_as_normal(params)),
        )

    def maximize(self, params, stats):
        structure, prior, d = self.normal.structure, self._prior, params.mean.shape[1]
        mean, scatter = centred_moments(structure, params.mean, stats)
        mean, scatter = with_prior_mean(structure, prior, stats.count, mean, scatter)
        counts, scatter = structure.counted(stats.count, scatter, d, self._whole_prior)
        df = prior.df + counts
        scale = structure.as_scale(prior.scale, d) + scatter
        return NormalPosterior(
            mean=mean,
            mean_precision=stats.count + prior.kappa,
            df=df,
            covariance=scale / df.reshape(df.shape + (1,) * (scale.ndim - df.ndim)),
        )

    def log_prior(self, params):
        """−KL(q ‖ prior). A precision that all components share is counted once."""
        structure, prior, (k, d) = self.normal.structure, self._prior, params.mean.shape
        away = (params.mean - prior.mean)[:, :, None]
        distance, log_det = structure.quadratic(params.covariance, away)
        ratio = prior.kappa / params.mean_precision
        of_mean = d * (ratio - 1 - jnp.log(ratio)) + prior.kappa * distance[:, 0]
        scale = jnp.asarray(structure.as_scale(prior.scale, d), params.mean.dtype)
        trace, of_scale = structure.against(scale, params.covariance, d)
        df = jnp.broadcast_to(params.df, (k,))
        each = divergence.wishart(df, log_det, prior.df, of_scale, trace, self._steps(d))
        of_precision = each.sum() / (1 if self._whole_prior else structure.shared_by(k, d))
        return -(of_precision + 0.5 * of_mean.sum())

    def predictive(self, params, x):
        """log of the multivariate t density (diagonal gamma precisions: of d univariate ones)."""
        d, df = x.shape[1], params.df
        v = jnp.broadcast_to(self._freedom(df, d), params.mean_precision.shape)
        spread = df / v * (1 + 1 / params.mean_precision)
        centred = centre(self.normal._framed(x), params.mean)
        if self._is_featurewise:
            size = spread[:, None] * params.covariance
            distance = jnp.square(centred) / (size * v[:, None])[..., None]
            tail = (v + 1)[:, None] / 2 * jnp.log1p(distance).sum(1)
            level = d * log_gamma_ratio(v / 2, 0.5) - d / 2 * jnp.log(math.pi * v)
            return (level[:, None] - tail - 0.5 * jnp.log(size).sum(-1)[:, None]).T
        distance, log_det = self.normal.structure.quadratic(params.covariance, centred)
        level = log_gamma_ratio(v / 2, d / 2) - d / 2 * jnp.log(math.pi * v * spread)
        tail = (v + d)[:, None] / 2 * jnp.log1p(distance / (v * spread)[:, None])
        return (level[:, None] - 0.5 * log_det[:, None] - tail).T

    def sample(self, key, params, z):
        """Draws from the predictive density: a mean and a precision are drawn for every unit."""
        noise, mix = jax.random.split(key)
        d = params.mean.shape[1]
        df = jnp.broadcast_to(params.df, params.mean_precision.shape)
        v = self._freedom(df, d)[z][:, None]
        shape = (z.shape[0], d if self._is_featurewise else 1)
        precision = jax.random.gamma(mix, jnp.broadcast_to(v / 2, shape), dtype=v.dtype) / (v / 2)
        spread = (df * (1 + 1 / params.mean_precision))[z][:, None] / v
        centred = self.normal.sample(noise, _as_normal(params), z) - params.mean[z]
        return params.mean[z] + centred * jnp.sqrt(spread / precision)

    def spaces(self, params):
        return NormalPosterior(REAL, ABOVE_ZERO, ABOVE_ZERO, self.normal.structure.space)

    def embed(self, x):
        return self.normal.embed(x)

    def standardize(self, x, weights):
        inner = self.normal.standardize(x, weights)
        return inner._replace(model=NormalWishart(inner.model))

    def inward(self, units, params):
        return self.normal.inward(units, params)

    def outward(self, units, params):
        return self.normal.outward(units, params)

    @property
    def _prior(self):
        if self.normal.prior is None:
            raise ValueError(
                "Normal in a BayesianMixture needs a prior: fit takes one from the data and keeps "
                "it in result.model; elsewhere pass Normal(prior=jaxem.NormalPrior(...))"
            )
        return self.normal.prior

    @property
    def _whole_prior(self):
        """Whether the prior is of whole precision matrices, one for every component."""
        return isinstance(self.normal.prior, NormalWishartPrior)

    @property
    def _wishart(self):
        """Whether precisions are Wishart matrices, not gamma variables."""
        return self._whole_prior or self.normal.structure.whole

    @property
    def _is_featurewise(self):
        """Whether every feature has a gamma precision of its own."""
        return not self._wishart and not self.normal.structure.one_variance

    def _steps(self, d):
        """j of every row of the Wishart's triangular factor; 0 where precisions are gamma."""
        return list(range(d)) if self._wishart else [0] * d

    def _freedom(self, df, d):
        """Degrees of freedom of the predictive t density."""
        return df - d + 1 if self._wishart else df

    def _level(self, params):
        """E[log p(x | k)] minus the normal log density at `params`, (k,)."""
        d, df = params.mean.shape[1], params.df
        step = jnp.asarray(self._steps(d), df.dtype).reshape(d, *(1,) * df.ndim)
        each = jnp.log1p(-step / df) - log_minus_digamma((df - step) / 2)
        return 0.5 * (each.sum(0) - d / params.mean_precision)


def _as_normal(params):
    return NormalParams(params.mean, params.covariance)
