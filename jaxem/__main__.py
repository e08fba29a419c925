"""`python -m jaxem`: mixtures of Old Faithful, from the BIC table to the chosen model."""

import importlib.util
import time
import warnings
from collections import Counter

import jax
import numpy as np

import jaxem

STRUCTURES = ("spherical", "diagonal", "tied", "full")
COMPONENTS = range(1, 7)
RESTARTS = 64
PICTURE = "old_faithful.png"


def timed(x):
    models = [jaxem.Mixture(jaxem.Normal(s), k=k) for s in STRUCTURES for k in COMPONENTS]
    begun = time.perf_counter()
    selection = jaxem.select(x, models, key=0, restarts=RESTARTS)
    return selection, time.perf_counter() - begun


def describe(result) -> str:
    """The parameters of every component."""
    params = jax.tree.map(np.asarray, result.params)
    lines = []
    for j in np.argsort(-params.weights):
        mean = ", ".join(f"{value:.3f}" for value in params.components.mean[j])
        rows = [", ".join(f"{v:.4f}" for v in row) for row in covariance_matrix(result, params, j)]
        spread = "; ".join(rows)
        lines.append(f"  weight {params.weights[j]:.4f}  mean ({mean})  covariance [{spread}]")
    return "\n".join(lines)


def draw(x, selection, path) -> None:
    """The data with the chosen components, and BIC against the number of components."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Ellipse

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    result = selection.best
    labels = np.asarray(result.predict(x))
    params = jax.tree.map(np.asarray, result.params)
    for j, mean in enumerate(params.components.mean):
        colour = f"C{j}"
        left.scatter(*x[labels == j].T, s=10, color=colour, alpha=0.6)
        values, axes = np.linalg.eigh(covariance_matrix(result, params, j))
        angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
        for spread in (1, 2):
            width, height = 2 * spread * np.sqrt(values[::-1])
            left.add_patch(Ellipse(mean, width, height, angle=angle, fill=False, color=colour))
    left.set(xlabel="eruption (min)", ylabel="waiting (min)", title=title(result))
    scores = np.reshape([row.score for row in selection.table], (len(STRUCTURES), -1))
    for structure, line in zip(STRUCTURES, scores, strict=True):
        right.plot(COMPONENTS, line, "o-", label=structure)
    right.set(xlabel="components", ylabel="BIC (lower is better)", title="Old Faithful")
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)


def covariance_matrix(result, params, j):
    """Component j's covariance as a (d, d) matrix, whatever its structure."""
    covariance, d = params.components.covariance, params.components.mean.shape[1]
    return {
        "full": lambda: covariance[j],
        "tied": lambda: covariance,
        "diagonal": lambda: np.diag(covariance[j]),
        "spherical": lambda: covariance[j] * np.eye(d),
    }[result.model.components.covariance]()


def title(result) -> str:
    return f"{result.model.k} normals, covariance {result.model.components.covariance}"


def main() -> None:
    x = jaxem.datasets.old_faithful().astype(np.float32)
    with warnings.catch_warnings():
        # Fits that ended otherwise are marked in the table and counted below.
        warnings.simplefilter("ignore", jaxem.FitWarning)
        selection, first = timed(x)
        _, again = timed(x)
    result = selection.best

    print(f"Old Faithful: {len(x)} eruptions\n\n{selection}\n")
    print(f"Chosen: {title(result)}, log-likelihood {float(result.log_likelihood):.3f}")
    print(describe(result))
    codes = np.concatenate([fits.restarts.status for fits in selection.results])
    counts = Counter(jaxem.Status(int(code)).name for code in codes)
    ended = ", ".join(f"{many:,} {name}" for name, many in counts.most_common())
    print(f"\n{len(codes):,} fits ended: {ended}")
    print(
        f"{len(codes) / first:,.0f} fits a second with compilation ({first:.1f} s), "
        f"{len(codes) / again:,.0f} a second after it ({again:.2f} s), "
        f"on {jax.devices()[0].platform}"
    )
    if importlib.util.find_spec("matplotlib"):
        draw(x, selection, PICTURE)
        print(f"Picture: {PICTURE}")
    else:
        print('No picture: pip install "jaxem[plot]" draws one')


if __name__ == "__main__":
    main()
