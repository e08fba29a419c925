"""The concentration of a Dirichlet: a given one, or the estimate from mean logarithms of shares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import lgamma, polygamma, stop_gradient

from jaxem.data.options import integer
from jaxem.models.lda.blocks import log_normalizer
from jaxem.numerics.special import digamma
from jaxem.numerics.tree import is_traced

LEARNT = ("symmetric", "asymmetric")

NEWTON_STEPS = 30
"""Newton steps. Six are enough from an initial value of the same order of magnitude."""

LAST_STEP = 1e-3
"""A last Newton step is taken without a comparison of values where it changes every entry by less
than this part of it."""

LEAST, LARGEST = 1e-4, 1e4
"""The range of an estimated concentration. A fit that reaches its bounds is degenerate."""

LEAST_RATIO = 0.2
"""The least ratio of an entry after a Newton step to the entry before."""

MOST_CHANGE = 0.05
"""The largest relative change of a concentration from one EM step to the next."""


def asymmetric(alpha, mean_log, smooth: bool = False):
    """argmax over α (k,) of log Γ(Σα) − Σ log Γ(α) + Σ (α − 1)·mean_log, which is concave.

    The Hessian is diagonal plus a constant matrix, so a Newton step costs O(k). A step that does
    not raise the function is halved.

    smooth: one full Newton step in place of the maximiser. It is a differentiable map with the same
    fixed point; its derivative takes the Hessian as constant.

    Source: Minka 2000, Estimating a Dirichlet distribution, section 1.
    """

    def value(alpha):
        return log_normalizer(alpha) + jnp.sum(alpha * mean_log)

    def direction(alpha):
        total = alpha.sum()
        slope = digamma(total) - digamma(alpha) + mean_log
        diagonal = -stop_gradient(polygamma(jnp.ones_like(alpha), alpha))
        constant = stop_gradient(polygamma(jnp.ones_like(total), total))
        shift = jnp.sum(slope / diagonal) / (1 / constant + jnp.sum(1 / diagonal))
        return (slope - shift) / diagonal

    if smooth:
        return alpha - direction(alpha)
    return limited_change(alpha, _newton_maximum(alpha, value, direction))


def symmetric(alpha, mean_log, k: int, smooth: bool = False):
    """argmax over a number α of log Γ(kα) − k log Γ(α) + α·mean_log.

    mean_log: the sum of the k mean logarithms.  smooth: as for `asymmetric`.
    """

    def value(alpha):
        return lgamma(k * alpha) - k * lgamma(alpha) + alpha * mean_log

    def direction(alpha):
        order = jnp.ones_like(alpha)  # of the polygamma function: trigamma
        slope = k * (digamma(k * alpha) - digamma(alpha)) + mean_log
        curvature = k * k * polygamma(order, k * alpha) - k * polygamma(order, alpha)
        return slope / stop_gradient(curvature)

    if smooth:
        return alpha - direction(alpha)
    return limited_change(alpha, _newton_maximum(alpha, value, direction))


def _newton_maximum(alpha, value, direction):
    """The maximiser of a concave function of positive numbers, by Newton's method.

    direction: alpha → −(Newton step).
    """

    def step(_, carry):
        alpha, current, length = carry
        proposal = jnp.maximum(alpha - length * direction(alpha), LEAST_RATIO * alpha)
        proposal = jnp.clip(proposal, LEAST, LARGEST)
        proposal_value = value(proposal)
        is_better = proposal_value >= current
        alpha = jnp.where(is_better, proposal, alpha)
        current = jnp.where(is_better, proposal_value, current)
        return alpha, current, jnp.where(is_better, jnp.minimum(1, 2 * length), length / 2)

    carry = (alpha, value(alpha), jnp.ones((), alpha.dtype))
    alpha = jax.lax.fori_loop(0, NEWTON_STEPS, step, carry)[0]
    last_step = direction(alpha)  # values determine the maximiser only to √ε
    is_small = jnp.all(jnp.abs(last_step) < LAST_STEP * alpha)
    return jnp.where(is_small, jnp.clip(alpha - last_step, LEAST, LARGEST), alpha)


def limited_change(alpha, maximum):
    """A point between alpha and maximum; no entry changes by more than `MOST_CHANGE` of itself.

    The function is concave, so a shorter step raises it too. The full step, taken while the topics
    are still alike, leads to a worse optimum.
    """
    change = jnp.max(jnp.abs(maximum - alpha) / alpha)
    part = jnp.minimum(1, MOST_CHANGE / jnp.where(change > 0, change, 1))
    return alpha + part * (maximum - alpha)


def on_edge(alpha):
    """Whether an estimated concentration lies on a bound of its range."""
    return jnp.any((alpha <= LEAST) | (alpha >= LARGEST))


def checked_topics(topics) -> int:
    """`topics` as an int; TypeError or ValueError unless it is an int of 1 or more."""
    if isinstance(topics, str) and topics == "bayes":
        raise TypeError(
            'topics must be an int of 1 or more, got "bayes"; for topics with a posterior use '
            'inference="bayes"'
        )
    return integer(topics, "topics", 1)


def checked(value, name: str, k: int | None = None):
    """`value`: None, the name of a rule in `LEARNT`, a number above 0, or k of them as a tuple.

    TypeError or ValueError for anything else.
    """
    rules = ", ".join(map(repr, LEARNT))
    if value is None or (isinstance(value, str) and value in LEARNT):
        return value
    lengths = "" if k is None else f", {k} of them, one a topic"
    accepted = f"{name} must be a number above 0{lengths}, or one of {rules}"
    if isinstance(value, (str, bool)):
        raise ValueError(f"{accepted}; got {value!r}")
    is_sequence = isinstance(value, (list, tuple)) or np.ndim(value) > 0
    if is_sequence and (k is None or np.shape(value) != (k,)):
        raise ValueError(f"{accepted}; got shape {np.shape(value)}")
    if is_traced(value):
        return tuple(value) if is_sequence else value
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise TypeError(f"{accepted}; got {value!r}")
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"{accepted}; got {value!r}")
    return tuple(numbers.tolist()) if is_sequence else value
