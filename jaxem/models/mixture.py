"""Finite mixtures over any bank of components; the component of some units may be known."""

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import Precision

from jaxem.data.data import Data, given, labels_of, of_components, with_components
from jaxem.data.options import integer
from jaxem.numerics import tuning
from jaxem.numerics.softmax import normalize, softmax_parts
from jaxem.numerics.tree import pytree
from jaxem.passes.linear import FusedPass
from jaxem.protocol.capabilities import LinearBank, defines, has
from jaxem.protocol.derived import whitened
from jaxem.protocol.domains import Domain, whole
from jaxem.protocol.model import Bank, Model, name_of
from jaxem.protocol.priors import DirichletPrior, require_kind
from jaxem.protocol.spaces import SIMPLEX
from jaxem.protocol.starts import Start, fill_empty
from jaxem.protocol.status import FitWarning
from jaxem.protocol.units import inward, outward, standardized
from jaxem.wrappers.adopted import AdoptedBank

SUM_OVER_UNITS = (((1,), (1,)), ((), ()))
"""The contraction of features and responsibilities over units. In this order the smaller factor is
packed: a core reaches 87 GFLOP/s of 95 in float32, against 57 in the other order. XLA reverses the
order of a product that is transposed."""


@pytree(eq=False)
class MixtureParams:
    """weights (k,), summing to 1; components: the params of the bank."""

    weights: Any
    components: Any


class MixturePosterior(NamedTuple):
    """responsibilities (n, k); components: the bank's posterior given each component."""

    responsibilities: Any
    components: Any


class MixtureStatistics(NamedTuple):
    count: Any
    components: Any


class FiniteMixture(Model):
    """The base of mixtures over a bank: `Mixture` and `BayesianMixture`.

    A mixture has `components` and `k`. It defines `bank`, whose params are `params.components`;
    `log_weights(params) -> (k,)`, which are added to the bank's log densities; and
    `assembled(count, components)`, its params from the total weight of every component, Σ w·r, and
    the params of the bank.
    """

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
            remedy=inner.remedy,
            discrete=inner.discrete,
            bank=self.bank,
        )

    def closed(self, x):
        return self.bank.closed(of_components(x))

    def init(self, key, x, weights):
        return Start.default(self, x).params(self, key, x, weights)

    def from_responsibilities(self, key, x, responsibilities, weights):
        """A start: the M-step, or the bank's `init`, at given responsibilities (n, k)."""
        x, labels = of_components(x), labels_of(x)
        if labels is not None:
            known = (labels[:, None] == jnp.arange(self.k)).astype(responsibilities.dtype)
            responsibilities = jnp.where(labels[:, None] >= 0, known, responsibilities)
            responsibilities = fill_empty(responsibilities, weights)
        q = responsibilities * weights[:, None]
        return self.assembled(q.sum(0), self.bank.init(key, x, q))

    def embed(self, x):
        return self.components.embed(of_components(x))

    def elemental(self, key, x, weights, k, group=None):
        return self.bank.elemental(key, of_components(x), weights, k, group)

    def separated(self, params, x, weights):
        return self.bank.separated(params.components, of_components(x), weights)

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
        r = q.responsibilities * weights[:, None]
        inner = self.bank.statistics(params.components, of_components(x), q.components, r)
        count = jnp.matmul(q.responsibilities.T, weights, precision=Precision.HIGHEST)
        return MixtureStatistics(count, inner)

    def _size_of_terms(self, params, stats):
        return self.bank._size_of_terms(params.components, stats.components)

    def fused(self, x):
        data = of_components(x)
        linear = self.bank.linear(data) if has(self.bank, LinearBank) else None
        if linear is None:
            return None
        linear = linear.hoisted(data)

        def prepare(x):
            x, labels = of_components(x), labels_of(x)
            return linear.columns(x) if linear.room else x, labels, linear.base(x)

        def statistics(params, sums):
            inner = linear.statistics(params.components, sums)
            return MixtureStatistics(sums[linear.one], inner)

        return FusedPass(
            prepare=prepare,
            coefficients=lambda params: linear.coefficients(
                params.components, self.log_weights(params)
            ),
            sums=partial(self._sums, linear),
            statistics=statistics,
            terms=lambda params: linear.terms(params.components),
            rows=product_rows(linear.size + 2 * self.k),
            axis=-1 if linear.room else 0,
            room=linear.room,
        )

    def _sums(self, linear, slopes, units, weights):
        """(sums, evidence) by two matrix products and a softmax, with the units minor; slopes
        (k, size)."""
        columns, labels, base = units
        features = linear.features(columns if linear.room else linear.columns(columns))
        joint = jnp.matmul(slopes, features, precision=Precision.HIGHEST)
        exponentials, total, evidence = softmax_parts(self._known(joint, labels, 0), linear.lowest)
        weighted = exponentials * (weights / total)
        sums = lax.dot_general(features, weighted, SUM_OVER_UNITS, precision=Precision.HIGHEST)
        return sums, evidence if base is None else evidence + base

    def maximize(self, params, stats):
        components = self.bank.maximize(params.components, stats.components)
        return self.assembled(stats.count, components)

    def standardize(self, x, weights):
        inner = standardized(self.bank, of_components(x), weights)
        return inner._replace(
            model=dataclasses.replace(self, components=inner.model),
            data=with_components(x, inner.data),
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
        joint = log_density + self.log_weights(params)
        return inner, self._known(joint, labels, 1)

    def _known(self, joint, labels, axis):
        """log p(x, z) with −∞ for components that a label excludes. axis: that of components
        in `joint`."""
        if labels is None:
            return joint
        labels = jnp.expand_dims(labels, axis)
        component = jnp.expand_dims(jnp.arange(self.k), 1 - axis)
        return jnp.where((labels >= 0) & (labels != component), -jnp.inf, joint)


def product_rows(numbers: int) -> int:
    """Rows of a chunk for matrix products, for `numbers` numbers a unit."""
    if tuning.platform() != "cpu":
        return max(tuning.LEAST_PRODUCT_ROWS, tuning.ACCELERATOR_NUMBERS // numbers)
    rows = max(tuning.LEAST_PRODUCT_ROWS, tuning.PRODUCT_NUMBERS // numbers)
    return min(tuning.MOST_PRODUCT_ROWS, rows)


@dataclasses.dataclass(frozen=True)
class MixtureDomain(Domain):
    """The data of a bank, or `Data` with labels −1 … k − 1."""

    bank: Any = None

    def with_variance(self, d):
        return self.bank.domain.with_variance(d)

    def accepted(self, path, values):
        if path == ".labels":
            return f"-1 where unknown, else 0 to {self.components - 1}", ""
        return self.bank.domain.accepted(path, values)

    def check_values(self, x, weights):
        self.bank.domain.check_values(of_components(x), weights)

    def valid(self, x):
        labels, valid = labels_of(x), self.bank.domain.valid(of_components(x))
        if labels is not None:
            labels = (labels >= -1) & (labels < self.components) & whole(labels)
        return (
            with_components(dataclasses.replace(x, labels=labels), valid)
            if isinstance(x, Data)
            else valid
        )

    def _require_taken(self, names):
        """ValueError where the data have fields of a regression that the bank does not take."""
        takes = self.bank.domain.takes
        other = [name for name in names if takes is not None and name not in ("x", *takes)]
        if other:
            raise ValueError(
                f"data.{other[0]} is given, and {name_of(self.bank)} takes none: leave it out, or "
                "use components that take it"
            )

    def check(self, x, name):
        plain, labels = of_components(x), labels_of(x)
        if isinstance(plain, Data):
            self._require_taken(given(plain))
        self.bank.domain.check(plain, name_of(self.bank))
        n = jax.tree.leaves(plain)[0].shape[:1]
        if labels is not None and np.shape(labels) != n:
            raise ValueError(
                f"data.labels must have shape {n}, one per unit, "
                f"got {np.shape(labels)}: give -1 where a label is unknown"
            )
        super().check(x, name)


@pytree(static=("k",))
class Mixture(FiniteMixture):
    """A mixture of k components: log p(x) = log Σ_k weights_k · p(x | component k).

    Args:
      components: a bank, such as `Normal()` or `Each(model)`.
      k: the number of components, an int of 1 or more.
      prior: a `DirichletPrior` of the weights, or None for maximum likelihood.

    Raises TypeError where components is not a bank or k not an int, ValueError where k < 1.
    """

    components: Any
    k: int
    prior: DirichletPrior | None = None

    def __post_init__(self):
        super().__post_init__()
        require_kind(self, DirichletPrior)

    def log_weights(self, params):
        return jnp.log(params.weights)

    def assembled(self, count, components):
        if self.prior is not None:
            count = jnp.maximum(count + self.prior.concentration - 1, 0)
        return MixtureParams(count / count.sum(), components)

    def restricted(self, held):
        """Any restriction of weights is exact: `Restricted.restrict` changes the free ones."""
        from jaxem.protocol.restriction import restricted

        inner = restricted(self.components, held.components)
        if inner is None:
            return None

        def maximize(params, stats):
            components = inner(params.components, stats.components)
            return self.assembled(stats.count, components)

        return maximize

    def spaces(self, params):
        return MixtureParams(SIMPLEX, self.components.spaces(params.components))

    def whitened(self, params, step):
        components_step = whitened(self.components, params.components, step.components)
        weight_step = step.weights * jnp.sqrt(SIMPLEX.metric(params.weights))
        return self._times(jnp.sqrt(params.weights), weight_step, components_step)

    def _times(self, weights, weight_step, components):
        """A step of params with leaves (k, …) of `components` times `weights` (k,), other leaves
        unchanged."""

        def times_weight(leaf):
            shape = leaf.shape[:1] + (1,) * (leaf.ndim - 1)
            return leaf * weights.reshape(shape) if shape[:1] == (self.k,) else leaf

        return MixtureParams(weight_step, jax.tree.map(times_weight, components))

    def smooth_map(self):
        """The derivative of the EM map, where components are separate; else None."""
        if type(self) is not Mixture or not self.components.separate:
            return None
        from jaxem.models.jacobian import KnownJacobian  # only gradients use it

        return KnownJacobian(self)

    def log_prior(self, params):
        inner = self.components.log_prior(params.components)
        return inner if self.prior is None else inner + self.prior.log_density(params.weights)

    def degenerate(self, params):
        vanished = params.weights < jnp.finfo(params.weights.dtype).eps
        return jnp.any(self.components.degenerate(params.components)) | jnp.any(vanished)

    def sample(self, key, params, n: int):
        which, draw = jax.random.split(key)
        z = jax.random.categorical(which, jnp.log(params.weights), shape=(n,))
        return self.components.sample(draw, params.components, z)


def starts_among_units(model) -> bool:
    """Whether a model is a mixture whose default start is k-means++ among the units themselves."""
    is_plain = isinstance(model, FiniteMixture) and type(model).init is FiniteMixture.init
    return is_plain and model.bank.domain.are_points


def warn_if_identical(components, k: int, lead: int) -> None:
    """A `FitWarning` where all components of a given start are equal. components: NumPy arrays with
    `lead` axes of starts before the axis k."""
    leaves = jax.tree.leaves(components)
    leaves = [leaf for leaf in leaves if leaf.shape[lead : lead + 1] == (k,)]
    differs = [
        (leaf != np.take(leaf, [0], lead)).any(tuple(range(lead, leaf.ndim))) for leaf in leaves
    ]
    if k > 1 and leaves and not np.all(np.any(differs, axis=0)):
        warnings.warn(
            "init components are identical: EM cannot tell them apart and will not move them "
            "apart; start from different components",
            FitWarning,
            stacklevel=5,
        )
