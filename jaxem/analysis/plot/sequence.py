"""The states of a series in time."""

import numpy as np

from jaxem.analysis.plot import style
from jaxem.data.sequences import Sequences

STRIP = 0.035, 0.3
"""The height of a state's row in the strip, and the most of all rows, as parts of the Axes."""


def sequence(result, s, ax=None, *, column: int = 0, index: int = 0, names=None):
    """Draws one column of a series in time, with the state of every row on the most probable path:
    each row with the mark of its state, and below it a strip with a line for every state, 0 lowest.

    Args:
      result: of one fit of a `HMM` or a `SemiMarkov`.
      s: the series, (t, d) or (t,), a list of them, or `Sequences`.
      ax: matplotlib Axes; None: a new figure.
      column: which column is drawn.  index: which of several series.
      names: the names of all columns, for the label; None: those of a data frame, or x[0], …

    Returns the Axes. Raises TypeError for a batch or a model without states in time, ValueError for
    a column or an index that is not there.
    """
    style.require_one(result, "plot.sequence")
    sequences = s if isinstance(s, Sequences) else Sequences(s)
    if not 0 <= index < len(sequences):
        raise ValueError(f"index must be from 0 to {len(sequences) - 1}, got {index}")
    sequence_drawn = sequences[index : index + 1]
    path = result.predict(sequence_drawn)
    if not isinstance(path, list):
        raise TypeError("plot.sequence draws states in time, of jaxem.HMM or jaxem.SemiMarkov")
    path, t = np.asarray(path[0]), int(np.asarray(sequence_drawn.length)[0])
    rows = np.asarray(sequence_drawn.rows, float)[0, :t]
    rows = np.where(np.asarray(sequence_drawn.observed)[0, :t, None], rows, np.nan)
    if not 0 <= column < rows.shape[1]:
        raise ValueError(f"column must be from 0 to {rows.shape[1] - 1}, got {column}")
    given = s[index] if isinstance(s, list) else s
    names = style.feature_names(given, names, rows.shape[1], result)
    values, time = rows[:, column], np.arange(t)
    ax = style.axes(ax, width=8.0, height=3.2)
    ax.plot(time, values, color=style.GREY, linewidth=0.7, zorder=1)
    low, high = np.nanmin(values), np.nanmax(values)
    room = 0.06 * ((high - low) or 1.0)
    size = float(np.clip(4000 / t, 2, 18))
    states = np.unique(path)
    height = min(STRIP[0], STRIP[1] / len(states))
    for i, state in enumerate(states):
        look, is_state = style.look(state), path == state
        options = {"color": look.color, "marker": look.marker, "label": f"state {state}"}
        ax.scatter(time[is_state], values[is_state], s=size, zorder=2, **options)
        ax.broken_barh(
            _runs(is_state),
            (i * height, height),
            transform=ax.get_xaxis_transform(),
            color=look.color,
        )
    strip = height * len(states)
    ax.set_ylim(low - room - (high - low + 2 * room) * strip / (1 - strip), high + room)
    ax.set_xlim(-0.01 * t - 0.5, 1.01 * t)
    ax.set_xlabel("row")
    ax.set_ylabel(style.short(names[column]))
    style.legend(ax)
    return style.finish(ax)


def _runs(mask) -> list[tuple[float, int]]:
    """(start, length) of the runs of True, each row from half a step before it to half after."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(first - 0.5, last - first) for first, last in edges.reshape(-1, 2)]
