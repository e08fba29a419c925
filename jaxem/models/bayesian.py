"""Variational Bayes for mixtures: q over weights and components, and the ELBO."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma

from jaxem.data.data import labels_of, of_components, of_rows, within_units
from jaxem.models.mixing import ConstantWeights
from jaxem.models.mixture import FiniteMixture
from jaxem.models.mixture_pass import with_labels
from jaxem.numerics import divergence
from jaxem.numerics.special import safe_entr
from jaxem.numerics.tree import is_traced, pytree
from jaxem.passes.chunks import total_of
from jaxem.protocol.capabilities import Conjugate, has
from jaxem.protocol.model import name_of
from jaxem.protocol.posterior import expectation
from jaxem.protocol.spaces import ABOVE_ZERO
from jaxem.protocol.units import inward

WEIGHTS = ("dirichlet", "dirichlet_process")


@pytree(eq=False)
class BayesianMixtureParams:
    """The variational posterior q(π) Π_k q(component k).

    concentration: (k,), q(π) = Dirichlet(concentration); of a Dirichlet process a pair (a, b) of
    (k,), q(v_k) = beta(a_k, b_k). components: the posterior's params of the bank.
    """

    concentration: Any
    components: Any

    @property
    def weights(self):
        """E[π] (k,), summing to 1; of a Dirichlet process scaled to do so."""
        if not isinstance(self.concentration, tuple):
            return self.concentration / self.concentration.sum(-1, keepdims=True)
        a, b = self.concentration
        remaining = jnp.cumprod(b / (a + b), axis=-1)
        share = a / (a + b) * jnp.concatenate([jnp.ones_like(a[..., :1]), remaining[..., :-1]], -1)
        return share / share.sum(-1, keepdims=True)


class Elbo(NamedTuple):
    """The evidence lower bound and its terms, in nats; each a scalar.

    value = energy + entropy − weights − components ≤ log p(x). energy: E_q[log p(x, z | π, θ)].
    entropy: H(q(z)). weights: KL(q(π) ‖ p(π)). components: Σ_k KL(q(θ_k) ‖ p(θ_k)).
    """

    value: Any
    energy: Any
    entropy: Any
    weights: Any
    components: Any


@dataclasses.dataclass(frozen=True)
class RandomWeights(ConstantWeights):
    """The weights of a `BayesianMixture`: those of their posterior."""

    mixture: Any

    def levels(self, params, x):
        return self.mixture.log_weights(params)

    def params(self, count, components):
        return self.mixture.assembled(count, components)


@pytree(static=("k", "weights"))
class BayesianMixture(FiniteMixture):
    """A mixture of at most k components by variational Bayes: unused ones stay at their prior.

    `fit` maximises the ELBO without any term dropped: `result.objective` ≤ log p(x), by which
    models of any k and prior can be compared. `result.log_likelihood` is the sum of its terms that
    depend on the units, energy + entropy; `elbo` returns all terms. `log_predictive` and `sample`
    are of the predictive density.

    Args:
      components: `Normal`, `Poisson`, `Bernoulli`, `Categorical`, `Multinomial`, or a `Product` of
        them, with their priors. Without a prior, `fit` takes a vague one at the data's location and
        scale, which is in `result.model`; that of probabilities is uniform.
      k: the most components, an int of 1 or more.
      weights: "dirichlet", π ~ Dirichlet(concentration, …); or "dirichlet_process", π_k = v_k
        Π_{j<k} (1 − v_j) with v_k ~ beta(1, concentration), of which q uses the first k (Blei &
        Jordan 2006).
      concentration: above 0; small values leave more components unused. None: 1/k.

    Raises TypeError or ValueError for other arguments. Sources: Attias 2000;
    Bishop 2006, section 10.2.
    """

    components: Any
    k: int
    weights: str = "dirichlet"
    concentration: Any = None

    def __post_init__(self):
        super().__post_init__()
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {WEIGHTS}, got {self.weights!r}")
        if self.concentration is None or is_traced(self.concentration):
            return
        value = np.asarray(self.concentration)
        if value.ndim or value.dtype.kind not in "fiu":
            raise TypeError(f"concentration must be one number above 0, got {value!r}")
        if not 0 < value < np.inf:
            raise ValueError(f"concentration must be above 0, got {self.concentration!r}")

    @property
    def bank(self):
        if not has(self.components, Conjugate):
            raise TypeError(
                f"{name_of(self.components)} has no conjugate posterior: BayesianMixture takes "
                "Normal, Poisson, Bernoulli, Categorical, Multinomial, or a Product of them"
            )
        return self.components.variational()

    @property
    def mixing(self):
        return RandomWeights(self.k, None, self)

    @property
    def informed(self):
        return None if self.components.informed is None else self._informed

    def _informed(self, x, weights):
        """The model with a prior from the data where the components have none."""
        inner = self.components.informed(of_components(x), of_rows(x, weights), self.k)
        return BayesianMixture(inner, self.k, self.weights, self.concentration)

    def log_weights(self, params):
        """E[log π] at params, (k,)."""
        if self.weights == "dirichlet":
            return digamma(params.concentration) - digamma(params.concentration.sum())
        a, b = params.concentration
        digamma_of_sum = digamma(a + b)
        log_remaining = jnp.cumsum(digamma(b) - digamma_of_sum)
        return (
            digamma(a)
            - digamma_of_sum
            + jnp.concatenate([jnp.zeros_like(log_remaining[:1]), log_remaining[:-1]])
        )

    def assembled(self, count, components):
        """Params from count (k,), the weight of every component, and the params of the bank."""
        prior = self._concentration
        if self.weights == "dirichlet":
            return BayesianMixtureParams(count + prior, components)
        later = jnp.cumsum(count[::-1])[::-1] - count
        return BayesianMixtureParams((1 + count, prior + later), components)

    def log_prior(self, params):
        """−KL(q(π) ‖ p(π)) − Σ_k KL(q(θ_k) ‖ p(θ_k))."""
        return self.bank.log_prior(params.components) - self._divergence(params)

    def elbo(self, params, x, weights=None) -> Elbo:
        """The bound at params, term by term, with the q(z) that maximises it: an `Elbo`, in nats.

        x: the data, (n, d). weights: (n,), one per unit, or None for 1.
        """
        x = jax.tree.map(jnp.asarray, x)
        n = jax.tree.leaves(x)[0].shape[0]
        inner = self.standardize(x, jnp.ones(n) if weights is None else jnp.asarray(weights))
        model, data = inner.model, inner.data
        standard = inward(self, inner.units, params)
        q, evidence = model.posterior(standard, data)
        w = jnp.ones_like(evidence) if weights is None else jnp.asarray(weights, evidence.dtype)
        r, joint = q.responsibilities, model.log_joint(standard, data)
        energy = jnp.where(w > 0, w * expectation(r, joint), 0).sum()
        energy = energy - total_of(w, w.sum(), inner.log_volume)
        entropy = jnp.where(w > 0, w * safe_entr(r).sum(-1), 0).sum()
        of_weights = self._divergence(params)
        of_components = -self.bank.log_prior(params.components)
        value = energy + entropy - of_weights - of_components
        return Elbo(value, energy, entropy, of_weights, of_components)

    def log_predictive(self, params, x):
        """log of the predictive density E_q[Σ_k π_k p(x | k)] per unit, (n,)."""
        joint = within_units(x, self.bank.predictive(params.components, of_components(x)))
        joint = with_labels(joint + jnp.log(params.weights), labels_of(x), 1)
        return self.domain.outside(x, jax.nn.logsumexp(joint, axis=1))

    def sample(self, key, params, n: int):
        """n draws from the predictive density, each with its own draw of the components."""
        which, draw = jax.random.split(key)
        z = jax.random.categorical(which, jnp.log(params.weights), shape=(n,))
        return self.bank.sample(draw, params.components, z)

    def spaces(self, params):
        concentration = jax.tree.map(lambda _: ABOVE_ZERO, params.concentration)
        return BayesianMixtureParams(concentration, self.bank.spaces(params.components))

    def n_parameters(self, params):
        """Raises NotImplementedError: models are compared by their ELBO, `result.objective`."""
        raise NotImplementedError(
            "a BayesianMixture has no count of parameters: compare models by result.objective, the "
            "ELBO, which pays for them"
        )

    @property
    def _concentration(self):
        return 1 / self.k if self.concentration is None else self.concentration

    def _divergence(self, params):
        """KL(q(π) ‖ p(π))."""
        prior = self._concentration
        if self.weights == "dirichlet":
            return divergence.dirichlet(params.concentration, prior)
        sticks = jnp.stack(params.concentration, axis=-1)
        prior = jnp.stack([jnp.ones_like(jnp.asarray(prior, sticks.dtype)), prior], axis=-1)
        return divergence.dirichlet(sticks, prior)
