"""The protocol: the functions of a model and their defaults, and banks of components.

Axes everywhere: `n` units, `k` components, `d` features, `m` sufficient statistics of one unit.

Arguments that functions of models, banks, rules and starts have in common:

Args:
  model: a `Model`, in the functions of rules of the E-step (for q) and the M-step (for θ, the
    params) and of starts.
  key: a JAX key.
  params: the params of the model, a tree of arrays; of a bank with a leading axis k.
  x: the data, an array (n, d) or a tree of arrays with one leading axis of units.
  weights: (n,), one per unit, 0 or more; of a bank (n, k), one per unit and component.
  q: the posterior, or another distribution of the latent variables, as `posterior` returns it; of a
    finite latent variable (n, k), rows summing to 1.
  stats: what `statistics` returns, a tree of arrays: sums over units.
  z: (n,) integers, the component of every unit.
  responsibilities: (n, k), rows summing to 1.
  points: (n, e), the units as points in space, or None.
  labels: (n,) integers, the known component of every unit, −1 where it is unknown.
  k: the number of components, an int.
  step: a step of params, a tree like params.
  units: the location and scale of standardised data, from `Units.standardize`: a tree of arrays.
  held: which entries of params are fixed or tied, a tree like params.
  closed: whether the model has an M-step in closed form.
  memory: the state that a rule carries from one evaluation to the next, a tree of arrays.

Log densities, log-likelihoods and objectives are in nats; params and data in the units of the data.
"""

import jax
import jax.numpy as jnp

from jaxem.numerics.softmax import normalize
from jaxem.protocol import domains
from jaxem.protocol.capabilities import (
    Bound,
    Conjugate,
    FiniteLatents,
    Fused,
    Imputed,
    LinearBank,
    LocalPosterior,
    Metric,
    Placed,
    Restrictable,
    Sampled,
    SmoothMap,
    Units,
    defines,
    has,
)
from jaxem.protocol.domains import Domain
from jaxem.protocol.spaces import UNDECLARED

__all__ = [
    "IMPOSSIBLE",
    "Bank",
    "Bound",
    "Conjugate",
    "Domain",
    "FiniteLatents",
    "Fused",
    "Imputed",
    "LinearBank",
    "LocalPosterior",
    "Metric",
    "Model",
    "Placed",
    "Restrictable",
    "Sampled",
    "SmoothMap",
    "Units",
    "has",
    "name_of",
]

IMPOSSIBLE = -1e30
"""The value for log 0 in a matrix product, where −∞ · 0 would be NaN."""


class Model:
    """A model with latent variables z, as five pure functions: `init`, `posterior`, `statistics`,
    `maximize` and `log_prior`.

    Define `init`, and for finite latent variables `log_joint(params, x) -> (n, k)`, or `posterior`
    itself. Define `statistics` and `maximize` too; without them the M-step is by gradients. Where
    only a bound on the evidence can be computed, define `init`, `init_q` and `free_energy`. All
    other functions have a default, or belong to a capability, such as `Sampled` (`jaxem.model`).
    Statistics must be additive over units and linear in the weights. A class need not inherit from
    this one. Arguments have the same names and shapes in all functions: see `jaxem.model`.
    Source: Dempster, Laird & Rubin 1977; Neal & Hinton 1998.
    """

    domain = Domain()
    """The data that the model takes."""

    informed = None
    """A function (x, weights) -> the model with its missing prior set from the data, or None."""

    def init(self, key, x, weights):
        """Params to start from, drawn by a JAX key from the data and the weights (n,). Pure JAX.

        Raises NotImplementedError where the class does not define it."""
        raise NotImplementedError(f"{name_of(self)} must define init(key, x, weights)")

    def posterior(self, params, x):
        """The E-step: (q, F per unit (n,)) for q = argmax F, where F is log p(x | params). By
        default from `log_joint`: NotImplementedError without one, TypeError for one of another
        shape."""
        if not defines(self, "log_joint"):
            raise NotImplementedError(
                f"{name_of(self)} must define log_joint(params, x) or posterior(params, x)"
            )
        joint = self.log_joint(params, x)
        n = jax.tree.leaves(x)[0].shape[0]
        if jnp.ndim(joint) != 2 or joint.shape[0] != n:
            raise TypeError(
                f"{name_of(self)}.log_joint must return shape (n, k) with n = {n}, "
                f"got {jnp.shape(joint)}"
            )
        return normalize(joint)

    def statistics(self, params, x, q, weights):
        """Expected sufficient statistics under q: additive over units, linear in weights (n,).

        Raises NotImplementedError where the class does not define it."""
        raise NotImplementedError(f"{name_of(self)} must define statistics(params, x, q, weights)")

    def maximize(self, params, stats):
        """The M-step: argmax over params of E_q[log p(x, z | params)] + log_prior(params).

        Raises NotImplementedError where the class does not define it."""
        raise NotImplementedError(f"{name_of(self)} must define maximize(params, stats)")

    def known_labels(self, x):
        """The components of units that are known, (n,) integers with −1 for unknown ones, or None
        where the data hold no labels. Starts use them as seeds."""
        return None

    def closed(self, x) -> bool:
        """Whether there is an M-step in closed form for data shaped like x."""
        return defines(self, "statistics", "maximize")

    def log_prior(self, params):
        """log p(params); 0 by default. `maximize` must include the same prior."""
        return 0.0

    def spaces(self, params):
        """The `Space` of every leaf, a tree like params; by default all real numbers.

        Spaces determine the number of free parameters, the checks of given params, the coordinates
        of gradient steps and the metric of accelerators. Exact EM does not use them.
        """
        return jax.tree.map(lambda _: UNDECLARED, params)

    def log_prob(self, params, x):
        """log p(x | params) per unit, shape (n,)."""
        return self.posterior(params, x)[1]

    def n_parameters(self, params) -> int:
        """The number of free parameters, for BIC and AIC. The default follows from the spaces of
        the leaves: a simplex of v entries has v − 1, a symmetric matrix d(d + 1)/2."""
        from jaxem.protocol.layout import Layout  # fits start sooner without it

        return Layout(params, self.spaces(params)).freedom()

    def degenerate(self, params):
        """Whether params lie on a floor that keeps the likelihood bounded: a boolean scalar; of a
        bank, booleans (k,)."""
        return jnp.zeros((), bool)

    def _size_of_terms(self, params, stats):
        """Σ_i w_i·E_q[Σ |term|] over the terms of log p(x_i, z | params), a scalar, from the
        statistics: for the bound on the rounding error of a log-likelihood whose terms are larger
        than it is. Of terms that are exact to rounding errors of other numbers, those count."""
        return 0.0

    def _defines(self, name: str) -> bool:
        """Whether the class defines a function of this name other than the default of a base."""
        for place in (self, *type(self).__mro__):
            if name in place.__dict__:
                definition = place.__dict__[name]
                defaults = (base.__dict__.get(name) for base in (Model, Bank))
                return callable(definition) and all(definition is not d for d in defaults)
        return False

    def _name(self) -> str:
        return type(self).__name__


class Bank(Model):
    """k components at once: params, q and evidence gain a component axis, weights are (n, k).

    `init(key, x, weights)` starts every component from its own column of weights;
    `posterior(params, x)` returns evidence (n, k), the log density of every unit under every
    component. `Normal()` is a bank, whose k comes from the mixture or chain that it is given to.
    """

    domain = domains.REALS

    @property
    def separate(self):
        """Whether all leaves of params have the leading axis k, a component's density depends on
        its own entries alone, and its M-step on its own weights alone. Not inherited by
        subclasses."""
        return vars(type(self)).get("_separate", False)

    def embed(self, x):
        """x as points (n, e) for the Euclidean distances of k-means++, or None where units are no
        points."""
        return jnp.asarray(x, jnp.result_type(float)) if hasattr(x, "ndim") else None


def name_of(model) -> str:
    """The name of a model's class for messages, without wrappers."""
    return model._name() if isinstance(model, Model) else type(model).__name__
