"""Estimates with their intervals."""

import jax
import numpy as np

from jaxem.analysis.plot import style

MOST_ROWS = 60
"""Estimates of which all can be read."""


def coefficients(uncertainty, ax=None, *, level: float = 0.95, of: str = ""):
    """Draws estimates with their confidence intervals, one row each; 0 is a grey line. An estimate
    whose interval is not known (NaN) is a hollow point.

    Args:
      uncertainty: such as `result.standard_errors(x)`: an object with `names`, a list of m names,
        `estimates`, and `interval(level)`, which gives the lower and the upper ends: trees of
        arrays with m numbers in all.
      ax: matplotlib Axes; None: a new figure.  level: the coverage, between 0 and 1.
      of: only estimates whose name contains this text are drawn, such as "coefficients".

    Returns the Axes. Raises TypeError for other objects, ValueError where nothing is left to draw
    or more than 60 rows.
    """
    if not all(hasattr(uncertainty, name) for name in ("names", "estimates", "interval")):
        raise TypeError(
            "plot.coefficients draws estimates with intervals, an object with names, estimates and "
            f"interval(level), got {type(uncertainty).__name__}: of a fit take "
            "result.standard_errors(x)"
        )
    names, estimates = list(uncertainty.names), _flat(uncertainty.estimates)
    low, high = map(_flat, uncertainty.interval(level))
    if not len(names) == len(estimates) == len(low) == len(high):
        raise ValueError(
            f"got {len(names)} names, {len(estimates)} estimates and intervals of {len(low)} and "
            f"{len(high)} ends: they must be as many"
        )
    kept = [i for i, name in enumerate(names) if of in str(name)]
    if not kept:
        raise ValueError(f"no name contains {of!r}; they are {', '.join(map(str, names[:8]))}")
    if len(kept) > MOST_ROWS:
        raise ValueError(
            f"there are {len(kept)} estimates, of which at most {MOST_ROWS} can be read: choose "
            f'them by name, such as of="{str(names[kept[0]]).split("[")[0]}"'
        )
    ax = style.axes(ax, height=1.1 + 0.27 * len(kept))
    place = np.arange(len(kept))
    centre = estimates[kept]
    spread = np.stack([centre - low[kept], high[kept] - centre])
    is_known = np.isfinite(spread).all(0)
    spread = np.maximum(spread[:, is_known], 0)
    options = {"fmt": "o", "capsize": 3, "markersize": 5, "linewidth": 1.4}
    known = (centre[is_known], place[is_known])
    ax.errorbar(*known, xerr=spread, color=style.COLOURS[0], **options)
    options = {"markersize": 5, "markerfacecolor": "white", "color": style.COLOURS[0]}
    ax.plot(centre[~is_known], place[~is_known], "o", **options)
    ax.axvline(0, color=style.GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(place, [style.short(names[i], 40) for i in kept])
    ax.set_ylim(len(kept) - 0.4, -0.6)
    ax.set_xlabel(f"estimate and {level:.0%} interval")
    return style.finish(ax)


def _flat(tree) -> np.ndarray:
    """The numbers of a tree of arrays, leaf by leaf."""
    leaves = [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)
