"""How sure the components of every unit are."""

import numpy as np

from jaxem.analysis.plot import style

MOST_LABELS = 25
"""Components that are numbered one by one."""

MOST_UNITS = 1000
"""Columns of the picture: more cannot be told apart."""


def responsibilities(result, x, ax=None):
    """Draws p(z = k | x): a column for each unit, a row for each component, dark where it is 1.

    Units are ordered by their most probable component, the surest first; dashed lines separate the
    components. Of more than 1,000 units neighbours share a column with their mean. Units without
    responsibilities (NaN) are left out.

    Args:
      result: of one fit.  x: the data, (n, d) or a tree; `Sequences` are joined.
      ax: matplotlib Axes; None: a new figure.

    Returns the Axes. Raises TypeError for a batch or a model without components.
    """
    style.require_one(result, "plot.responsibilities")
    shares = result.predict_proba(x)
    shares = np.concatenate(shares) if isinstance(shares, list) else np.asarray(shares)
    if shares.ndim != 2:
        raise TypeError(
            f"plot.responsibilities draws shares (n, k), got {shares.shape} of several latent "
            "variables: draw one of them by matplotlib's imshow(shares[:, m].T)"
        )
    shares = shares[~np.isnan(shares).any(1)].astype(float)
    label = shares.argmax(1)
    shares = shares[np.lexsort((-shares.max(1), label))]
    n, k = shares.shape
    ax = style.axes(ax, width=6.5, height=1.3 + min(0.3 * k, 4))
    extent = (0, n, k - 0.5, -0.5)
    options = {"cmap": "Greys", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    image = ax.imshow(_fewer(shares).T, aspect="auto", extent=extent, **options)
    ends = np.cumsum(np.bincount(label, minlength=k))[:-1]
    ax.vlines(
        ends, -0.5, k - 0.5, color=style.COLOURS[1], linewidth=min(0.8, 6 / k), linestyle="--"
    )
    ticks = np.arange(k)[:: -(-k // MOST_LABELS)]
    ax.set_yticks(ticks, [str(j) for j in ticks])
    ax.set_ylabel("component")
    ax.set_xlabel("unit, in the order of components")
    ax.figure.colorbar(image, ax=ax, label="responsibility", ticks=[0, 0.5, 1])
    return ax


def _fewer(shares):
    """Responsibilities (n, k) as at most 1,000 means of neighbours."""
    n = len(shares)
    first = np.unique(np.linspace(0, n, MOST_UNITS, endpoint=False).astype(int))
    return np.add.reduceat(shares, first) / np.diff(np.append(first, n))[:, None]
