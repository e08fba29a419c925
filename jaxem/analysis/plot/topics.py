"""The words of topics."""

import numpy as np

from jaxem.analysis.plot import style
from jaxem.analysis.topics import top_words
from jaxem.models.lda.lda import LDA

COLUMNS = 4
"""Panels in a row."""


def topics(result, vocabulary=None, ax=None, *, n: int = 8):
    """Draws the n most probable words of every topic, with their probabilities, in a panel each.

    Args:
      result: of one fit of `LDA`.
      vocabulary: the words, such as `documents.terms`; None: words are their column numbers.
      ax: as many matplotlib Axes as there are topics; None: a new figure.

    Returns an array (k,) of Axes. Raises TypeError for a batch or another model, ValueError for
    another number of words or of Axes.
    """
    style.require_one(result, "plot.topics")
    if not isinstance(result.model, LDA):
        raise TypeError(f"plot.topics draws a fit of jaxem.LDA, got {type(result.model).__name__}")
    probabilities = np.asarray(result.params.topics, float)
    words, k = top_words(result, n, vocabulary), len(probabilities)
    columns = min(k, COLUMNS)
    rows = -(-k // columns)
    if ax is None:
        panels = style.grid(None, (rows, columns), 2.4, 0.8 + 0.22 * n, sharex=True).ravel()
    else:
        panels = style.grid(ax, (1, k), 0, 0).ravel()
    for panel in panels[k:]:
        panel.set_axis_off()
    for j, panel in enumerate(panels[:k]):
        values = np.sort(probabilities[j])[::-1][: len(words[j])]
        panel.barh(range(len(values)), values, color=style.COLOURS[0])
        panel.set_yticks(range(len(values)), [style.short(word, 16) for word in words[j]])
        panel.invert_yaxis()
        panel.set_title(f"topic {j}", fontsize="medium")
        panel.locator_params(axis="x", nbins=3)
        panel.tick_params(labelbottom=True)
        if j >= k - columns:
            panel.set_xlabel("probability")
        style.finish(panel)
    return panels[:k]
