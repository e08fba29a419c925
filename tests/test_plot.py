"""Pictures: what is drawn is what was fitted, and can be read."""

import types

import jax
import matplotlib
import numpy as np
import pytest
import scipy.stats
from internals import ellipses

import jaxem

matplotlib.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")
plot = jaxem.plot

FAITHFUL = jaxem.datasets.old_faithful()
NAMES = ["eruption", "waiting time"]


@pytest.fixture(autouse=True)
def no_figure_is_left():
    plt.close("all")
    yield
    plt.close("all")


def fitted(model, x, params, restarts=None):
    """A result with these params, without a fit."""
    ends = {"log_likelihood": -1.0, "objective": -1.0, "n_iter": 3, "status": 1}
    fit = jaxem.Fit(params, **{name: np.asarray(value) for name, value in ends.items()})
    restarts = restarts or jax.tree.map(lambda a: np.asarray(a)[None], fit)
    return jaxem.Result.of(model, fit, restarts, np.shape(x))


def two_normals(columns=(0, 1)):
    mean = np.array([[4.29, 79.97], [2.04, 54.48]])[:, columns]
    covariance = np.array([[[0.17, 0.94], [0.94, 36.0]], [[0.07, 0.44], [0.44, 33.7]]])
    covariance = covariance[np.ix_((0, 1), columns, columns)]
    params = jaxem.MixtureParams(np.array([0.64, 0.36]), jaxem.NormalParams(mean, covariance))
    model = jaxem.Mixture(jaxem.Normal(), 2)
    return fitted(model, FAITHFUL[:, columns], params)


def require_legible(figure):
    """No text is cut off by the edge of the figure, and no labels of ticks overlap."""
    figure.canvas.draw()
    edge = figure.bbox
    for ax in figure.axes:
        if not ax.axison:
            texts = []
        else:
            texts = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.texts]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
                labels = [t.label1 for t in ticks if t.label1.get_visible()]
                boxes = [label.get_window_extent() for label in labels if label.get_text()]
                for i, box in enumerate(boxes):
                    assert not any(box.overlaps(other) for other in boxes[:i]), labels[i]
                texts += labels
        if ax.get_legend() is not None:
            texts += ax.get_legend().get_texts()
        for text in texts:
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                inside = box.x0 >= edge.x0 - 1 and box.x1 <= edge.x1 + 1
                assert inside and box.y0 >= edge.y0 - 1 and box.y1 <= edge.y1 + 1, text


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


MEAN = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])
FULL = np.array([[[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 0.7]], np.diag([1.0, 4.0, 9.0])])
BANKS = {
    "full": (jaxem.Normal("VVV"), FULL, FULL),
    "axes": (jaxem.Normal("EEV"), FULL, FULL),
    "tied": (jaxem.Normal("tied"), FULL[0], FULL[[0, 0]]),
    "diagonal": (
        jaxem.Normal("VEI"),
        np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]),
        np.stack([np.diag([1.0, 2.0, 3.0]), np.diag([2.0, 4.0, 6.0])]),
    ),
    "spherical": (jaxem.Normal("EII"), np.array([2.0, 2.0]), np.stack([2 * np.eye(3)] * 2)),
}


@pytest.mark.parametrize(
    "name, df",
    [*((name, None) for name in BANKS), ("full", 3.0), ("tied", 3.0), ("spherical", 3.0)],
)
def test_ellipses_hold_their_share(name, df):
    """On the ellipse (x − m)ᵀ S⁻¹ (x − m) is the quantile of χ²(2), or 2 F(2, df) of a t."""
    bank, scale, full = BANKS[name]
    params = jaxem.NormalParams(MEAN, scale)
    if df is not None:
        bank = jaxem.StudentT(covariance=name)
        params = jaxem.StudentTParams(MEAN, scale, np.array([df, df]))
    found = ellipses(bank, params)
    np.testing.assert_allclose(found.scale, full)
    for j, pair, level in ((0, [0, 1], 0.5), (1, [2, 0], 0.95)):
        width, height, angle = found.ellipse(j, pair, level)
        turn = np.radians(angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        t = np.linspace(0, 6, 7)
        on = rotation @ np.stack([width / 2 * np.cos(t), height / 2 * np.sin(t)])
        square = np.einsum("in,ij,jn->n", on, np.linalg.inv(full[j][np.ix_(pair, pair)]), on)
        normal, other = scipy.stats.chi2.ppf(level, 2), 2 * scipy.stats.f.ppf(level, 2, df or 1)
        np.testing.assert_allclose(square, normal if df is None else other, rtol=1e-9)
    grid = np.linspace(-2, 4, 5)
    scale = np.sqrt(full[1][2, 2])
    law = scipy.stats.norm if df is None else scipy.stats.t(df)
    expected = law.pdf((grid - MEAN[1, 2]) / scale) / scale
    np.testing.assert_allclose(found.density(1, 2, grid), expected, rtol=1e-9)


def test_factors_have_ellipses_and_counts_have_none():
    loadings, noise = np.array([[[1.0], [2.0], [0.0]]] * 2), np.ones((2, 3))
    found = ellipses(jaxem.Factors(1), jaxem.FactorParams(MEAN, loadings, noise))
    expected = np.array([[2.0, 2.0, 0.0], [2.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(found.scale, [expected] * 2, rtol=1e-6)
    assert ellipses(jaxem.Poisson(), jaxem.PoissonParams(MEAN)) is None


def test_two_columns():
    result = two_normals()
    ax = plot.mixture(result, FAITHFUL, names=NAMES)
    assert len(ax.patches) == 4  # two ellipses a component
    mean = result.params.components.mean
    for patch, j in zip(ax.patches, (0, 0, 1, 1), strict=True):
        np.testing.assert_allclose(patch.get_center(), mean[j])
    inner, outer = ax.patches[0], ax.patches[1]
    ratio = np.log(1 - 0.95) / np.log(1 - 0.5)
    np.testing.assert_allclose((outer.width / inner.width) ** 2, ratio)
    assert inner.angle == outer.angle != ax.patches[2].angle
    looks = [(tuple(p.get_edgecolor()), p.get_linestyle()) for p in ax.patches]
    assert looks[0] == looks[1] and looks[0][0] != looks[2][0] and looks[0][1] != looks[2][1]
    marks = {text.get_text(): text.get_position() for text in ax.texts}
    np.testing.assert_allclose([marks["0"], marks["1"]], mean)
    points = sum(len(c.get_offsets()) for c in ax.collections)
    assert points == len(np.unique(FAITHFUL, axis=0))
    assert legend_of(ax) == ["component 0: 64%", "component 1: 36%"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == tuple(NAMES)
    assert plt.get_fignums() == [1]
    require_legible(ax.figure)


def test_given_axes_are_used_and_no_figure_is_made():
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    assert plot.mixture(two_normals(), FAITHFUL, ax=axes[1]) is axes[1]
    assert plot.responsibilities(two_normals(), FAITHFUL, ax=axes[0]) is axes[0]
    assert plt.get_fignums() == [figure.number]
    require_legible(figure)
    with pytest.raises(TypeError, match="ax must be one matplotlib Axes or None, got ndarray"):
        plot.mixture(two_normals(), FAITHFUL, ax=axes)
    with pytest.raises(ValueError, match="ax must be 3 x 3 matplotlib Axes"):
        plot.mixture(two_normals(), FAITHFUL, ax=axes, columns=(0, 1, 0))


def test_one_column():
    result = two_normals((1,))
    ax = plot.mixture(result, FAITHFUL[:, 1:])
    first, second, total = (line.get_ydata() for line in ax.lines)
    grid = ax.lines[0].get_xdata()
    np.testing.assert_allclose(first + second, total)
    np.testing.assert_allclose(total, np.exp(result.score_samples(grid[:, None])), rtol=1e-5)
    normal = scipy.stats.norm(54.48, np.sqrt(33.7)).pdf(grid)
    np.testing.assert_allclose(second, 0.36 * normal, rtol=1e-5, atol=1e-12)
    bars = sum(bar.get_width() * bar.get_height() for bar in ax.patches)
    np.testing.assert_allclose(bars, 1)
    assert legend_of(ax)[2] == "sum" and ax.get_xlabel() == "x[0]"
    require_legible(ax.figure)


def test_counts():
    x = np.random.default_rng(0).poisson(np.repeat([[2.0], [9.0]], 100, 0)).astype(float)
    params = jaxem.MixtureParams(np.array([0.5, 0.5]), jaxem.PoissonParams(np.array([[2.0], [9]])))
    ax = plot.mixture(fitted(jaxem.Mixture(jaxem.Poisson(), 2), x, params), x)
    grid = ax.lines[0].get_xdata()
    np.testing.assert_array_equal(grid, np.arange(x.min(), x.max() + 1))
    expected = scipy.stats.poisson(9).pmf(grid) / 2
    np.testing.assert_allclose(ax.lines[1].get_ydata(), expected, rtol=1e-5)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, np.bincount(x[:, 0].astype(int)) / 200)
    assert ax.get_ylabel() == "probability"
    require_legible(ax.figure)


def test_more_columns():
    rng = np.random.default_rng(1)
    x = MEAN[np.arange(80) % 2] + rng.normal(size=(80, 3))
    model = jaxem.Mixture(jaxem.Normal("tied"), 2)
    params = jaxem.MixtureParams(np.array([0.5, 0.5]), jaxem.NormalParams(MEAN, np.eye(3)))
    panels = plot.mixture(fitted(model, x, params), x, names=["a", "b", "c"])
    assert panels.shape == (3, 3)
    for i, j in np.ndindex(3, 3):
        assert panels[i, j].axison == (i >= j)
        if i > j:
            centre = panels[i, j].patches[0].get_center()
            np.testing.assert_allclose(centre, MEAN[0, [j, i]])
    assert [ax.get_xlabel() for ax in panels[2]] == ["a", "b", "c"]
    assert [ax.get_ylabel() for ax in panels[:, 0]] == ["", "b", "c"]
    require_legible(panels[0, 0].figure)
    with pytest.raises(ValueError, match="columns must be 1 to 6 integers from 0 to 2"):
        plot.mixture(fitted(model, x, params), x, columns=(0, 3))
    with pytest.raises(ValueError, match="names has 2 entries and the data have 3 columns"):
        plot.mixture(fitted(model, x, params), x, names=["a", "b"])


def test_columns_of_a_data_frame_name_the_axes():
    pandas = pytest.importorskip("pandas")
    ax = plot.mixture(two_normals(), pandas.DataFrame(FAITHFUL, columns=NAMES))
    assert (ax.get_xlabel(), ax.get_ylabel()) == tuple(NAMES)


def test_responsibilities():
    """The picture, cut into few cells, has the mean responsibility of each."""
    result = two_normals()
    ax = plot.responsibilities(result, FAITHFUL)
    shares = np.asarray(result.predict_proba(FAITHFUL), float)
    image = ax.images[0].get_array().T
    order = np.lexsort((-shares.max(1), shares.argmax(1)))
    np.testing.assert_allclose(image, shares[order])
    require_legible(ax.figure)
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].mean(-1) / 255
    box = ax.get_window_extent()
    height = len(pixels)
    inside = pixels[height - int(box.y1) + 2 : height - int(box.y0) - 2, :]
    inside = inside[:, int(box.x0) + 2 : int(box.x1) - 2]
    for j, half in enumerate(np.array_split(inside, 2)):
        darkness = [1 - part.mean() for part in np.array_split(half, 16, axis=1)]
        expected = [part[:, j].mean() for part in np.array_split(image, 16)]
        # A cell has n / 16 units, of which those at its two ends may be drawn in another cell.
        np.testing.assert_allclose(darkness, expected, atol=2 * 16 / len(FAITHFUL))


def test_many_units_share_columns():
    result, x = two_normals(), np.tile(FAITHFUL, (10, 1))
    image = plot.responsibilities(result, x).images[0].get_array()
    assert image.shape == (2, 1000)
    np.testing.assert_allclose(image.sum(0), 1, rtol=1e-6)


def rows_of(scores, status=jaxem.Status.CONVERGED):
    """A selection with these scores by structure and k."""
    table = [
        jaxem.Row(f"Normal({name!r}), k={k}", None, k, 5, -1.0, score, status)
        for name, line in scores.items()
        for k, score in enumerate(line, 1)
    ]
    winner = int(np.argmin([row.score for row in table]))
    return jaxem.Selection("bic", tuple(table), (), winner)


def test_selection_over_k():
    scores = {"EII": [4020.0, 3456.0, 3370.0], "VVV": [2607.0, 2322.0, 2334.5]}
    ax = plot.selection(rows_of(scores))
    for line, values in zip(ax.lines[::2], scores.values(), strict=False):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(), np.array(values) - 2322)
    assert (
        len({(ln.get_color(), ln.get_marker(), ln.get_linestyle()) for ln in ax.lines[:3:2]}) == 2
    )
    ring = ax.lines[-1]
    assert (ring.get_xdata(), ring.get_ydata()) == ([2], [0])
    assert legend_of(ax) == ["Normal('EII')", "Normal('VVV')", "chosen: Normal('VVV'), k=2"]
    assert ax.get_ylabel() == "BIC above the lowest, 2322" and ax.get_xlabel() == "k"
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 4020 - 2322
    require_legible(ax.figure)


def test_selection_marks_what_is_not_converged_and_leaves_out_what_is_not_sound():
    chosen = rows_of({"VVV": [2607.0, 2322.0, 2334.0, 2200.0]})
    table = list(chosen.table)
    table[2] = table[2]._replace(status=jaxem.Status.MAX_ITER)
    table[3] = table[3]._replace(status=jaxem.Status.DEGENERATE)
    ax = plot.selection(jaxem.Selection("bic", tuple(table), (), 1))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    assert ax.lines[1].get_markerfacecolor() == "white"
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [3])
    with pytest.raises(ValueError, match="no fit of this selection is sound"):
        plot.selection(jaxem.Selection("bic", tuple(table), (), None))


def test_selection_of_models_without_k():
    rows = [("one", 2607.0), ("another model with a long name, too long to read", 2322.0)]
    status = jaxem.Status.CONVERGED
    table = tuple(jaxem.Row(name, None, None, 5, -1.0, s, status) for name, s in rows)
    ax = plot.selection(jaxem.Selection("aic", table, (), 1))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[1] == "one" and "…" in labels[0] and len(labels[0]) == 40
    assert ax.get_xlabel() == "AIC above the lowest, 2322"
    require_legible(ax.figure)


def test_optima():
    objective = np.array([-10.0, -10.0, -12.5, -10.0, -30.0, -11.0])
    status = np.array([1, 1, 1, 1, 5, 2], np.int32)
    model, params = jaxem.Mixture(jaxem.Normal(), 2), two_normals().params
    every = jaxem.Fit(None, objective, objective, np.full(6, 4), status)
    ax = plot.optima(fitted(model, FAITHFUL, params, every))
    assert [bar.get_width() for bar in ax.patches] == [3, 1, 1, 1]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[:2] == ["-10.00", "-12.50"] and set(labels[2:]) == {"DEGENERATE", "MAX_ITER"}
    assert [bar.get_hatch() is not None for bar in ax.patches] == [False, False, True, True]
    assert ax.texts[0].get_text() == "3  (50%)"
    require_legible(ax.figure)


def test_a_long_list_of_optima_is_cut():
    objective = -np.arange(40.0)
    every = jaxem.Fit(None, objective, objective, np.full(40, 4), np.ones(40, np.int32))
    model, params = jaxem.Mixture(jaxem.Normal(), 2), two_normals().params
    ax = plot.optima(fitted(model, FAITHFUL, params, every))
    assert [bar.get_width() for bar in ax.patches] == [1] * 12 + [28]
    assert ax.get_yticklabels()[-1].get_text() == "28 lower ones"
    require_legible(ax.figure)


def test_sequence():
    emissions = jaxem.NormalParams(np.array([[4.3, 80.0], [2.0, 54.0]]), np.array([np.eye(2)] * 2))
    chain = jaxem.HMMParams(np.full(2, 0.5), np.array([[0.3, 0.7], [0.9, 0.1]]), emissions)
    x = FAITHFUL[:60]
    result = fitted(jaxem.HMM(jaxem.Normal(), 2), x, chain)
    ax = plot.sequence(result, x, column=1, names=NAMES)
    path = np.asarray(result.predict(jaxem.Sequences(x))[0])
    points = ax.collections[0].get_offsets(), ax.collections[2].get_offsets()
    for state in (0, 1):
        rows = np.flatnonzero(path == state)
        np.testing.assert_allclose(points[state], np.stack([rows, x[rows, 1]], 1))
        strip = ax.collections[2 * state + 1].get_paths()
        assert len(strip) == np.sum(np.diff(path == state, prepend=False) & (path == state))
    assert legend_of(ax) == ["state 0", "state 1"] and ax.get_ylabel() == "waiting time"
    require_legible(ax.figure)
    with pytest.raises(ValueError, match="column must be from 0 to 1, got 2"):
        plot.sequence(result, x, column=2)


def test_coefficients():
    estimates = np.array([[2.8, 1.3, -0.4], [2.0, 7.4, -0.1]])
    names = [f"coefficients[{j}, {i}]" for j in range(2) for i in ("intercept", "dose", "log(day)")]
    given = types.SimpleNamespace(
        names=[*names, "weights[0]"],
        estimates={"coefficients": estimates, "weights": np.array([0.6])},
        interval=lambda level: (
            {"coefficients": estimates - level, "weights": np.array([np.nan])},
            {"coefficients": estimates + 2 * level, "weights": np.array([0.8])},
        ),
    )
    ax = plot.coefficients(given, level=0.9, of="coef")
    data, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(data.get_xdata(), estimates.ravel())
    for segment, value in zip(bars.get_segments(), estimates.ravel(), strict=True):
        np.testing.assert_allclose(segment[:, 0], [value - 0.9, value + 1.8])
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert ax.get_xlabel() == "estimate and 90% interval"
    require_legible(ax.figure)
    ax = plot.coefficients(given, of="weights")
    assert len(ax.containers[0].lines[0].get_xdata()) == 0
    np.testing.assert_array_equal(ax.lines[-2].get_xdata(), [0.6])
    assert ax.lines[-2].get_markerfacecolor() == "white"
    with pytest.raises(TypeError, match="an object with names, estimates and interval"):
        plot.coefficients(two_normals())
    with pytest.raises(ValueError, match="no name contains 'dispersion'"):
        plot.coefficients(given, of="dispersion")


def test_topics():
    topics = np.random.default_rng(0).dirichlet(np.full(12, 0.3), size=5)
    words = [*"abcdefghijk", "internationalisation"]
    result = fitted(jaxem.LDA(5), np.ones((7, 12)), jaxem.LDAParams(topics, np.full(5, 0.1)))
    panels = plot.topics(result, words, n=4)
    assert panels.shape == (5,)
    for panel, topic in zip(panels, topics, strict=True):
        best = np.argsort(-topic)[:4]
        np.testing.assert_allclose([bar.get_width() for bar in panel.patches], topic[best])
        labels = [label.get_text() for label in panel.get_yticklabels()]
        assert labels == [words[w] if w < 11 else "internatio…ation" for w in best]
    require_legible(panels[0].figure)


def test_regressions_on_one_regressor():
    rng = np.random.default_rng(0)
    x, group = rng.uniform(0, 3, 60), rng.integers(2, size=60)
    y = np.where(group, 1 + 2 * x, 20 - x) + 0.1 * rng.normal(size=60)
    data = jaxem.Data(x[:, None], y)
    lines = np.array([[1.0, 2.0], [20.0, -1.0]])
    params = jaxem.RegressionParams(lines, np.array([0.01, 0.01]))
    params = jaxem.MixtureParams(np.array([0.5, 0.5]), params)
    result = fitted(jaxem.Mixture(jaxem.Regression(), 2), data.x, params)
    ax = plot.mixture(result, data, names=["dose"])
    for line, (level, slope) in zip(ax.lines, lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), level + slope * line.get_xdata(), rtol=1e-5)
    for points, of_group in zip(ax.collections, (1, 0), strict=True):
        rows = np.column_stack([x, y])[group == of_group]
        np.testing.assert_allclose(points.get_offsets(), rows)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dose", "y")
    assert legend_of(ax) == [f"component {j}: {(group == 1 - j).mean():.0%}" for j in (0, 1)]
    require_legible(ax.figure)
    with pytest.raises(TypeError, match=r"one response .n,. of regressions over one regressor"):
        plot.mixture(result, jaxem.Data(np.ones((5, 2)), np.ones(5)))
    trials = np.full(60, 4.0)
    params = jaxem.MixtureParams(
        np.array([0.5, 0.5]), jaxem.RegressionParams(np.array([[0.0, 0.5], [0.0, -3.0]]), None)
    )
    model = jaxem.Mixture(jaxem.Regression("binomial"), 2)
    ax = plot.mixture(
        fitted(model, data.x, params), jaxem.Data(x[:, None], group * 2.0, trials=trials)
    )
    first = ax.lines[0]
    expected = scipy.special.expit(0.5 * first.get_xdata())
    np.testing.assert_allclose(first.get_ydata(), expected, rtol=1e-5)
    assert ax.get_ylabel() == "y / trials"
    chain = types.SimpleNamespace(status=1, model=jaxem.HMM(jaxem.Normal(), 2))
    with pytest.raises(TypeError, match=r"got HMM: for states in time use plot\.sequence"):
        plot.mixture(chain, FAITHFUL)


def test_every_refusal_says_what_is_drawn():
    fleet = jax.tree.map(lambda a: np.asarray(a)[None], two_normals())
    for draw in (plot.mixture, plot.responsibilities, plot.sequence):
        with pytest.raises(
            TypeError, match=r"draws one fit, and this is a batch: pass result\[i\]"
        ):
            draw(fleet, FAITHFUL)
    with pytest.raises(TypeError, match="recorded no trace"):
        plot.trace(two_normals())
    with pytest.raises(TypeError, match=r"draws a fit of jaxem\.LDA, got Mixture"):
        plot.topics(two_normals())
    with pytest.raises(TypeError, match=r"draws what jaxem\.select returns, got int"):
        plot.selection(3)
    with pytest.raises(ValueError, match="the data have 7 columns, of which at most 6 are drawn"):
        plot.mixture(two_normals(), np.ones((5, 7)))
    with pytest.raises(TypeError, match="regressors with responses"):
        plot.mixture(two_normals(), jaxem.Data(FAITHFUL, FAITHFUL[:, 0]))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "jaxem\[plot\]"'):
        plot.mixture(two_normals(), FAITHFUL)
