"""The concentration of a Dirichlet: as given, or from the mean logarithms of what it drew."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import lgamma, polygamma, stop_gradient

from jaxem.data.options import integer
from jaxem.models.lda.posterior import log_normalizer
from jaxem.numerics.special import digamma
from jaxem.numerics.tree import is_traced

LEARNT = ("symmetric", "asymmetric")

STEPS = 30
"""Newton steps; from a start of the same order six are enough."""

NEAR = 1e-3
"""The part of itself below which a last step is taken unseen."""

LEAST, LARGEST = 1e-4, 1e4
"""The range of a learnt concentration: on its edges a fit is degenerate."""

SHRINK = 0.2
"""An entry falls to no less than this part of itself in a step."""

PACE = 0.05
"""The part of itself by which a concentration may change from one sweep to the next."""


def asymmetric(alpha, mean_log, smooth: bool = False):
    """argmax over α (k,) of log Γ(Σα) − Σ log Γ(α) + Σ (α − 1)·mean_log, which is concave.

    The Hessian is diagonal plus a constant, so a step costs O(k). A step that does not gain is
    halved. smooth: one full Newton step instead, a map with the same fixed point that can be
    differentiated, as if what the slope is divided by stood still. Source: Minka 2000, Estimating a
    Dirichlet distribution, section 1.
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

    return alpha - direction(alpha) if smooth else towards(alpha, _climb(alpha, value, direction))


def symmetric(alpha, mean_log, k: int, smooth: bool = False):
    """argmax over one α of log Γ(kα) − k log Γ(α) + α·mean_log, with the sum of k mean logs.

    smooth: as for `asymmetric`.
    """

    def value(alpha):
        return lgamma(k * alpha) - k * lgamma(alpha) + alpha * mean_log

    def direction(alpha):
        one = jnp.ones_like(alpha)
        slope = k * (digamma(k * alpha) - digamma(alpha)) + mean_log
        curvature = k * k * polygamma(one, k * alpha) - k * polygamma(one, alpha)
        return slope / stop_gradient(curvature)

    return alpha - direction(alpha) if smooth else towards(alpha, _climb(alpha, value, direction))


def _climb(alpha, value, direction):
    """Newton's method on a concave function of positive numbers."""

    def step(_, carry):
        alpha, best, size = carry
        new = jnp.maximum(alpha - size * direction(alpha), SHRINK * alpha)
        new = jnp.clip(new, LEAST, LARGEST)
        reached = value(new)
        gains = reached >= best
        alpha, best = jnp.where(gains, new, alpha), jnp.where(gains, reached, best)
        return alpha, best, jnp.where(gains, jnp.minimum(1, 2 * size), size / 2)

    carry = (alpha, value(alpha), jnp.ones((), alpha.dtype))
    alpha = jax.lax.fori_loop(0, STEPS, step, carry)[0]
    last = direction(alpha)  # a gain too small to see: values alone know alpha to √ε
    near = jnp.all(jnp.abs(last) < NEAR * alpha)
    return jnp.where(near, jnp.clip(alpha - last, LEAST, LARGEST), alpha)


def towards(old, new):
    """new, or on the way there: no entry changes by more than `PACE`. Concave, so a part of the way
    gains too; all of it at once, while topics are still alike, leads to the wrong end."""
    far = jnp.max(jnp.abs(new - old) / old)
    return old + jnp.minimum(1, PACE / jnp.where(far > 0, far, 1)) * (new - old)


def on_edge(alpha):
    """Whether a learnt concentration lies on the edge of its range."""
    return jnp.any((alpha <= LEAST) | (alpha >= LARGEST))


def count(topics) -> int:
    """The number of topics; TypeError or ValueError where it is none."""
    if isinstance(topics, str) and topics == "bayes":
        raise TypeError(
            'topics must be an int of 1 or more, got "bayes"; for topics with a posterior use '
            'inference="bayes"'
        )
    return integer(topics, "topics", 1)


def given(value, name: str, k: int | None = None):
    """None, the name of a rule, a number, or k numbers as a tuple; else TypeError, ValueError."""
    rules = ", ".join(map(repr, LEARNT))
    if value is None or (isinstance(value, str) and value in LEARNT):
        return value
    each = "" if k is None else f", {k} of them, one a topic"
    accepted = f"{name} must be a number above 0{each}, or one of {rules}"
    if isinstance(value, (str, bool)):
        raise ValueError(f"{accepted}; got {value!r}")
    many = isinstance(value, (list, tuple)) or np.ndim(value) > 0
    if many and (k is None or np.shape(value) != (k,)):
        raise ValueError(f"{accepted}; got shape {np.shape(value)}")
    if is_traced(value):
        return tuple(value) if many else value
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise TypeError(f"{accepted}; got {value!r}")
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"{accepted}; got {value!r}")
    return tuple(numbers.tolist()) if many else value
