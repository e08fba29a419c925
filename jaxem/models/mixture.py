"""Finite mixtures over any bank of components; the component of some units may be known."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.data.data import (
    given_response,
    labels_of,
    of_components,
    of_rows,
    rows_of_units,
    shapes_of_components,
    unit_of_rows,
    with_components,
    within_units,
    without_gate,
)
from jaxem.data.options import integer
from jaxem.models.gate import SoftmaxGate
from jaxem.models.mixing import ConstantWeights, GateWeights
from jaxem.models.mixture_domain import MixtureDomain
from jaxem.models.mixture_pass import fused_pass, with_labels
from jaxem.models.noise import (
    NoiseWeights,
    UniformNoise,
    check_noise,
    volume_of_rows,
    with_noise,
)
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import pytree
from jaxem.passes.collect import collect
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import safe
from jaxem.protocol.derived import whitened
from jaxem.protocol.model import Bank, Model, name_of
from jaxem.protocol.priors import DirichletPrior, require_kind
from jaxem.protocol.starts import Start, fill_empty
from jaxem.protocol.units import inward, outward, standardized
from jaxem.wrappers.adopted import AdoptedBank


class MixturePosterior(NamedTuple):
    """responsibilities (n, k); components: the bank's posterior given each component."""

    responsibilities: Any
    components: Any


class MixtureStatistics(NamedTuple):
    count: Any
    components: Any


class FiniteMixture(Model):
    """The base of mixtures over a bank: `Mixture` and `BayesianMixture`.

    A mixture has `components` and `k`. It defines `bank`, whose params are `params.components`, and
    `mixing`, its weights in a form of `models.mixing`.
    """

    gate = None
    """The `SoftmaxGate` of the weights, or None."""

    noise = None
    """The `UniformNoise`, or None."""

    @property
    def mixing(self):
        """The mixing weights."""
        raise NotImplementedError

    def __post_init__(self):
        object.__setattr__(self, "k", integer(self.k, "k", 1))
        if isinstance(self.components, (type, str)):
            name = "Normal" if isinstance(self.components, str) else self.components.__name__
            raise TypeError(
                f"components must be a bank of components, got {self.components!r}: "
                f"write {type(self).__name__}({name}(...), k={self.k})"
            )
        if not isinstance(self.components, Model) and not defines(self.components, "posterior"):
            raise TypeError(
                f"components must be one bank for all k components, got {self.components!r:.60}: "
                f"write {type(self).__name__}(Normal(), k={self.k})"
            )
        if not isinstance(self.components, Model):
            object.__setattr__(self, "components", AdoptedBank(self.components))
        if not isinstance(self.components, Bank):
            name = type(self.components).__name__
            raise TypeError(
                f"components must be a bank of components, got {name}, which is one model: "
                f"lift it with jaxem.Each({name}(...))"
            )

    @property
    def bank(self):
        """The bank that the mixture is over."""
        return self.components

    @property
    def domain(self):
        inner = self.components.domain
        return MixtureDomain(
            inner.words,
            components=self.k,
            noise=self.noise,
            remedy=inner.remedy,
            discrete=inner.discrete,
            bank=self.bank,
            gate=self.gate,
        )

    def closed(self, x):
        return self.bank.closed(shapes_of_components(x))

    def init(self, key, x, weights):
        return Start.default(self, x).params(self, key, x, weights)

    def from_responsibilities(self, key, x, responsibilities, weights):
        """A start: the M-step, or the bank's `init`, at given responsibilities (n, k), or (n, k +
        1) with noise."""
        rows, labels = of_components(x), labels_of(x)
        responsibilities = self.mixing.completed(responsibilities)
        if labels is not None:
            columns = jnp.arange(responsibilities.shape[1])
            known = (labels[:, None] == columns).astype(responsibilities.dtype)
            responsibilities = jnp.where(labels[:, None] >= 0, known, responsibilities)
            responsibilities = fill_empty(responsibilities, weights)
        q = responsibilities[:, : self.k] * weights[:, None]
        components = self.bank.init(key, rows, of_rows(x, q))
        return self.mixing.started(x, responsibilities, weights, components)

    def embed(self, x):
        points = self.components.embed(of_components(x))
        if points is None:
            return None
        return within_units(x, points) / jnp.reshape(rows_of_units(x, points.dtype), (-1, 1))

    def elemental(self, key, x, weights, k):
        """The squared distances (n, k) of units to components that are fitted to few of them."""
        distances = self.bank.elemental(
            key, of_components(x), of_rows(x, weights), k, unit_of_rows(x)
        )
        return within_units(x, distances)

    def separated(self, params, x, weights):
        """Which components of the bank have coefficients without a finite estimate, (k,)."""
        return self.bank.separated(params.components, of_components(x), of_rows(x, weights))

    def _defines(self, name):
        is_of_bank = name in ("elemental", "separated")
        return defines(self.bank, name) if is_of_bank else super()._defines(name)

    def known_labels(self, x):
        return labels_of(x)

    def log_joint(self, params, x):
        return self._joint(params, x)[1]

    def posterior(self, params, x):
        inner, joint = self._joint(params, x)
        responsibilities, evidence = normalize(joint)
        return MixturePosterior(responsibilities, inner), evidence

    def statistics(self, params, x, q, weights):
        r = of_rows(x, q.responsibilities[:, : self.k] * weights[:, None])
        inner = self.bank.statistics(params.components, of_components(x), q.components, r)
        count = self.mixing.statistics(params, x, q.responsibilities, weights)
        return MixtureStatistics(count, inner)

    def _size_of_terms(self, params, stats):
        return self.bank._size_of_terms(params.components, stats.components)

    def fused(self, x):
        return fused_pass(self, x, MixtureStatistics)

    def response(self, params, x):
        """The mean of the response of every row, Σ_j p(j)·mean of component j: (n,), or (n, m)
        of several. p(j): the posterior where the data hold responses, else the mixing weights;
        with noise, given that the row is no noise. TypeError where the components have no
        `mean(params, x) -> (n, k)` or (n, k, m)."""
        if not defines(self.bank, "mean"):
            raise TypeError(
                f"{name_of(self.bank)} has no response to predict: it defines no mean(params, x) "
                "-> (n, k); use predict or score_samples"
            )
        if given_response(x):
            r = self.posterior(params, x)[0].responsibilities
        else:
            levels = self.mixing.levels(params, x)
            n = jax.tree.leaves(x)[0].shape[0]
            r = jnp.broadcast_to(jnp.exp(levels), (n, levels.shape[-1]))
        if r.shape[1] > self.k:
            r = r[:, : self.k] / safe(r[:, : self.k].sum(1, keepdims=True))
        r = of_rows(x, r)
        means = jax.tree.leaves(self.bank.mean(params.components, of_components(x)))
        found = [(r[:, :, None] * m.reshape(*m.shape[:2], -1)).sum(1) for m in means]
        is_one = len(found) == 1 and means[0].ndim == 2
        return found[0][:, 0] if is_one else jnp.concatenate(found, 1)

    def maximize(self, params, stats):
        components = self.bank.maximize(params.components, stats.components)
        return self.mixing.maximized(params, stats.count, components)

    def standardize(self, x, weights):
        inner = standardized(self.bank, of_components(x), of_rows(x, weights))
        return inner._replace(
            model=dataclasses.replace(self, components=inner.model),
            data=with_components(x, inner.data),
            log_volume=_volume(x, inner.log_volume, weights),
        )

    def inward(self, units, params):
        components = inward(self.bank, units, params.components)
        return dataclasses.replace(params, components=components)

    def outward(self, units, params):
        components = outward(self.bank, units, params.components)
        return dataclasses.replace(params, components=components)

    def _joint(self, params, x):
        labels = labels_of(x)
        inner, log_density = self.bank.posterior(params.components, of_components(x))
        joint = self.mixing.joint(params, x, within_units(x, log_density))
        return inner, with_labels(joint, labels, 1)


def _volume(x, log_volume, weights):
    """The log volume of units from that of rows: one number or one a row. Of groups of rows one
    number is their mean, so that its sum is that of all rows."""
    if jnp.ndim(log_volume):
        return within_units(x, log_volume)
    rows = rows_of_units(x, weights.dtype)
    if jnp.ndim(rows) == 0:
        return log_volume
    return log_volume * (weights * rows).sum() / safe(weights.sum())


WARM_UP = 40
"""EM steps of the mixture with constant weights before a random start of a gate."""


@pytree(static=("k",))
class Mixture(FiniteMixture):
    """A mixture of k components: log p(x) = log Σ_k weights_k · p(x | component k).

    Args:
      components: a bank, such as `Normal()` or `Each(model)`.
      k: the number of components, an int of 1 or more.
      prior: a `DirichletPrior` of the weights, or None for maximum likelihood.
      gate: a `SoftmaxGate`: weights that depend on the covariates of the units,
        `Data(x, gate=...)`; params are then `GatedMixtureParams`. None: constant weights.
      noise: a `UniformNoise`, a further component that k does not count. Params are then
        `NoiseMixtureParams`, a prior is of all k + 1 weights, predictions and labels are k for
        noise, and responsibilities (n, k + 1). A volume from data is in `result.model`.

    Data: what the bank takes, or `Data`. Rows of one group of `Data(x, groups=...)` share their
    component: log p(group) = log Σ_k weights_k · Π_rows p(row | component k). With noise the sum
    has one more term, noise_weight / V, for groups noise_weight / V^rows.

    With a gate a random start is 40 EM steps of the mixture with constant weights, and then a few
    steps of the gate at the responsibilities so found.

    Raises TypeError where components is not a bank, k not an int, gate not a gate or noise no
    noise, ValueError where k < 1, and for a prior or noise beside a gate. Source: McLachlan &
    Peel 2000.
    """

    components: Any
    k: int
    prior: DirichletPrior | None = None
    gate: SoftmaxGate | None = None
    noise: UniformNoise | None = None

    def __post_init__(self):
        super().__post_init__()
        require_kind(self, DirichletPrior)
        check_noise(self)
        if self.gate is None:
            return
        if not isinstance(self.gate, SoftmaxGate):
            got = self.gate.__name__ if isinstance(self.gate, type) else repr(self.gate)[:60]
            raise TypeError(
                f"gate must be jaxem.SoftmaxGate(...) or None, got {got}: its covariates belong to "
                "the data, jaxem.Data(x, gate=...)"
            )
        if self.prior is not None:
            raise ValueError(
                "prior is of constant weights, and gate makes them depend on covariates: give the "
                "gate its own, jaxem.SoftmaxGate(prior=...), and leave prior=None"
            )

    @property
    def mixing(self):
        if self.gate is not None:
            return GateWeights(self.k, self.gate)
        if self.noise is not None:
            return NoiseWeights(self.k, self.prior, self.noise)
        return ConstantWeights(self.k, self.prior)

    @property
    def informed(self):
        is_known = not isinstance(self.noise, UniformNoise) or self.noise.volume is not None
        return None if is_known else self._informed

    def _informed(self, x, weights):
        """The model with the volume of its noise from the data."""
        rows, weights = of_components(x), of_rows(x, weights)
        return dataclasses.replace(self, noise=volume_of_rows(self, rows, weights))

    def refined(self, key, x, responsibilities, weights):
        """With a gate, those after some EM steps of the mixture without it; else those given."""
        if self.gate is None or not self.closed(x):
            return responsibilities
        plain, data = Mixture(self.components, self.k), without_gate(x)
        begin = plain.from_responsibilities(key, data, responsibilities, weights)

        def step(_, params):
            return plain.maximize(params, collect(plain, params, data, weights).statistics)

        params = jax.lax.fori_loop(0, WARM_UP, step, begin)
        return plain.posterior(params, data)[0].responsibilities

    def restricted(self, held):
        """Any restriction of weights is exact: `Restricted.restrict` changes the free ones."""
        from jaxem.protocol.restriction import restricted

        of_weights = self.mixing.restricted(held)
        inner = restricted(self.components, held.components)
        if inner is None:
            return None

        def maximize(params, stats):
            components = inner(params.components, stats.components)
            return of_weights(params, stats.count, components)

        return maximize

    def standardize(self, x, weights):
        found = super().standardize(x, weights)
        if self.noise is not None:
            return with_noise(self, found, x, weights)
        if self.gate is None:
            return found
        mixing, data, units = self.mixing.standardized(found.data, weights, found.units)
        model = dataclasses.replace(found.model, gate=mixing.gate)
        return found._replace(model=model, data=data, units=units)

    def inward(self, units, params):
        if self.noise is not None and not jax.tree.leaves(units):
            return params
        return self.mixing.inward(units, params, lambda u, p: inward(self.bank, u, p))

    def outward(self, units, params):
        if self.noise is not None and not jax.tree.leaves(units):
            return params
        return self.mixing.outward(units, params, lambda u, p: outward(self.bank, u, p))

    def spaces(self, params):
        return self.mixing.spaces(self.components.spaces(params.components))

    def whitened(self, params, step):
        components_step = whitened(self.components, params.components, step.components)
        root = jnp.sqrt(self.mixing.shares(params))

        def times_weight(leaf):
            shape = leaf.shape[:1] + (1,) * (leaf.ndim - 1)
            return leaf * root.reshape(shape) if shape[:1] == (self.k,) else leaf

        return self.mixing.whitened(params, step, jax.tree.map(times_weight, components_step))

    def smooth_map(self):
        """The derivative of the EM map, where components are separate; else None."""
        is_plain = type(self) is Mixture and self.gate is None and self.noise is None
        if not is_plain or not self.components.separate:
            return None
        from jaxem.models.jacobian import KnownJacobian  # only gradients use it

        return KnownJacobian(self)

    def log_prior(self, params):
        inner, prior = self.components.log_prior(params.components), self.mixing.log_prior(params)
        return inner if prior is None else inner + prior

    def degenerate(self, params):
        vanished = self.mixing.vanished(params)
        return jnp.any(self.components.degenerate(params.components)) | vanished

    def sample(self, key, params, n: int, gate=None):
        """n draws; gate (n, g): the covariates of every draw, with a gate alone."""
        which, draw = jax.random.split(key)
        z = self.mixing.drawn(which, params, n, gate)
        if self.noise is None:
            return self.components.sample(draw, params.components, z)
        noise = self.noise.sample(jax.random.fold_in(draw, 1), n)
        found = self.components.sample(draw, params.components, jnp.minimum(z, self.k - 1))
        return jnp.where(z[:, None] < self.k, found, noise)
