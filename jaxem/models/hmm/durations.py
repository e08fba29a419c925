"""Distributions of the durations of segments: 1 to `longest` rows, one distribution a state.

The M-step maximises Σ_e ended_e log h(e) + stayed_e log(1 − h(e)), where h is the hazard: the
probability that a segment ends after its row e given that it lasts so long. A segment that the end
of its sequence cuts off counts by its survivor function alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.models.hmm.starts import kept_positive
from jaxem.numerics.segments import hazard_logits, hazards
from jaxem.numerics.special import divided
from jaxem.numerics.tree import pytree
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.spaces import SIMPLEX, Positive, Reciprocal

LEAST_MEAN, MOST_MEAN = 1e-6, 10
"""The range of means: MOST_MEAN times `longest` is nearly a duration of always `longest`."""

SIZES = (1e-2, 1e6)
"""The range of sizes of negative binomials. The largest is a Poisson to rounding."""

MOST_STEPS = 12
"""The most of Newton's steps of an M-step. Near the end of a fit two are made."""

SHORTENING, SUFFICIENT = tuple(0.5**i for i in range(8)), 1e-4
"""The lengths of a step that are tried, and the part of what the slope predicts by which the first
one that is made lowers the loss (Armijo)."""

INDEFINITE_SHIFT = 0.1

START_SIZE = 2.0


@pytree(eq=False)
class DurationParams:
    """mean (k,), in units of rows, and size (k,): those of the negative binomial distribution of a
    duration less 1, before it is limited to `longest`. Its variance is mean + mean²/size."""

    mean: Any
    size: Any


@dataclass(frozen=True)
class Categorical:
    """Any probabilities (k, longest). The M-step is the estimator of Kaplan & Meier 1958."""

    longest: int

    def hazards(self, params):
        """(h, 1 − h), both (k, longest)."""
        return hazards(params)

    def start(self, mean):
        """Params at which durations have about these means (k,)."""
        elapsed = jnp.arange(self.longest, dtype=mean.dtype)
        logs = elapsed * jnp.log1p(-1 / mean)[:, None]
        return (jax.nn.softmax(logs, axis=1) + 1 / self.longest) / 2

    def maximize(self, params, ended, stayed):
        """The params of an M-step, from counts (k, longest)."""
        at_risk = ended + stayed
        old_ends, old_stays = hazards(params)
        is_known = ~is_empty(at_risk)
        ends = jnp.where(is_known, divided(ended, safe(at_risk)), old_ends)
        stays = jnp.where(is_known, divided(stayed, safe(at_risk)), old_stays)
        reached = jnp.cumprod(stays[:, :-1], axis=1)
        reached = jnp.concatenate([jnp.ones_like(ends[:, :1]), reached], 1)
        return kept_positive(ends * reached, params)

    def spaces(self):
        return SIMPLEX

    def n_parameters(self, params) -> int:
        return int((np.asarray(params) > 0).sum() - len(params))

    def whitened(self, params, step):
        """A step in standard errors of one segment."""
        return step * jnp.sqrt(SIMPLEX.metric(params))


class Counts:
    """The base of distributions of durations less 1 on all counts, cut off at `longest`.

    Coordinates (2, k): log mean and log(1 + 1/size) of a negative binomial, of which a Poisson has
    the size ∞. The second is regular at that limit: Newton's method ends there in few steps. `free`
    says which of the two are estimated.
    """

    def hazards(self, params):
        logits = hazard_logits(self.ratios(self.coordinates(params))).T
        ends = jnp.pad(jax.nn.sigmoid(-logits), ((0, 0), (0, 1)), constant_values=1)
        return ends, jnp.pad(jax.nn.sigmoid(logits), ((0, 0), (0, 1)))

    def maximize(self, params, ended, stayed):
        count = ended.sum(1) + stayed.sum(1)
        counts = (a[:, :-1].T / safe(count) for a in (ended, stayed))
        found = self.params(_best(self, self.coordinates(params), *counts))
        return jax.tree.map(lambda old, new: jnp.where(is_empty(count), old, new), params, found)

    def ratios(self, vector):
        """log p(d + 1) − log p(d) (longest − 1, k) of all durations d."""
        x, spread = self._counts(vector.dtype), jnp.expm1(vector[1])
        level = vector[0] - jnp.log1p(spread * jnp.exp(vector[0]))
        return level + jnp.log1p(x * spread) - jnp.log1p(x)

    def loss(self, vector, ended, stayed):
        """The value (k,) that an M-step minimises, from counts (longest − 1, k)."""
        logits = hazard_logits(self.ratios(vector))
        return (ended * jax.nn.softplus(logits) + stayed * jax.nn.softplus(-logits)).sum(0)

    def expansion(self, vector, ended, stayed):
        """(loss (k,), slope (2, k), Hessian (2, 2, k)) by one recursion for the logits and their
        derivatives."""
        x, mean, spread = self._counts(vector.dtype), jnp.exp(vector[0]), jnp.expm1(vector[1])
        by_level, by_x = 1 + spread * mean, 1 + x * spread
        by_spread = (x - mean) / (by_level * by_x) * (1 + spread)
        bend = (mean / by_level) ** 2 - (x / by_x) ** 2
        mixed = jnp.broadcast_to(-mean / by_level**2 * (1 + spread), bend.shape)
        level = jnp.broadcast_to(-spread * mean / by_level**2, bend.shape)
        slopes = jnp.stack([jnp.broadcast_to(1 / by_level, bend.shape), by_spread], 1)
        bends = jnp.stack([level, mixed, mixed, bend * (1 + spread) ** 2 + by_spread], 1)
        bends = bends.reshape(-1, 2, 2, bends.shape[-1])

        def step(carry, row):
            rest, rest_slope, rest_bend = carry
            ratio, slope, bend, ended, stayed = row
            z, slope, bend = rest + ratio, rest_slope + slope, rest_bend + bend
            p = jax.nn.sigmoid(z)
            outer, variance = slope[:, None] * slope, p * jax.nn.sigmoid(-z)
            by_z = ended * p - stayed * jax.nn.sigmoid(-z)
            value = ended * jax.nn.softplus(z) + stayed * jax.nn.softplus(-z)
            curvature = (ended + stayed) * variance * outer + by_z * bend
            carry = jax.nn.softplus(z), p * slope, p * bend + variance * outer
            return carry, (value, by_z * slope, curvature)

        rows = (self.ratios(vector), slopes, bends, ended, stayed)
        begin = jax.tree.map(lambda a: jnp.zeros_like(a[0]), rows[:3])
        parts = jax.lax.scan(step, begin, rows, reverse=True)[1]
        return jax.tree.map(lambda a: a.sum(0), parts)

    def bounds(self, dtype):
        """The least and the largest coordinates (2, 1)."""
        least, most = SIZES
        low = np.log(LEAST_MEAN), np.log1p(1 / most)
        high = np.log(MOST_MEAN * self.longest), np.log1p(1 / least)
        return (jnp.asarray(bound, dtype)[:, None] for bound in (low, high))

    def held(self, vector, slope):
        """Which coordinates are not estimated, or on a bound that the loss falls towards."""
        low, high = self.bounds(vector.dtype)
        is_on_bound = ((vector <= low) & (slope > 0)) | ((vector >= high) & (slope < 0))
        return is_on_bound | ~np.array(self.free)[:, None]

    def _counts(self, dtype):
        return jnp.arange(self.longest - 1, dtype=dtype)[:, None]


@dataclass(frozen=True)
class Poisson(Counts):
    """Means (k,) of durations less 1."""

    longest: int
    free = (True, False)

    def coordinates(self, params):
        return jnp.stack([jnp.log(params), jnp.zeros_like(params)])

    def params(self, vector):
        return _within(jnp.exp(vector[0]), self.spaces())

    def start(self, mean):
        """Params at which durations have about these means (k,)."""
        return mean - 1

    def spaces(self):
        return Positive(LEAST_MEAN, MOST_MEAN * self.longest)

    def n_parameters(self, params) -> int:
        return len(params)

    def whitened(self, params, step):
        """A step in standard errors of one segment."""
        return step / jnp.sqrt(params)


@dataclass(frozen=True)
class NegativeBinomial(Counts):
    """`DurationParams` of durations less 1."""

    longest: int
    free = (True, True)

    def coordinates(self, params):
        return jnp.stack([jnp.log(params.mean), jnp.log1p(1 / params.size)])

    def params(self, vector):
        spaces = self.spaces()
        mean, size = jnp.exp(vector[0]), 1 / jnp.expm1(vector[1])
        return DurationParams(_within(mean, spaces.mean), _within(size, spaces.size))

    def start(self, mean):
        """Params at which durations have about these means (k,)."""
        return DurationParams(mean - 1, jnp.full_like(mean, START_SIZE))

    def spaces(self):
        mean = Positive(LEAST_MEAN, MOST_MEAN * self.longest)
        return DurationParams(mean, Reciprocal(*SIZES))

    def n_parameters(self, params) -> int:
        return 2 * len(params.mean)

    def whitened(self, params, step):
        """A step in standard errors of one segment. That of the size is one of its reciprocal."""
        mean, excess = params.mean, 1 + params.mean / params.size
        of_mean = step.mean / jnp.sqrt(mean * excess)
        return DurationParams(of_mean, step.size * mean / (excess * jnp.sqrt(2.0)))


KINDS = {
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "categorical": Categorical,
}


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _best(kind, vector, ended, stayed):
    """The coordinates (2, k) that minimise `kind.loss`, by Newton's method from given ones. A step
    that raises the loss of a state is shortened, or not made."""
    low, high = kind.bounds(vector.dtype)
    shortening = jnp.asarray(SHORTENING, vector.dtype)[:, None]
    eps = float(jnp.finfo(vector.dtype).eps)

    def step(carry):
        number, vector, _ = carry
        value, slope, curvature = kind.expansion(vector, ended, stayed)
        is_held = kind.held(vector, slope)
        slope = jnp.where(is_held, 0, slope)
        direction = -_solved(curvature, slope, is_held)
        gain = -(slope * direction).sum(0)
        steps = shortening[:, None] * direction
        tried = jnp.where(is_held, vector, jnp.clip(vector + steps, low, high))
        values = jax.vmap(lambda v: kind.loss(v, ended, stayed))(tried)
        is_lower = values <= value + 2 * eps * value - SUFFICIENT * shortening * gain
        first = jnp.argmax(is_lower, axis=0)
        found = jnp.take_along_axis(tried, first[None, None], axis=0)[0]
        vector = jnp.where(is_lower.any(0), found, vector)
        return number + 1, vector, gain > eps**0.75

    def goes_on(carry):
        return (carry[0] < MOST_STEPS) & jnp.any(carry[2])

    is_free = np.array(kind.free)[:, None]
    begin = jnp.where(is_free, jnp.clip(vector, low, high), vector)
    return jax.lax.while_loop(goes_on, step, (0, begin, jnp.ones(vector.shape[1], bool)))[1]


@_best.defjvp
def _best_tangent(kind, primals, tangents):
    """That of the minimum, which does not depend on where the steps began."""
    vector, *counts = primals
    found = _best(kind, vector, *counts)
    _, slope, curvature = kind.expansion(found, *counts)
    is_held = kind.held(found, slope)
    counts, moving = tuple(counts), tuple(tangents[1:])
    moved = jax.jvp(lambda *counts: kind.expansion(found, *counts)[1], counts, moving)[1]
    tangent = -_solved(curvature, jnp.where(is_held, 0, moved), is_held)
    is_known = (counts[0].sum(0) + counts[1].sum(0)) > 0
    return found, jnp.where(is_known, tangent, 0)


def _solved(curvature, slope, is_held):
    """H⁻¹ slope (2, k) over the coordinates that are not held, for Hessians H (2, 2, k). Where H is
    indefinite a multiple of the identity is added, in coordinates in which its diagonal is ±1."""
    (a, c), (_, b) = curvature
    a, b = jnp.where(is_held, 1, jnp.stack([a, b]))
    size = jnp.sqrt(jnp.abs(jnp.stack([a, b])))
    size = jnp.where(size > 0, size, 1)
    a, b = a / size[0] ** 2, b / size[1] ** 2
    c = jnp.where(is_held.any(0), 0, c / (size[0] * size[1]))
    least = (a + b) / 2 - jnp.hypot((a - b) / 2, c)
    floor = 8 * jnp.finfo(c.dtype).eps
    shift = jnp.where(least > floor, 0, INDEFINITE_SHIFT - least)
    a, b, scaled = a + shift, b + shift, slope / size
    determinant = a * b - c * c
    first, second = b * scaled[0] - c * scaled[1], a * scaled[1] - c * scaled[0]
    return jnp.stack([first, second]) / (determinant * size)


def _within(value, space):
    return jnp.clip(value, space.least, space.most)
