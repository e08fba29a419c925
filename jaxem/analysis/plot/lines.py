"""Mixtures of regressions on one regressor: points, and the mean of every component as a line."""

import jax
import numpy as np

from jaxem.analysis.plot import style
from jaxem.data.data import Data
from jaxem.protocol.capabilities import defines

GRID = 200
"""Values of the regressor between which a line is drawn."""


def lines(result, model, x: Data, ax, names):
    """Draws the responses over the regressor, each unit in the look of its most probable component,
    and E[y | x] of every component. With trials both are parts of them.

    Returns the Axes. TypeError where there is not one regressor and one response, or the mean
    depends on more: on an offset, or on regressors beside it.
    """
    points, y = np.asarray(x.x, float), np.asarray(x.y, float)
    is_one = points.ndim == 2 and points.shape[1] == 1 and y.shape == points.shape[:1]
    if not is_one or x.offset is not None or not defines(model.bank, "mean"):
        raise TypeError(
            "plot.mixture draws points, and these data are regressors with responses, of which it "
            "draws one response (n,) of regressions over one regressor (n, 1) without an offset: "
            "draw the estimates by plot.coefficients, or y over a column with result.predict(data)"
        )
    ax, name = style.axes(ax), style.feature_names(x, names, 1, result)[0]
    y = y if x.trials is None else y / np.asarray(x.trials, float)
    shares = np.asarray(result.predict_proba(x), float)
    label, parts = shares.argmax(1), np.nanmean(shares, 0)
    grid = np.linspace(points.min(), points.max(), GRID)
    at = Data(grid[:, None].astype(np.asarray(result.log_likelihood).dtype))
    mean = np.asarray(jax.jit(model.bank.mean)(result.params.components, at))
    for j in np.flatnonzero(np.nansum(shares, 0) >= 1):
        look, rows = style.look(j), (label == j) & ~np.isnan(shares).any(1)
        title = f"component {j}" if j < model.k else "noise"
        options = {"color": look.color, "marker": look.marker, "label": f"{title}: {parts[j]:.0%}"}
        size = style.marker_size(len(y))
        ax.scatter(points[rows, 0], y[rows], s=size, alpha=0.6, linewidths=0.5, **options)
        if j < model.k:
            ax.plot(grid, mean[:, j], color=look.color, linestyle=look.linestyle, linewidth=1.8)
            style.mark(ax, (grid[-1], mean[-1, j]), str(j))
    ax.set_xlabel(style.short(name))
    ax.set_ylabel("y" if x.trials is None else "y / trials")
    style.legend(ax)
    return style.finish(ax)
