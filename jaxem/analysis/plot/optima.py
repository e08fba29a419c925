"""What the restarts of a fit found."""

from jaxem.analysis.plot import style

MOST_ROWS = 12
"""Optima that are drawn by themselves; the others are one row."""


def optima(result, ax=None, *, tol: float = 1e-5):
    """Draws how many restarts ended at each optimum, the best at the top, and how many did not
    converge, by status.

    Args:
      result: of one fit with restarts.  ax: matplotlib Axes; None: a new figure.
      tol: as in `Result.optima`, in nats per unit of weight.

    Returns the Axes. Raises TypeError for a batch.
    """
    style.require_one(result, "plot.optima")
    found = result.optima(tol)
    best = found[:MOST_ROWS]
    rows = list(zip(_labels([o.objective for o in best]), [o.count for o in best], strict=True))
    others = found[MOST_ROWS:]
    if others:
        rows.append((f"{len(others)} lower ones", sum(optimum.count for optimum in others)))
    is_optimum = [True] * len(rows) + [False] * len(found.unfinished)
    rows += [(status.name, count) for status, count in found.unfinished.items()]
    total = sum(count for _, count in rows)
    ax = style.axes(ax, height=1.2 + 0.3 * len(rows))
    for i, ((_, count), converged) in enumerate(zip(rows, is_optimum, strict=True)):
        look = {"color": style.COLOURS[0]} if converged else {"color": "white", "hatch": "////"}
        bar = ax.barh(i, count, edgecolor=style.BLACK, linewidth=0.6, **look)
        ax.bar_label(bar, [f"{count}  ({_percent(count / total)})"], padding=3)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.invert_yaxis()
    ax.margins(x=0.18)
    ax.set_xlabel(f"restarts of {total}")
    ax.set_ylabel("objective")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return style.finish(ax)


def _labels(objectives) -> list[str]:
    """Objectives with as many decimals, of 2 to 9, as it takes to tell them apart."""
    for decimals in range(2, 10):
        labels = [f"{objective:.{decimals}f}" for objective in objectives]
        if len(set(labels)) == len(labels):
            break
    return labels if objectives else []


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{share:.0%}"
