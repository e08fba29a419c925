"""Mixtures in pictures: densities over a histogram, ellipses over points, pairs of columns."""

import numpy as np

from jaxem.analysis.plot import style
from jaxem.analysis.plot.ellipses import ellipses
from jaxem.analysis.plot.lines import lines
from jaxem.data.data import Data
from jaxem.models.mixture import FiniteMixture
from jaxem.protocol.model import name_of
from jaxem.results.component_axes import unwrapped

LEVELS = (0.5, 0.95)
"""The mass within the two ellipses of a component."""

MOST_COLUMNS = 6
"""Columns of which all pairs can be read."""

GRID = 400
"""Values at which a density is drawn."""

REACH = 0.1
"""How far densities are drawn beyond the data, as a part of their range."""


def mixture(result, x, ax=None, *, columns=None, names=None):
    """Draws a fitted mixture over its data.

    One column: the histogram of x as a density, weights_j · p_j(x) of every component, and their
    sum. Two columns: the points, each with the mark of its most probable component, and the
    ellipses that hold 50% and 95% of the mass of every component, of `Normal`, `StudentT` and
    `Factors`; other components are drawn without ellipses. More columns: all pairs, with the
    columns by themselves on the diagonal. Regressions of one response on one regressor: the points,
    and the mean of every component as a line. Components that hold less than one unit are left out.

    The number of a component stands at the centre of its ellipses.

    Args:
      result: of one fit of a `Mixture` or a `BayesianMixture`.
      x: the data, (n, d), a data frame, or `Data`, of which x is drawn, and y where it has one.
      ax: matplotlib Axes; of more than two columns an array of c x c Axes. None: a new figure.
      columns: which columns to draw, c integers; None: all, at most 6.
      names: the names of all d columns, for the labels; None: those of a data frame, or x[0], …

    Returns the Axes, or an array (c, c) of Axes, those above the diagonal empty.

    Raises TypeError for a batch, for another model, and for other regressions; ValueError where
    there are more than 6 columns to draw.
    """
    style.require_one(result, "plot.mixture")
    model = unwrapped(result.model)
    if not isinstance(model, FiniteMixture):
        raise TypeError(
            f"plot.mixture draws a Mixture or a BayesianMixture, got {name_of(model)}: for states "
            "in time use plot.sequence"
        )
    if isinstance(x, Data) and x.y is not None:
        return lines(result, model, x, ax, names)
    points = _points(x)
    d = points.shape[1]
    names = style.feature_names(x, names, d, result)
    shown = _columns(columns, d)
    shares = np.asarray(result.predict_proba(x), float)
    components = np.flatnonzero(np.nansum(shares, 0) >= 1)
    found = ellipses(model.components, result.params.components)
    labels = np.where(np.isnan(shares).any(1), -1, shares.argmax(1))
    drawn = _Drawn(result, model, points, labels, components, np.nanmean(shares, 0), found)
    if len(shown) == 1:
        ax = drawn.one(style.axes(ax), shown[0], names)
        style.legend(ax)
        return style.finish(ax)
    if len(shown) == 2:
        ax = drawn.pair(style.axes(ax), shown, names)
        style.legend(ax)
        return style.finish(ax)
    return _pairs(drawn, ax, shown, names)


def _points(x) -> np.ndarray:
    """The points (n, d) of data."""
    points = np.asarray(x.x if isinstance(x, Data) else x, float)
    if points.ndim != 2:
        raise ValueError(f"x must have shape (n, d), got {points.shape}: for one column x[:, None]")
    return points


def _columns(columns, d: int) -> list[int]:
    if columns is None and d > MOST_COLUMNS:
        raise ValueError(
            f"the data have {d} columns, of which at most {MOST_COLUMNS} are drawn: choose them, "
            "such as columns=(0, 1, 2)"
        )
    shown = list(range(d)) if columns is None else [int(c) for c in np.atleast_1d(columns)]
    if not shown or len(shown) > MOST_COLUMNS or not all(0 <= c < d for c in shown):
        raise ValueError(
            f"columns must be 1 to {MOST_COLUMNS} integers from 0 to {d - 1}, got {columns!r}"
        )
    return shown


class _Drawn:
    """What the panels of one picture share.

    labels (n,): the component of every unit, -1 of those without; components: which are drawn;
    shares (k,): their parts of the units; found: the `Ellipses`, or None; most: letters of a label.
    """

    most = style.MOST_WORDS

    def __init__(self, result, model, points, labels, components, shares, found):
        self.result, self.model, self.points, self.labels = result, model, points, labels
        self.components, self.shares, self.found = components, shares, found
        self.is_discrete = model.components.domain.discrete

    def label(self, j: int) -> str:
        name = f"component {j}" if j < self.model.k else "noise"
        return f"{name}: {self.shares[j]:.0%}"

    def pair(self, ax, columns, names):
        """Points and ellipses in two columns."""
        from matplotlib.patches import Ellipse

        for j in (-1, *self.components):
            rows = self.points[self.labels == j][:, columns]
            if j < 0 and not len(rows):
                continue
            look = style.look(j)
            rows, count = np.unique(rows, axis=0, return_counts=True)
            size = style.marker_size(len(self.points)) * (count if self.is_discrete else 1)
            options = {"color": look.color, "marker": look.marker, "label": self.label(j)}
            if j < 0:
                options = {"color": style.GREY, "marker": "x", "label": "outside the support"}
            ax.scatter(*rows.T, s=size, alpha=0.6, linewidths=0.5, **options)
        drawn = [j for j in self.components if j < self.model.k]
        for j in drawn if self.found is not None else ():
            look, centre = style.look(j), self.found.location[j, columns]
            for level, width in zip(LEVELS, (1.8, 1.0), strict=True):
                *sizes, angle = self.found.ellipse(j, columns, level)
                options = {"edgecolor": look.color, "linestyle": look.linestyle, "fill": False}
                ax.add_patch(
                    Ellipse(centre, *sizes, angle=angle, linewidth=width, zorder=3, **options)
                )
            style.mark(ax, centre, str(j))
        ax.autoscale_view()
        ax.set_xlabel(style.short(names[columns[0]], self.most))
        ax.set_ylabel(style.short(names[columns[1]], self.most))
        return ax

    def one(self, ax, column, names):
        """A histogram of one column, densities of the components and their sum."""
        values = self.points[:, column]
        values = values[np.isfinite(values)]
        grid, bins = _grid(values, self.is_discrete)
        ax.hist(values, bins=bins, density=True, color="0.88", edgecolor="0.7", linewidth=0.5)
        densities = self._densities(column, grid)
        line = {"markevery": 1 if self.is_discrete else GRID // 8, "markersize": 4}
        known = 0 if densities is None else densities.shape[1]
        for j in self.components[self.components < known]:
            look = style.look(j)
            ax.plot(grid, densities[:, j], **look._asdict(), label=self.label(j), zorder=3, **line)
        if densities is not None and len(self.components) > 1:
            total = densities.sum(1)
            ax.plot(grid, total, color=style.GREY, linewidth=3.5, label="sum", zorder=2)
        ax.set_xlabel(style.short(names[column], self.most))
        ax.set_ylabel("probability" if self.is_discrete else "density")
        return ax

    def _densities(self, column, grid):
        """weights_j · p_j on a grid (g,) of one column: (g, k); None where they are not known."""
        if self.points.shape[1] > 1:
            if self.found is None:
                return None
            weights = self.shares[: self.model.k]
            each = [self.found.density(j, column, grid) for j in range(len(weights))]
            return weights * np.stack(each, 1)
        if self.model.gate is not None:
            raise TypeError(
                "the weights of this mixture depend on the covariates of its gate, so that x has "
                "no one density: draw result.predict_proba(data) by plot.responsibilities"
            )
        at = grid[:, None].astype(np.asarray(self.result.log_likelihood).dtype)
        shares = np.nan_to_num(np.asarray(self.result.predict_proba(at), float))
        return shares * np.exp(np.asarray(self.result.score_samples(at), float))[:, None]


def _pairs(drawn, ax, shown, names):
    """All pairs of columns below the diagonal of an array of Axes, one column on it."""
    c, drawn.most = len(shown), 13
    panels = style.grid(ax, (c, c), 1.9, 1.8)
    for i, j in np.ndindex(c, c):
        panel = panels[i, j]
        if j > i:
            panel.set_axis_off()
            continue
        if i == j:
            drawn.one(panel, shown[i], names)
            panel.set_yticks([])
            panel.set_ylabel("")
        else:
            drawn.pair(panel, [shown[j], shown[i]], names)
            panel.sharex(panels[j, j])
            if j:
                panel.sharey(panels[i, 0])
                panel.set_ylabel("")
                panel.tick_params(labelleft=False)
        if i < c - 1:
            panel.set_xlabel("")
            panel.tick_params(labelbottom=False)
        style.finish(panel)
    handles, labels = panels[1, 0].get_legend_handles_labels()
    corner = {"loc": "upper right", "bbox_to_anchor": (1, 1)}
    style.legend(panels[0, c - 1], handles=handles, labels=labels, **corner)
    return panels


def _grid(values, is_discrete: bool):
    """The values at which densities are drawn, and the edges of the bins of the histogram."""
    low, high = values.min(), values.max()
    if is_discrete:
        grid = np.arange(np.floor(low), np.ceil(high) + 1)
        return grid, np.append(grid, grid[-1] + 1) - 0.5
    margin = REACH * (high - low) or 1.0
    bins = np.histogram_bin_edges(values, "auto")
    bins = bins if len(bins) < 60 else np.linspace(low, high, 61)
    return np.linspace(low - margin, high + margin, GRID), bins
