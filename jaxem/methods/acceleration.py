"""Accelerators of the EM map: extrapolations that are kept only where the objective does not fall.

Both work in the coordinates of `Model.spaces`, where a guard keeps probabilities and variances
positive. They measure lengths by the information of the complete data (`Metric.whitened`), in
which the Jacobian of the EM map is symmetric. `advance` takes the evaluation of the EM map at some
params, and returns whether these params are kept and which are evaluated next.

An extrapolation follows a straight line, but the path of EM is curved in its early steps, and a
long extrapolation ends in the basin of another optimum, which may be a lower one. So each is
bounded by a `reach`, in standard errors of a unit of complete data: to second order an EM step of
length l in this measure gains l² nats a unit. The measure does not depend on the units of the
params, and the length of an EM step goes to 0 where EM is slow in a single direction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import Precision

from jaxem.data.options import integers
from jaxem.numerics.linalg import solve_positive
from jaxem.numerics.tree import is_floating, is_traced, pytree, select
from jaxem.protocol.derived import whitened
from jaxem.protocol.spaces import Undeclared
from jaxem.wrappers.restricted import with_restrictions

DISCOUNT = 0.9
"""The maximum of 1/(1 − λ) over past steps is multiplied by this at every measurement, so that old
measurements are forgotten."""

LEAST_GAIN = 1 / 16
"""Gains below this part of the rounding error bound of the objective are replaced by it."""

STRAIGHT_ANGLE = 0.1
"""An extrapolation may exceed `reach` while the path turns by no more than this angle along it, in
radians: EM is slowest on straight paths. The value was chosen together with those of `reach`, on
fits of three normals; README has figures of other models.
"""


class Chart:
    """Coordinates of params as one vector, in a neighbourhood of legal params.

    `origin` is the vector of the legal params. Integers are no coordinates: they are 0 in a vector,
    and those of the legal params come back.
    """

    def __init__(self, model, legal):
        self.model, self.start = model, legal
        self.spaces = model.spaces(legal)
        self.legal = self._chart(legal)
        self.origin, self._unravel = ravel_pytree(self.legal)

    @property
    def is_declared(self) -> bool:
        """Whether the model declares the spaces of its params, and so all relations among them."""
        return not any(isinstance(space, Undeclared) for space in jax.tree.leaves(self.spaces))

    @property
    def lengths(self):
        """The length of a unit step of every entry alone, as a vector."""
        columns = jax.vmap(self.white)(jnp.eye(self.origin.size, dtype=self.origin.dtype))
        return jnp.sqrt(jnp.square(columns).sum(1))

    def _chart(self, params):
        def of_leaf(space, leaf):
            return space.chart(leaf) if is_floating(leaf) else jnp.zeros_like(leaf)

        return jax.tree.map(of_leaf, self.spaces, params)

    def vector(self, params):
        """The coordinates of params."""
        return ravel_pytree(self._chart(params))[0]

    def params(self, vector):
        """Params at a vector, moved to legal values by the guards of the spaces."""

        def legal_leaf(space, proposal, legal, start):
            return space.leaf(space.guard(proposal, legal)) if is_floating(start) else start

        proposal = self._unravel(vector)
        guarded = jax.tree.map(legal_leaf, self.spaces, proposal, self.legal, self.start)
        return with_restrictions(self.model, guarded, self.start)

    def white(self, step):
        """A step in standard errors of a unit of complete data: a whitened step, whose Euclidean
        length is the length used by the accelerators."""
        return ravel_pytree(whitened(self.model, self.start, self._unravel(step)))[0]


def dot(a, b):
    """Σ a·b. A sum, because a matrix product would have reduced precision on a GPU or TPU."""
    return jnp.sum(a * b)


def slowness(step, change):
    """(1 / |1 − λ|, at least 1; whether λ > 1), where λ is the rate of convergence of the EM map
    along a whitened step between two points.

    change: the change of the residual M(θ) − θ from one point to the other. Residuals that grow
    (λ > 1) lead away from a saddle point, where a long step forward is right too.
    """
    squared_change, product = dot(change, change), dot(change, step)
    squared_change = jnp.where(squared_change > 0, squared_change, 1)
    ratio = jnp.sqrt(dot(step, step) / squared_change)
    return jnp.maximum(jnp.where(product < 0, -product / squared_change, ratio), 1), product > 0


def turning_angle(a, b):
    """The angle between two whitened steps, in radians, by its chord."""

    def normalised(step):
        size = jnp.sqrt(dot(step, step))
        return step / jnp.where(size > 0, size, 1)

    chord = normalised(a) - normalised(b)
    return jnp.sqrt(dot(chord, chord))


def require_reach(reach):
    """ValueError unless `reach` is a number above 0."""
    if is_traced(reach):
        return
    is_number = np.ndim(reach) == 0 and np.asarray(reach).dtype.kind in "fiu"
    if not (is_number and reach > 0):
        raise ValueError(f"reach must be a number above 0, got {reach!r}: jnp.inf knows no limit")


class SquaremMemory(NamedTuple):
    """The state of `SQUAREM` between evaluations.

    phase: 0, 1 or 2, the next evaluation of the cycle. trial: whether its params were extrapolated.
    best: the objective that it must reach. first: the coordinates of θ₀. fallback: the params to
    evaluate next where an extrapolation fails. longest: the largest α allowed. last: the α of the
    last extrapolation. slowest: the maximum of 1/|1 − λ|, discounted by `DISCOUNT` a cycle.
    """

    phase: Any
    trial: Any
    best: Any
    first: Any
    fallback: Any
    longest: Any
    last: Any
    slowest: Any


@pytree
class SQUAREM:
    """Squared extrapolation (Varadhan & Roland 2008), strictly monotone.

    From θ₀, θ₁ = M(θ₀) and θ₂ = M(θ₁), with r = θ₁ − θ₀ and v = θ₂ − θ₁ − r, a cycle evaluates
    θ' = θ₀ + 2αr + α²v with α = −⟨r, v⟩/⟨v, v⟩. This is the step length S1 of that paper, where α
    has the other sign, with inner products in the metric of the complete data. Where residuals
    grow, α = ‖r‖/‖v‖ (S3). The next cycle begins at M(θ'). Where the objective at M(θ') is below
    that at θ₁ it begins at θ₂, and the largest α allowed is reduced. Extrapolated params of a model
    that declares no `spaces` are not returned, only M(θ').

    Args:
      reach: the largest distance from θ₀ to θ', in standard errors of an estimate from one unit of
        complete data. It is exceeded where the path of EM is nearly straight. jnp.inf: no bound,
        which takes fewer evaluations and may end in another optimum than EM, lower or higher.

    Raises ValueError where reach is not above 0.
    """

    reach: Any = 0.01

    def __post_init__(self):
        require_reach(self.reach)

    def start(self, model, params):
        """The state before the first evaluation."""
        first = Chart(model, params).origin
        one = jnp.ones((), first.dtype)
        return SquaremMemory(
            jnp.asarray(0, jnp.int32),
            jnp.asarray(False),
            -jnp.inf * one,
            first,
            params,
            jnp.finfo(first.dtype).max * one,
            one,
            one,
        )

    def advance(self, model, params, evaluation, memory: SquaremMemory, total):
        """The evaluation with the params to evaluate next.

        Phases: 0 evaluates θ₀, 1 evaluates θ₁, 2 evaluates θ'. total: the sum of weights.
        """
        state, objective, image = memory, evaluation.objective, evaluation.proposal
        is_finite = jnp.isfinite(objective)
        accepted = ~state.trial | (is_finite & (objective >= state.best - evaluation.noise))
        is_first, is_second, is_extrapolated = (state.phase == phase for phase in range(3))

        chart = Chart(model, image)
        coordinates = chart.vector(params)
        r = coordinates - state.first
        v = chart.origin - coordinates - r
        whitened_r, whitened_v = chart.white(r), chart.white(v)
        slow, residuals_grow = slowness(whitened_r, whitened_v)
        gain = objective - state.best
        length = jnp.sqrt(jnp.maximum(gain, LEAST_GAIN * evaluation.noise) / total)
        angle = turning_angle(whitened_r, whitened_r + whitened_v)
        largest_alpha = self._largest_alpha(length, slow, residuals_grow, angle)
        alpha = jnp.minimum(jnp.minimum(slow, state.longest), largest_alpha)
        extrapolated = chart.params(state.first + 2 * alpha * r + alpha * alpha * v)

        kept = accepted if chart.is_declared else accepted & ~is_extrapolated
        # After a rejected evaluation the next cycle begins at the fallback.
        is_rejected = jnp.where(is_extrapolated, ~is_finite, ~accepted)
        proposal = select(is_second, extrapolated, select(is_rejected, state.fallback, image))
        slowest = jnp.where(is_second, jnp.maximum(slow, DISCOUNT * state.slowest), state.slowest)
        phase = jnp.where(is_second, 2, jnp.where(is_first & accepted, 1, 0))
        raised = jnp.where(is_second & (alpha >= state.longest), 4 * state.longest, state.longest)
        return evaluation._replace(
            proposal=proposal,
            accepted=kept,
            signal=evaluation.signal._replace(
                gain=jnp.where(is_second, gain, jnp.nan),
                to_come=jnp.where(
                    residuals_grow & (gain > evaluation.noise), jnp.inf, gain * slowest
                ),
            ),
            memory=SquaremMemory(
                phase=phase.astype(jnp.int32),
                trial=is_second | (is_extrapolated & is_finite & ~accepted),
                best=jnp.where(accepted, objective, state.best),
                first=jnp.where(is_first, coordinates, state.first),
                fallback=select(is_second, image, state.fallback),
                longest=jnp.where(is_rejected, jnp.maximum(state.last / 4, 1), raised),
                last=jnp.where(is_second, alpha, state.last),
                slowest=slowest,
            ),
        )

    def _largest_alpha(self, length, slow, residuals_grow, angle):
        """The largest α within reach, at least 1: θ' is α(2 ± α/slow)·‖r‖ away from θ₀.

        length: of r, in standard errors. slow: 1/|1 − λ|. angle: by which the path turned.
        """
        relative_reach = self.reach / (length * slow)
        shrinking = 1 - jnp.sqrt(jnp.maximum(1 - relative_reach, 0))
        within_reach = slow * jnp.where(residuals_grow, jnp.sqrt(1 + relative_reach) - 1, shrinking)
        while_straight = STRAIGHT_ANGLE / jnp.where(angle > 0, angle, STRAIGHT_ANGLE)
        return jnp.maximum(jnp.maximum(within_reach, while_straight), 1)


class AndersonMemory(NamedTuple):
    """The state of `Anderson` between evaluations; images are M(θ), residuals M(θ) − θ.

    residuals, images (order, p): their last changes. residual, image (p,): the last ones.
    has_previous: whether there are any. trial, best, fallback, slowest: as in `SquaremMemory`.
    scale: the gain of a plain EM step per squared length, its maximum discounted by `DISCOUNT`.
    last_scale: the last measurement of that gain.
    """

    residuals: Any
    images: Any
    residual: Any
    image: Any
    has_previous: Any
    trial: Any
    best: Any
    fallback: Any
    slowest: Any
    scale: Any
    last_scale: Any


@pytree(static=("order",))
class Anderson:
    """Anderson mixing (Anderson 1965; Walker & Ni 2011), monotone (Henderson & Varadhan 2019).

    Args:
      order: the number of earlier steps that are mixed, an int; each takes 2p numbers of memory for
        p parameters. After a failure the earlier steps are dropped.
      reach: the largest distance of a mixture from M(θ), in standard errors as in `SQUAREM`.

    Where a mixture lies against the direction of the EM step, as near a saddle point, M(θ) is
    evaluated in its place. More fits than with `SQUAREM` end in another optimum than that of EM.

    Raises ValueError where reach is not above 0, and TypeError or ValueError where order is no int
    of 1 or more.
    """

    order: int = 5
    reach: Any = 0.02

    def __post_init__(self):
        integers(self, 1, "order")
        require_reach(self.reach)

    def start(self, model, params):
        """The state before the first evaluation."""
        zero = jnp.zeros_like(Chart(model, params).origin)
        no_changes = jnp.zeros((self.order, *zero.shape), zero.dtype)
        one = jnp.ones((), zero.dtype)
        false = jnp.asarray(False)
        return AndersonMemory(
            no_changes,
            no_changes,
            zero,
            zero,
            false,
            false,
            -jnp.inf * one,
            params,
            one,
            0 * one,
            0 * one,
        )

    def advance(self, model, params, evaluation, memory: AndersonMemory, total):
        """The evaluation with the params to evaluate next: the mixture of the last images whose
        residual is predicted to be smallest. total: the sum of weights."""
        state, objective, image_params = memory, evaluation.objective, evaluation.proposal
        accepted = ~state.trial | (objective >= state.best - evaluation.noise)

        chart = Chart(model, image_params)
        image = chart.origin
        residual = image - chart.vector(params)
        residual_change = jnp.where(state.has_previous, residual - state.residual, 0)
        image_change = jnp.where(state.has_previous, image - state.image, 0)
        residuals = jnp.concatenate([state.residuals[1:], residual_change[None]])
        images = jnp.concatenate([state.images[1:], image_change[None]])
        whitened, whitened_changes = chart.white(residual), jax.vmap(chart.white)(residuals)
        squared_length, last_whitened = dot(whitened, whitened), whitened - whitened_changes[-1]
        whitened_step = chart.white(image_change - residual_change)
        slow, residuals_grow = slowness(whitened_step, whitened_changes[-1])
        slow = jnp.where(state.has_previous, slow, 1)
        residuals_grow = state.has_previous & residuals_grow
        mixed = image - self._mix(whitened_changes, whitened) @ images
        mixed = jnp.where(residuals_grow, image + slow * residual, mixed)

        gain = objective - state.best
        is_plain_step = ~state.trial & state.has_previous
        last_squared = dot(last_whitened, last_whitened)
        gain_per_squared = gain / jnp.where(last_squared > 0, last_squared, 1)
        scale = jnp.where(is_plain_step, gain_per_squared, 0)
        scale = jnp.maximum(scale, DISCOUNT * state.scale)
        is_measurable = is_plain_step & (gain > evaluation.noise) & (last_squared > 0)
        last_scale = jnp.where(is_measurable, gain_per_squared, state.last_scale)
        jump = self._bounded(chart, mixed - image, whitened, last_scale / total)
        mixture = select(state.has_previous, chart.params(image + jump), image_params)
        slowest = jnp.maximum(slow, DISCOUNT * state.slowest)
        next_state = AndersonMemory(
            residuals,
            images,
            residual,
            image,
            True,
            state.has_previous,
            objective,
            image_params,
            slowest,
            scale,
            last_scale,
        )
        next_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), next_state, state)
        expected_gain = jnp.maximum(scale, last_scale) * squared_length * slowest
        is_predictable = (scale > 0) & ~(residuals_grow & (gain > evaluation.noise))
        past = jnp.zeros_like(state.residuals)
        restarted = state._replace(residuals=past, images=past, trial=jnp.asarray(False))
        return evaluation._replace(
            proposal=select(accepted, mixture, state.fallback),
            accepted=accepted,
            signal=evaluation.signal._replace(
                gain=jnp.where(accepted, gain, jnp.nan),
                to_come=jnp.where(is_predictable, expected_gain, jnp.inf),
            ),
            memory=select(accepted, next_state, restarted),
        )

    def _bounded(self, chart, jump, whitened_residual, gain_per_squared_length):
        """The jump from M(θ) to a mixture, shortened to `reach`.

        It is 0 where it points against the EM step, and where the gain per squared length is not
        known.
        """
        whitened_jump = chart.white(jump)
        distance = jnp.sqrt(gain_per_squared_length * dot(whitened_jump, whitened_jump))
        factor = jnp.minimum(self.reach / jnp.where(distance > 0, distance, 1), 1)
        is_forward = (distance > 0) & (dot(whitened_jump, whitened_residual) > 0)
        return jnp.where(is_forward, factor, 0) * jump

    def _mix(self, residuals, residual):
        """The coefficients (order,) of earlier changes that minimise the predicted residual; all
        whitened."""
        squared_lengths = jnp.sum(jnp.square(residuals), axis=1)
        lengths = jnp.sqrt(jnp.where(squared_lengths > 0, squared_lengths, 1))
        normalised = residuals / lengths[:, None]
        gram = jnp.matmul(normalised, normalised.T, precision=Precision.HIGHEST)
        ridge = 64 * jnp.finfo(gram.dtype).eps + jnp.where(squared_lengths > 0, 0, 1)
        right_side = jnp.matmul(normalised, residual, precision=Precision.HIGHEST)
        return solve_positive(gram + jnp.diag(ridge), right_side) / lengths
