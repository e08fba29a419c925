"""`python -m jaxem`: mixtures of Old Faithful, from the BIC table to the chosen model."""

import importlib.util
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

import jaxem

STRUCTURES = ("spherical", "diagonal", "tied", "full")
COMPONENTS = range(1, 7)
RESTARTS = 64
PICTURE = "old_faithful.png"


def fit_all(x):
    """Every structure and number of components: {(structure, k): result}. Compiles on all cores."""

    def one(choice):
        structure, k = choice
        model = jaxem.Mixture(jaxem.Normal(covariance=structure), k=k)
        return choice, jaxem.fit(model, x, key=0, restarts=RESTARTS)

    choices = [(structure, k) for structure in STRUCTURES for k in COMPONENTS]
    with ThreadPoolExecutor() as pool:
        return dict(pool.map(one, choices))


def timed(x):
    begun = time.perf_counter()
    results = fit_all(x)
    return results, time.perf_counter() - begun


def table(scores) -> str:
    """BIC by structure and number of components; the lowest is starred."""
    best = min(scores.values())
    lines = ["k".rjust(11) + "".join(f"{k:>11}" for k in COMPONENTS)]
    for structure in STRUCTURES:
        cells = [
            f"{scores[structure, k]:.2f}" + ("*" if scores[structure, k] == best else " ")
            for k in COMPONENTS
        ]
        lines.append(f"{structure:>11}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


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


def draw(x, result, scores, path) -> None:
    """The data with the chosen components, and BIC against the number of components."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Ellipse

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
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
    for structure in STRUCTURES:
        right.plot(COMPONENTS, [scores[structure, k] for k in COMPONENTS], "o-", label=structure)
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
        # Fits that ended otherwise are counted below, which says more than a warning each.
        warnings.simplefilter("ignore", jaxem.FitWarning)
        results, first = timed(x)
        _, again = timed(x)
    scores = {choice: float(result.bic(x)) for choice, result in results.items()}
    sound = {c: s for c, s in scores.items() if results[c].status != jaxem.Status.DEGENERATE}
    choice = min(sound, key=sound.get)
    result = results[choice]

    print(f"Old Faithful: {len(x)} eruptions; BIC, lower is better\n\n{table(sound | scores)}\n")
    print(f"Chosen: {title(result)}, log-likelihood {float(result.log_likelihood):.3f}")
    print(describe(result))
    codes = np.concatenate([np.atleast_1d(r.restarts.status) for r in results.values()])
    counts = Counter(jaxem.Status(int(code)).name for code in codes)
    ended = ", ".join(f"{many:,} {name}" for name, many in counts.most_common())
    print(f"\n{len(codes):,} fits ended: {ended}")
    print(
        f"{len(codes) / first:,.0f} fits a second with {len(results)} compilations "
        f"({first:.1f} s), {len(codes) / again:,.0f} a second after them ({again:.2f} s), "
        f"on {jax.devices()[0].platform}"
    )
    if importlib.util.find_spec("matplotlib"):
        draw(x, result, scores, PICTURE)
        print(f"Picture: {PICTURE}")
    else:
        print('No picture: pip install "jaxem[plot]" draws one')


if __name__ == "__main__":
    main()
