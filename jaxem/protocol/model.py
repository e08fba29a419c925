"""The protocol: five pure functions and a domain, their defaults, and banks of components.

Axes everywhere: `n` units, `k` components, `d` features, `m` sufficient statistics of one unit.
"""

import jax
import jax.numpy as jnp

from jaxem.numerics.softmax import normalize
from jaxem.protocol import domains
from jaxem.protocol.capabilities import defines
from jaxem.protocol.domains import Domain
from jaxem.protocol.spaces import REAL

IMPOSSIBLE = -1e30
"""Stands for log 0 inside a matrix product, where −∞ · 0 would be NaN."""


class Model:
    """A model with latent variables, as five pure functions.

    Write `init` and, for finite latent variables, `log_joint(params, x) -> (n, k)`; or `posterior`
    itself. Then `statistics` and `maximize`; without them the M-step is by gradients. Where only a
    bound is known, write `init`, `init_q` and `free_energy`. Everything else has a default, or is a
    capability (`jaxem.protocol.capabilities`). The one law: statistics are additive over units and
    linear in the weights. A class need not inherit from this one.
    """

    domain = Domain()
    """What data the model takes."""

    informed = None
    """A function (x, weights) -> model that takes a missing prior from the data, or None."""

    def init(self, key, x, weights):
        """A start: params, from a JAX key, the data and the weights (n,). Pure JAX."""
        raise NotImplementedError(f"{name_of(self)} must define init(key, x, weights)")

    def posterior(self, params, x):
        """The E-step: q = argmax F, and F's value per unit (n,), here log p(x | params)."""
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
        """Expected sufficient statistics under q: additive over units, linear in weights (n,)."""
        raise NotImplementedError(f"{name_of(self)} must define statistics(params, x, q, weights)")

    def maximize(self, params, stats):
        """The M-step: argmax over params of E_q[log p(x, z | params)] + log_prior(params)."""
        raise NotImplementedError(f"{name_of(self)} must define maximize(params, stats)")

    def closed(self, x) -> bool:
        """Whether there is an M-step in closed form for data shaped like x."""
        return defines(self, "statistics", "maximize")

    def log_prior(self, params):
        """log p(params); 0 by default. It stands here and in `maximize`, never in one alone."""
        return 0.0

    def spaces(self, params):
        """The `Space` of every leaf, a tree like params; by default all real numbers.

        From it come the number of free parameters, the checks of given params, the coordinates of
        gradients and the metric of accelerators. Exact EM does not ask.
        """
        return jax.tree.map(lambda _: REAL, params)

    def log_prob(self, params, x):
        """log p(x | params) per unit, shape (n,)."""
        return self.posterior(params, x)[1]

    def n_parameters(self, params) -> int:
        """The number of free parameters, for BIC and AIC; by default by the spaces of the leaves:
        a simplex has one less than entries, a symmetric matrix d(d + 1)/2."""
        from jaxem.protocol.layout import Layout  # fits start sooner without it

        return Layout(params, self.spaces(params)).freedom()

    def degenerate(self, params):
        """Whether params lie on a floor that keeps the likelihood bounded; a boolean scalar, or of
        a bank (k,) booleans."""
        return jnp.zeros((), bool)

    def _defines(self, name: str) -> bool:
        """Whether there is a function of this name that is no default of `Model` or `Bank`."""
        order = (self, *type(self).__mro__)
        found = next((vars(place)[name] for place in order if name in vars(place)), None)
        return callable(found) and not any(found is vars(base).get(name) for base in (Model, Bank))

    def _name(self) -> str:
        return type(self).__name__


class Bank(Model):
    """k components at once: params, q and evidence gain a component axis, weights are (n, k).

    `init(key, x, weights)` starts every component from its own column of weights;
    `posterior(params, x)` returns evidence (n, k), the log density of every unit under every
    component. Mixtures and hidden Markov models take a bank and never name a family.
    """

    domain = domains.REALS

    @property
    def separate(self):
        """Whether all leaves of params have the leading axis k, and a component's density takes its
        own entries alone, its M-step its own weights alone. A class says so for itself."""
        return vars(type(self)).get("_separate", False)

    def embed(self, x):
        """Points (n, e) whose Euclidean distances suit k-means++, or None where there are none."""
        return jnp.asarray(x, jnp.result_type(float)) if hasattr(x, "ndim") else None


def name_of(model) -> str:
    """The name of a model's class for messages, without wrappers."""
    return model._name() if isinstance(model, Model) else type(model).__name__
