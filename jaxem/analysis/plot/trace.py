"""The climb of a fit, step by step."""

import numpy as np

from jaxem.analysis.plot import style
from jaxem.protocol.status import Status

SAME = 1e-5
"""Differences of objective and log-likelihood up to this part of the objective's range are not
drawn."""


def trace(result, ax=None):
    """Draws the objective of a fit after every step, and the log-likelihood where it is another
    quantity: with a prior, or where the objective is a free energy F ≤ log-likelihood.

    Args:
      result: of `fit(..., trace=True)`.  ax: matplotlib Axes; None: a new figure.

    Returns the Axes. Raises TypeError for a batch or a result without a trace.
    """
    style.require_one(result, "plot.trace")
    if result.trace is None:
        raise TypeError("this fit recorded no trace: call fit(..., trace=True)")
    recorded = result.trace
    objective = np.asarray(recorded.objective, float)
    likelihood = np.asarray(recorded.log_likelihood, float)
    steps = np.arange(len(objective))
    ax = style.axes(ax)
    options = {"markersize": 4, "linewidth": 1.5, "markevery": max(1, len(steps) // 30)}
    finite = objective[np.isfinite(objective)]
    size = SAME * max(np.ptp(finite) if len(finite) else 0.0, 1.0)
    if np.nanmax(abs(likelihood - objective)) > size:
        look = style.look(1)._asdict() | options
        ax.plot(steps, likelihood, **look, label="log-likelihood")
    ax.plot(steps, objective, **(style.look(0)._asdict() | options), label="objective")
    end = Status(int(result.status)).name
    ax.axhline(objective[-1], color=style.GREY, linewidth=0.8, zorder=1)
    ax.set_title(f"{end} after {int(result.n_iter)} steps", fontsize="medium")
    ax.set_xlabel("step")
    ax.set_ylabel("nats")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, loc="lower right")
    return style.finish(ax)
