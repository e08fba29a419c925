"""The looks of all pictures: colours, markers, lines and Axes."""

from typing import NamedTuple

import numpy as np

from jaxem.results.columns import column_names

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
"""Six colours of Okabe & Ito 2008, which people with any colour vision tell apart, and a violet."""

MARKERS = ("o", "^", "s", "v", "D", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY, BLACK = "0.6", "0.15"

MOST_WORDS = 24
"""Letters of the longest label."""


class Look(NamedTuple):
    """How component j is drawn: colour, marker and line differ, so that a print without colours is
    legible too."""

    color: str
    marker: str
    linestyle: object


def look(j: int) -> Look:
    """The `Look` of component j; the first 315 differ."""
    return Look(COLOURS[j % 7], MARKERS[j % 9], LINES[j % 5])


def pyplot():
    """matplotlib.pyplot. ImportError where matplotlib is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'jaxem.plot needs matplotlib, which is not installed: pip install "jaxem[plot]"'
        ) from error
    return plt


def axes(ax, width: float = 5.5, height: float = 4.0):
    """The given Axes, or those of a new figure of this size in inches. TypeError for others."""
    plt = pyplot()
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    if not isinstance(ax, plt.Axes):
        raise TypeError(f"ax must be one matplotlib Axes or None, got {type(ax).__name__}")
    return ax


def grid(ax, shape: tuple[int, int], width: float, height: float, **options):
    """An array of Axes of this shape: the given ones, or those of a new figure with panels of width
    x height inches. ValueError for another number of Axes."""
    plt = pyplot()
    rows, columns = shape
    if ax is None:
        size = (width * columns, height * rows)
        options = {"squeeze": False, "layout": "constrained"} | options
        return plt.subplots(rows, columns, figsize=size, **options)[1]
    panels = np.asarray(ax, object)
    if panels.size != rows * columns or not all(isinstance(a, plt.Axes) for a in panels.flat):
        raise ValueError(
            f"ax must be {rows} x {columns} matplotlib Axes, as of plt.subplots({rows}, {columns}),"
            f" got {np.shape(ax) or type(ax).__name__}"
        )
    return panels.reshape(shape)


def finish(ax):
    """The Axes without the upper and the right frame, which carry no numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax, **options):
    """The legend of Axes: to their right, so that it covers nothing; its markers can be told apart
    where those of the points are small."""
    options = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0.0} | options
    found = ax.legend(frameon=False, **options)
    for handle in found.legend_handles:
        if isinstance(handle, pyplot().matplotlib.collections.PathCollection):
            handle.set_sizes([28])
    return found


def mark(ax, place, text: str) -> None:
    """A short text at a point, with a white edge."""
    from matplotlib.patheffects import withStroke

    options = {"ha": "center", "va": "center", "fontweight": "bold", "color": BLACK, "zorder": 5}
    label = ax.text(*place, text, clip_on=True, **options)
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def marker_size(n: int) -> float:
    """The area of a marker in points², smaller where there are many."""
    return float(np.clip(4000 / n, 3, 20))


def short(label, most: int = MOST_WORDS) -> str:
    """A label of at most `most` letters: of a longer one the middle is left out."""
    label, end = str(label), most // 3
    return label if len(label) <= most else f"{label[: most - 1 - end]}…{label[-end:]}"


def feature_names(data, names, d: int, result) -> list[str]:
    """The names of d columns: the given ones, those of a data frame that is drawn or that was
    fitted, or x[0], x[1], …

    Raises ValueError where `names` are not d.
    """
    if names is None:
        found = column_names(data) or result.column_names
        return found if found is not None and len(found) == d else [f"x[{i}]" for i in range(d)]
    names = [str(name) for name in names]
    if len(names) != d:
        raise ValueError(f"names has {len(names)} entries and the data have {d} columns")
    return names


def require_one(result, what: str) -> None:
    """TypeError for a batch, or for a result inside of jit."""
    if np.ndim(result.status):
        raise TypeError(f"{what} draws one fit, and this is a batch: pass result[i]")
