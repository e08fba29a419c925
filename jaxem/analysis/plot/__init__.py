"""Pictures of results: every function draws one thing, takes `ax` and returns its Axes.

They need matplotlib, and raise ImportError where it is missing. `jaxem.plot.mixture(result, x)`
"""

from jaxem.analysis.plot.coefficients import coefficients
from jaxem.analysis.plot.mixture import mixture
from jaxem.analysis.plot.optima import optima
from jaxem.analysis.plot.responsibilities import responsibilities
from jaxem.analysis.plot.selection import selection
from jaxem.analysis.plot.sequence import sequence
from jaxem.analysis.plot.topics import topics
from jaxem.analysis.plot.trace import trace

__all__ = [
    "coefficients",
    "mixture",
    "optima",
    "responsibilities",
    "selection",
    "sequence",
    "topics",
    "trace",
]
