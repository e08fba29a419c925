"""Capabilities: optional protocols of models, beside the five functions of `Model`.

A class has a capability if it defines all names of it; it need not inherit from it. `has` tests for
a capability. A wrapper has those of the model that it wraps.
"""

from typing import Any, Protocol


class FiniteLatents(Protocol):
    """For `posterior` by Bayes' rule, an M-step by gradients and most rules of the E-step."""

    def log_joint(self, params, x) -> Any:
        """log p(x, z | params) for every value of a finite latent variable, (n, k)."""


class Bound(Protocol):
    """For `Variational`: models of which only a bound on the evidence can be computed."""

    def init_q(self, params, x) -> Any:
        """The params of the first q: any tree of arrays, with entries for each unit."""

    def free_energy(self, params, x, q) -> Any:
        """F(q, params) per unit (n,), for q as in `init_q`."""


class LocalPosterior(Protocol):
    """For a q without closed form, carried from one E-step to the next, as that of `LDA`."""

    def init_q(self, params, x) -> Any:
        """As in `Bound`."""

    def improve_q(self, params, x, q, weights) -> Any:
        """(q, statistics at that q, F per unit (n,)); F is not lower than at the given q."""


class Units(Protocol):
    """For computing with standardised data, such as centred ones of variance 1: their units, called
    the units of the arithmetic, keep rounding errors small whatever the units of the data are."""

    def standardize(self, x, weights) -> Any:
        """A `Standardized`."""

    def inward(self, units, params) -> Any:
        """Params in the units of the data, converted to those of the arithmetic."""

    def outward(self, units, params) -> Any:
        """Params in the units of the arithmetic, converted to those of the data."""


class Metric(Protocol):
    """For the metric of accelerators: distances that account for correlations of params."""

    def whitened(self, params, step) -> Any:
        """A step in the coordinates of `Space.chart`, a tree like params, transformed to
        uncorrelated entries, in standard errors of an estimate from one unit of complete data.
        Linear in the step."""


class Sampled(Protocol):
    """For draws from the model."""

    def sample(self, key, params, n) -> Any:
        """n units. Of a bank, with z (n,) in place of n: for every i a unit of component z[i]."""


class Placed(Protocol):
    """For starts by responsibilities: k-means++, random rows, given labels."""

    def embed(self, x) -> Any:
        """Points (n, e) for the Euclidean distances of k-means++, or None."""

    def from_responsibilities(self, key, x, responsibilities, weights) -> Any:
        """Params to start from, at given responsibilities (n, k)."""


class LinearBank(Protocol):
    """For passes over many units by two matrix products and a softmax."""

    def linear(self, x) -> Any:
        """A `Linear` form for data shaped like x, or None where it would not be faster."""


class Conjugate(Protocol):
    """For Bayesian mixtures."""

    def variational(self) -> Any:
        """The bank of the same components whose params have a distribution. Its params are those of
        the conjugate posterior q, its evidence (n, k) is E_q[log p(x | k)], its log prior −KL(q ‖
        prior), and its `predictive(params, x)` (n, k) is log E_q[p(x | k)]."""


class Restrictable(Protocol):
    """For exact M-steps with fixed or tied params, by `Restricted` and `Blocks`."""

    def restricted(self, held) -> Any:
        """A function `maximize(params, stats)` under the restrictions `held`, a tree like params of
        `Held`, or None where it has no closed form. The caller replaces fixed entries."""


class Imputed(Protocol):
    """Of banks: for missing cells from the observed ones."""

    def completed(self, params, x) -> Any:
        """E[x | observed cells, component] of every row under every component, (n, k, d)."""

    def drawn(self, key, params, x, z) -> Any:
        """Rows (n, d) with missing cells drawn given the observed ones, row i under component
        z[i]."""


class Fused(Protocol):
    """For faster passes over many units."""

    def fused(self, x) -> Any:
        """A `FusedPass` for data shaped like x, of a bank a `Blocked` of `passes.blocked`; or None
        where it would not be faster."""


class SmoothMap(Protocol):
    """For gradients through fits of the model, or faster ones."""

    def smooth_map(self) -> Any:
        """A smooth map with the fixed points of the EM map: a `StationaryMap` of the model, or an
        object with `jacobian(params, x, weights)`, the derivative (P, P) of the EM map; or None."""


STARTS_AND_RESPONSES = ("elemental", "refined", "separated", "response")
"""Single functions that a model may define, and that wrappers forward.

elemental(key, x, weights, k): (n, k), the squared distance of every unit to each of k components
that are fitted to few units, drawn by the key from those with weights (n,) or (n, k) above 0, on a
scale on which the variance is about constant. refined(key, x, responsibilities, weights):
responsibilities (n, k) to start from, from those that a random rule gave. separated(params, x,
weights): of a bank with weights (n, k), which components have coefficients without a finite
estimate, (k,). response(params, x): the mean of the response of every row, (n,) or (n, m).
"""


def has(model, capability) -> bool:
    """Whether a model defines every function of a capability, a protocol such as `Sampled`."""
    return defines(model, *names(capability))


def names(capability) -> tuple[str, ...]:
    """The names of a capability."""
    return tuple(name for name in vars(capability) if not name.startswith("_"))


def defines(model, *wanted: str) -> bool:
    """Whether a model defines functions other than the defaults of `Model` and `Bank`."""
    own_answer = getattr(type(model), "_defines", None)
    if own_answer is not None:
        return all(own_answer(model, name) for name in wanted)
    return all(callable(getattr(model, name, None)) for name in wanted)
