"""The criterion of a selection over k, by structure."""

import numpy as np

from jaxem.analysis.batch_selection import BatchSelection
from jaxem.analysis.plot import style
from jaxem.analysis.printed import SOUND
from jaxem.analysis.select import Selection

LINEAR = 10.0
"""The difference of a criterion up to which its scale is linear."""


def selection(selection, ax=None):
    """Draws how far the criterion of every model of a `Selection` is above the lowest.

    Over k, with one line for each structure, where every model has a k; else one row for each
    model. The scale is linear up to 10 and logarithmic beyond: a BIC higher by more than 10 is very
    strong evidence against a model (Kass & Raftery 1995). The chosen model is circled. Models whose
    fit is not sound (`!` in the table) are left out, those that did not converge are hollow. Of a
    `BatchSelection`: in how many data sets every model was chosen.

    Args:
      selection: what `jaxem.select` returns.  ax: matplotlib Axes; None: a new figure.

    Returns the Axes. Raises TypeError for other objects, ValueError where no fit is sound.
    """
    if isinstance(selection, BatchSelection):
        return _chosen(selection, ax)
    if not isinstance(selection, Selection):
        raise TypeError(
            f"plot.selection draws what jaxem.select returns, got {type(selection).__name__}"
        )
    table, winner, criterion = selection.table, selection.winner, selection.criterion
    if winner is None:
        raise ValueError("no fit of this selection is sound, so that there is nothing to compare")
    lowest = table[winner].score
    label = f"{criterion.upper()} above the lowest, {lowest:.7g}"
    table = [row._replace(score=row.score - lowest) for row in table]
    lines = _lines(table)
    if lines is None:
        return _rows(table, winner, label, ax)
    ax = style.axes(ax, width=5.8 if len(lines) > 1 else 4.5)
    for j, (name, members) in enumerate(lines.items()):
        look, rows = style.look(j), [table[i] for i in members if _is_sound(table[i])]
        k, scores = [row.k for row in rows], [row.score for row in rows]
        ax.plot(k, scores, **look._asdict(), linewidth=1.2, markersize=5, label=style.short(name))
        late = [row for row in rows if row.status != SOUND[0]]
        options = {"marker": look.marker, "markerfacecolor": "white", "linestyle": "none"}
        ax.plot([r.k for r in late], [r.score for r in late], color=look.color, **options)
    best = table[winner]
    ring = {"marker": "o", "markersize": 14, "markerfacecolor": "none", "linestyle": "none"}
    ring |= {"markeredgecolor": style.BLACK, "label": f"chosen: {style.short(best.name, 40)}"}
    ax.plot([best.k], [best.score], **ring)
    _scale(ax.yaxis, max(row.score for row in table if _is_sound(row)))
    ax.set_xticks(_every(sorted({row.k for row in table})))
    ax.set_xlabel("k")
    ax.set_ylabel(label)
    style.legend(ax)
    return style.finish(ax)


def _lines(table) -> dict | None:
    """The rows of every structure, by its name; None where a model has no k, or two of one name
    have the same."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        if row.k is None:
            return None
        name = row.name.replace(f", k={row.k}", "").replace(f"topics={row.k}", "topics=k")
        found.setdefault(name, []).append(i)
    for members in found.values():
        if len({table[i].k for i in members}) < len(members):
            return None
    if all(len(members) == 1 for members in found.values()):
        return None
    return {name: sorted(m, key=lambda i: table[i].k) for name, m in found.items()}


def _rows(table, winner, label, ax):
    """One row a model, the best at the top."""
    order = [i for i in np.argsort([row.score for row in table]) if _is_sound(table[i])]
    ax = style.axes(ax, height=1.2 + 0.28 * len(order))
    place = np.arange(len(order))
    scores = [table[i].score for i in order]
    ax.hlines(place, 0, scores, color=style.GREY, linewidth=1)
    for y, i in zip(place, order, strict=True):
        options = {"markerfacecolor": "white" if table[i].status != SOUND[0] else style.COLOURS[0]}
        ax.plot(table[i].score, y, "o", color=style.COLOURS[0], **options)
    y = order.index(winner)
    options = {"markerfacecolor": "none", "markeredgecolor": style.BLACK, "label": "chosen"}
    ax.plot(table[winner].score, y, "o", markersize=14, **options)
    ax.set_yticks(place, [style.short(table[i].name, 40) for i in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel(label)
    _scale(ax.xaxis, max(scores))
    return style.finish(ax)


def _chosen(selection, ax):
    """In how many data sets each model was chosen."""
    names = [row.name for row in selection.table[: selection.scores.shape[1]]]
    counts = [int((selection.winner == j).sum()) for j in range(len(names))]
    ax = style.axes(ax, height=1.2 + 0.3 * len(names))
    bars = ax.barh(range(len(names)), counts, color=style.COLOURS[0])
    ax.bar_label(bars, padding=3)
    ax.set_yticks(range(len(names)), [style.short(name, 40) for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlabel(f"data sets of {len(selection)} with the lowest {selection.criterion.upper()}")
    return style.finish(ax)


def _scale(axis, most: float) -> None:
    """The scale of differences of a criterion up to `most`, with ticks in plain numbers."""
    set_limits, set_scale = {
        "x": (axis.axes.set_xlim, axis.axes.set_xscale),
        "y": (axis.axes.set_ylim, axis.axes.set_yscale),
    }[axis.axis_name]
    set_scale("symlog", linthresh=LINEAR)
    top = 1.3 * max(most, 1.0) if most > LINEAR else 1.1 * max(most, 1.0)
    set_limits(-0.12 * min(top, LINEAR), top)
    decades = 10.0 ** np.arange(1, 1 + np.ceil(np.log10(max(top, 1.0))))
    ticks = [0, 5, *(m * decade for decade in decades for m in (1, 3))]
    if most < 5:
        ticks = np.linspace(0, max(most, 1.0), 3).round(1)
    axis.set_ticks([t for t in ticks if t <= top], labels=[f"{t:g}" for t in ticks if t <= top])
    axis.set_ticks([], minor=True)


def _is_sound(row) -> bool:
    return row.status in SOUND and np.isfinite(row.score)


def _every(ticks: list, most: int = 12) -> list:
    """At most `most` of the ticks, in equal steps."""
    return ticks[:: -(-len(ticks) // most)]
