"""What the distribution of a response defines: the base of all of them."""

from typing import Any, NamedTuple

import jax.numpy as jnp

LARGEST_PREDICTOR = {4: 80.0, 8: 690.0}
"""By bytes of a number, the largest |η| of which the exponential is taken."""


class Slopes(NamedTuple):
    """Of f(η), the log density times a component's dispersion where it has one: the derivative and
    minus the second derivative, (k, n) or (1, n)."""

    first: Any
    curvature: Any


class Response:
    """The distribution of a response y given a linear predictor η: one object, in its own file.

    Axes: eta (k, n); dispersion (k, 1), or None where there is none; y and trials (n,).
    """

    link: str
    has_dispersion = True
    takes_trials = False

    scales = False
    """Whether the log density is f(η)/dispersion + g(dispersion), up to terms of y alone."""

    limits: Any = None
    """The smallest and the largest dispersion, which are no collapse; None without limits."""

    words: str
    """The values that y may have, in words."""

    def is_valid(self, y):
        """Which values of y are in the support, for NumPy and JAX arrays."""
        raise NotImplementedError

    def remedy(self, values) -> str:
        """How to recode values of y that are not, "" where it does not know."""
        return ""

    def log_density(self, eta, dispersion, y, trials):
        """(k, n)."""
        raise NotImplementedError

    def slopes(self, eta, dispersion, y, trials) -> Slopes:
        raise NotImplementedError

    def further(self, eta, dispersion, y, trials):
        """Statistics of every unit for the M-step of the dispersion: a tuple of (k, n)."""
        return ()

    def crossed(self, eta, dispersion, y, trials):
        """∂² log density / ∂η ∂ log(1/dispersion), (k, n), where that does not vanish; else
        None."""
        return None

    def dispersion(self, old, stats, gain):
        """The M-step of the dispersion, (k,), not floored. old (k,); stats: as of the bank; gain
        (k,): the least gain of Σ w f by the step of the coefficients."""
        return None

    def size_of_terms(self, stats):
        """As `_size_of_terms` of a bank."""
        return 0.0

    def mean(self, eta, trials):
        """E[y], (k, n)."""
        raise NotImplementedError

    def information(self, eta, dispersion, trials):
        """The expected −f''(η), (k, n)."""
        raise NotImplementedError

    def working(self, y, trials):
        """(z, v): the response on the scale of η and its weight, (n,), to start from."""
        raise NotImplementedError

    def stabilised(self, eta, y, trials):
        """The squared distance of y from its mean on a scale of about constant variance, (k, n)."""
        raise NotImplementedError

    def draw(self, key, eta, dispersion, trials):
        """y (n,) for eta and dispersion (n,)."""
        raise NotImplementedError


def bounded(eta):
    """η within the range of its exponential."""
    most = LARGEST_PREDICTOR[eta.dtype.itemsize]
    return jnp.clip(eta, -most, most)
