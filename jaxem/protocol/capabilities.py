"""What a model may be able to do beside the five functions: small protocols, each unlocking
something.

A class has a capability when it defines all of its names; it inherits from nothing. `has` is the
one question, and a wrapper answers it for the model that it wraps.
"""

import inspect
from typing import Any, Protocol


class FiniteLatents(Protocol):
    """Unlocks `posterior` by Bayes' rule, a gradient M-step and most rules for q."""

    def log_joint(self, params, x) -> Any:
        """log p(x, z | params) for every value of a finite latent variable, (n, k)."""


class Bound(Protocol):
    """Unlocks `Variational`: models of which only a bound is known."""

    def init_q(self, params, x) -> Any:
        """The params of a first q: any tree, per unit."""

    def free_energy(self, params, x, q) -> Any:
        """F(q, params) per unit (n,), for q as in `init_q`."""


class LocalPosterior(Protocol):
    """Unlocks `LocalAscent`: a q without closed form, kept in the method's memory."""

    def init_q(self, params, x) -> Any:
        """As in `Bound`."""

    def improve_q(self, params, x, q, weights) -> Any:
        """(q, statistics at that q, F per unit (n,)); F is not lower than at the given q."""


class Units(Protocol):
    """Unlocks data in safe units: `protocol.units`."""

    def standardize(self, x, weights) -> Any:
        """A `Standardized`."""

    def inward(self, units, params) -> Any:
        """Params of the data's units in safe ones."""

    def outward(self, units, params) -> Any:
        """Params of safe units in those of the data."""


class Metric(Protocol):
    """Unlocks distances for accelerators that know how params correlate."""

    def whitened(self, params, step) -> Any:
        """A step in the spaces' charts, a tree like params, in standard errors of a unit of
        complete data, uncorrelated; linear in the step."""


class Sampled(Protocol):
    """Unlocks draws."""

    def sample(self, key, params, n) -> Any:
        """n units; of a bank one unit from component z[i] for every i, with z (n,) in place of
        n."""


class Placed(Protocol):
    """Unlocks starts by responsibilities: k-means++, random rows, given labels."""

    def embed(self, x) -> Any:
        """Points (n, e) whose Euclidean distances suit k-means++, or None."""

    def from_responsibilities(self, key, x, responsibilities, weights) -> Any:
        """Params to start from, at given responsibilities (n, k)."""


class LinearBank(Protocol):
    """Unlocks passes over many units by two matrix products around a softmax."""

    def linear(self, x) -> Any:
        """A `Linear` form for data shaped like x, or None where there is none worth taking."""


class Conjugate(Protocol):
    """Unlocks Bayesian mixtures."""

    def variational(self) -> Any:
        """The bank of the same components with params that are distributed. Its params are those
        of a conjugate posterior q; its evidence (n, k) is E_q[log p(x | k)], its log prior
        −KL(q ‖ prior), and its `predictive(params, x)` (n, k) is log E_q[p(x | k)]."""


class Restrictable(Protocol):
    """Unlocks exact M-steps with fixed or tied params, for `Restricted` and `Blocks`."""

    def restricted(self, held) -> Any:
        """`maximize(params, stats)` where `held`, a tree like params of `Held`, restricts them, or
        None where that has no closed form. Fixed entries may come out as anything."""


class Fused(Protocol):
    """Unlocks passes over many units that know more than one unit at a time."""

    def fused(self, x) -> Any:
        """A `passes.linear.FusedPass` for data shaped like x, or None."""


class SmoothMap(Protocol):
    """Unlocks gradients, or quicker ones, through fits of the model."""

    def smooth_map(self) -> Any:
        """What the model knows of a smooth map with the fixed points of its EM map: a
        `StationaryMap` of its own, or an object with `jacobian(params, x, weights)`, the derivative
        (P, P) of the EM map; None where it knows nothing."""


def has(model, capability) -> bool:
    """Whether a model defines every name of a capability, a class of this file."""
    return defines(model, *names(capability))


def names(capability) -> tuple[str, ...]:
    """The names of a capability."""
    return tuple(name for name in vars(capability) if not name.startswith("_"))


def defines(model, *wanted: str) -> bool:
    """Whether a model defines functions itself: defaults of `Model` and `Bank` do not count."""
    own = inspect.getattr_static(model, "_defines", None)
    if own is not None:
        return all(model._defines(name) for name in wanted)
    return all(callable(inspect.getattr_static(model, name, None)) for name in wanted)
