"""Accelerators of the EM map: extrapolations that are kept only where the objective does not fall.

Both work in the coordinates of `Model.spaces`, where a guard keeps shares and variances positive,
and measure lengths by the information of the complete data (`Model.information`), in which the
derivative of the EM map is symmetric. `advance` is told of every evaluation, and says whether its
params are kept and which are evaluated next.

Extrapolations are lines, and the path of EM bends while the climb is early: one that goes far leads
to another basin, which may be a lower one. So each has a `reach`, in standard errors of a unit of
complete data: to second order a step of EM gains as many nats a unit as the square of its length.
That measure needs no units of the params, and shrinks to nothing where EM crawls in one direction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import Precision

from jaxem.numerics.linalg import solve_positive
from jaxem.numerics.tree import is_traced, pytree, select
from jaxem.protocol.derived import whitened
from jaxem.wrappers.restricted import settled

FADE = 0.9
"""How much of the slowest mode seen is remembered from one measurement to the next."""

FAINT = 1 / 16
"""The part of the bound on rounding below which no gain can be told from none."""

BEND = 0.1
"""Radians by which the path may bend along an extrapolation, however far that reaches: on straight
paths EM crawls most. Chosen with `reach` on fits of three normals; README has figures of others.
"""


class Chart:
    """Params as one vector, around params that are legal."""

    def __init__(self, model, legal):
        self.model, self.start = model, legal
        self.spaces = model.spaces(legal)
        self.legal = self._chart(legal)
        self.origin, self._unravel = ravel_pytree(self.legal)

    @property
    def lengths(self):
        """The length of a unit step of every entry alone, as a vector."""
        columns = jax.vmap(self.white)(jnp.eye(self.origin.size, dtype=self.origin.dtype))
        return jnp.sqrt(jnp.square(columns).sum(1))

    def _chart(self, params):
        return jax.tree.map(lambda space, leaf: space.chart(leaf), self.spaces, params)

    def vector(self, params):
        return ravel_pytree(self._chart(params))[0]

    def params(self, vector):
        """Legal params near a vector."""

        def back(space, proposal, legal):
            return space.leaf(space.guard(proposal, legal))

        near = jax.tree.map(back, self.spaces, self._unravel(vector), self.legal)
        return settled(self.model, near, self.start)

    def white(self, step):
        """A step in standard errors of a unit of complete data, the metric of accelerators."""
        return ravel_pytree(whitened(self.model, self.start, self._unravel(step)))[0]


def dot(a, b):
    """Σ a·b, in full precision anywhere."""
    return jnp.sum(a * b)


def slowness(step, change):
    """1 / |1 − λ| of the EM map along a white step between two points, at least 1, and whether
    λ > 1.

    λ is its rate there; `change` is what became of the residual M(θ) − θ. Steps that grow lead away
    from a saddle: there a long step forward is right too.
    """
    size, along = dot(change, change), dot(change, step)
    size = jnp.where(size > 0, size, 1)
    forward = jnp.sqrt(dot(step, step) / size)
    return jnp.maximum(jnp.where(along < 0, -along / size, forward), 1), along > 0


def bend(a, b):
    """The angle between two white steps, as a chord."""

    def unit(step):
        size = jnp.sqrt(dot(step, step))
        return step / jnp.where(size > 0, size, 1)

    apart = unit(a) - unit(b)
    return jnp.sqrt(dot(apart, apart))


def checked_reach(reach):
    """ValueError unless `reach` is above 0."""
    if not is_traced(reach) and not (np.ndim(reach) == 0 and reach > 0):
        raise ValueError(f"reach must be a number above 0, got {reach!r}: jnp.inf knows no limit")


class SquaremMemory(NamedTuple):
    """Where in the cycle a climb is; the objective and the first point of the cycle; where to go on
    from if an extrapolation fails; the longest step allowed, and the slowest mode seen lately."""

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

    From θ₀, θ₁ = M(θ₀), θ₂ = M(θ₁) with r = θ₁ − θ₀ and v = θ₂ − θ₁ − r, the cycle tries
    θ' = θ₀ + 2αr + α²v with α = −⟨r, v⟩/⟨v, v⟩ (their S2, which in the metric of the complete data
    beat S3; ‖r‖/‖v‖ where residuals grow), and goes on from M(θ'). Where that lies below θ₁ it
    goes on from θ₂, and steps get shorter for a while.

    Args:
      reach: how far θ' may be from θ₀, in standard errors of a unit of complete data; any way while
        the path is straight. jnp.inf: anywhere, which takes fewer evaluations and may end in
        another optimum than EM, lower or higher.

    Raises ValueError where reach is not above 0.
    """

    reach: Any = 0.01

    def __post_init__(self):
        checked_reach(self.reach)

    def start(self, model, params):
        """The memory of a climb that has evaluated nothing."""
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

    def advance(self, model, params, seen, memory: SquaremMemory, total):
        """An evaluation in terms of the cycle: 0 evaluates θ₀, 1 evaluates θ₁, 2 evaluates θ'.
        `total`: the sum of weights."""
        m, objective, after = memory, seen.objective, seen.proposal
        sound = jnp.isfinite(objective)
        accepted = ~m.trial | (sound & (objective >= m.best - seen.noise))
        begin, middle, trying = (m.phase == phase for phase in range(3))

        chart = Chart(model, after)
        here = chart.vector(params)
        r = here - m.first
        v = chart.origin - here - r
        white_r, white_v = chart.white(r), chart.white(v)
        slow, growing = slowness(white_r, white_v)
        gain = objective - m.best
        length = jnp.sqrt(jnp.maximum(gain, FAINT * seen.noise) / total)
        most = self._most(length, slow, growing, bend(white_r, white_r + white_v))
        alpha = jnp.minimum(jnp.minimum(slow, m.longest), most)
        there = chart.params(m.first + 2 * alpha * r + alpha * alpha * v)

        back = jnp.where(trying, ~sound, ~accepted)  # to the fallback
        proposal = select(middle, there, select(back, m.fallback, after))
        slowest = jnp.where(middle, jnp.maximum(slow, FADE * m.slowest), m.slowest)
        stretched = jnp.where(middle & (alpha >= m.longest), 4 * m.longest, m.longest)
        return seen._replace(
            proposal=proposal,
            accepted=accepted,
            gain=jnp.where(middle, gain, jnp.nan),
            ahead=jnp.where(growing & (gain > seen.noise), jnp.inf, gain * slowest),
            memory=SquaremMemory(
                phase=jnp.where(middle, 2, jnp.where(begin & accepted, 1, 0)).astype(jnp.int32),
                trial=middle | (trying & sound & ~accepted),
                best=jnp.where(accepted, objective, m.best),
                first=jnp.where(begin, here, m.first),
                fallback=select(middle, after, m.fallback),
                longest=jnp.where(back, jnp.maximum(m.last / 4, 1), stretched),
                last=jnp.where(middle, alpha, m.last),
                slowest=slowest,
            ),
        )

    def _most(self, length, slow, growing, angle):
        """The largest α within reach, at least 1: θ' is α(2 ± α / slow) lengths of r away."""
        share = self.reach / (length * slow)
        short = 1 - jnp.sqrt(jnp.maximum(1 - share, 0))
        near = slow * jnp.where(growing, jnp.sqrt(1 + share) - 1, short)
        straight = BEND / jnp.where(angle > 0, angle, BEND)
        return jnp.maximum(jnp.maximum(near, straight), 1)


class AndersonMemory(NamedTuple):
    """The last changes of residual and image, (order, p) each; the last residual and image; whether
    there is one; the rest as in `SquaremMemory`; a plain step's gain per squared length, as it was
    when the map slowed most lately, and when measured last."""

    residuals: Any
    images: Any
    residual: Any
    image: Any
    known: Any
    trial: Any
    best: Any
    fallback: Any
    slowest: Any
    scale: Any
    unit: Any


@pytree(static=("order",))
class Anderson:
    """Anderson's mixing (1965; Walker & Ni 2011), strictly monotone, restarted at every failure.

    Args:
      order: how many earlier steps are mixed; each costs 2p numbers of memory for p parameters.
      reach: how far a mixture may be from the plain image, in standard errors as in `SQUAREM`.

    A mixture that leads backwards, as those near a saddle do, gives way to the plain image. Still
    more fits than with `SQUAREM` end in another optimum than EM.

    Raises ValueError where reach is not above 0.
    """

    order: int = 5
    reach: Any = 0.02

    def __post_init__(self):
        checked_reach(self.reach)

    def start(self, model, params):
        """The memory of a climb that has evaluated nothing."""
        zero = jnp.zeros_like(Chart(model, params).origin)
        past = jnp.zeros((self.order, *zero.shape), zero.dtype)
        one = jnp.ones((), zero.dtype)
        false = jnp.asarray(False)
        return AndersonMemory(
            past, past, zero, zero, false, false, -jnp.inf * one, params, one, 0 * one, 0 * one
        )

    def advance(self, model, params, seen, memory: AndersonMemory, total):
        """An evaluation, and the mixture of the last images that shrinks the residual most.
        `total`: the sum of weights."""
        m, objective, after = memory, seen.objective, seen.proposal
        accepted = ~m.trial | (objective >= m.best - seen.noise)

        chart = Chart(model, after)
        image = chart.origin
        residual = image - chart.vector(params)
        change = jnp.where(m.known, residual - m.residual, 0)
        moved = jnp.where(m.known, image - m.image, 0)
        residuals = jnp.concatenate([m.residuals[1:], change[None]])
        images = jnp.concatenate([m.images[1:], moved[None]])
        white, white_past = chart.white(residual), jax.vmap(chart.white)(residuals)
        size, before = dot(white, white), white - white_past[-1]
        slow, growing = slowness(chart.white(moved - change), white_past[-1])
        slow, growing = jnp.where(m.known, slow, 1), m.known & growing
        mixed = image - self._mix(white_past, white) @ images
        mixed = jnp.where(growing, image + slow * residual, mixed)

        gain = objective - m.best
        plain = ~m.trial & m.known
        before = dot(before, before)
        scale = jnp.where(plain, gain / jnp.where(before > 0, before, 1), 0)
        scale = jnp.maximum(scale, FADE * m.scale)
        told = plain & (gain > seen.noise) & (before > 0)
        unit = jnp.where(told, gain / jnp.where(before > 0, before, 1), m.unit)
        jump = self._bounded(chart, mixed - image, white, unit / total)
        there = select(m.known, chart.params(image + jump), after)
        slowest = jnp.maximum(slow, FADE * m.slowest)
        kept = AndersonMemory(
            residuals,
            images,
            residual,
            image,
            True,
            m.known,
            objective,
            after,
            slowest,
            scale,
            unit,
        )
        kept = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), kept, m)
        ahead = jnp.maximum(scale, unit) * size * slowest
        past = jnp.zeros_like(m.residuals)
        restarted = m._replace(residuals=past, images=past, trial=jnp.asarray(False))
        return seen._replace(
            proposal=select(accepted, there, m.fallback),
            accepted=accepted,
            gain=jnp.where(accepted, gain, jnp.nan),
            ahead=jnp.where((scale > 0) & ~(growing & (gain > seen.noise)), ahead, jnp.inf),
            memory=select(accepted, kept, restarted),
        )

    def _bounded(self, chart, jump, white, unit):
        """A jump within reach; none that leads backwards, and none where lengths are not known."""
        white_jump = chart.white(jump)
        far = jnp.sqrt(unit * dot(white_jump, white_jump))
        share = jnp.minimum(self.reach / jnp.where(far > 0, far, 1), 1)
        return jnp.where((far > 0) & (dot(white_jump, white) > 0), share, 0) * jump

    def _mix(self, residuals, residual):
        """The shares (order,) of earlier changes, all white, that shrink the residual most."""
        used = jnp.sum(jnp.square(residuals), axis=1)
        length = jnp.sqrt(jnp.where(used > 0, used, 1))
        unit = residuals / length[:, None]
        gram = jnp.matmul(unit, unit.T, precision=Precision.HIGHEST)
        ridge = 64 * jnp.finfo(gram.dtype).eps + jnp.where(used > 0, 0, 1)
        right = jnp.matmul(unit, residual, precision=Precision.HIGHEST)
        return solve_positive(gram + jnp.diag(ridge), right) / length
