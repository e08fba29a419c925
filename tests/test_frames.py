"""Data frames in and out, names of columns, and the page about a fit."""

import jax
import numpy as np
import pytest
from internals import adopt
from zoo import REAL, Graph, K

import jaxem

pandas = pytest.importorskip("pandas")

NAMES = ["length", "width", "depth"]
FRAME = pandas.DataFrame(REAL, columns=NAMES)
MODEL = jaxem.Mixture(jaxem.Normal("tied"), k=K)  # as many components as columns


@pytest.fixture(scope="module")
def result():
    return jaxem.fit(MODEL, FRAME, key=0, restarts=4)


def test_names_stay_with_a_result(result):
    assert result.column_names == NAMES
    assert jaxem.fit(MODEL, REAL, key=0, restarts=4).column_names is None
    assert jax.tree.map(lambda a: a, result).column_names is None
    chosen = jaxem.select(FRAME, [MODEL], key=0, restarts=4)
    assert chosen.best.column_names == NAMES


def test_any_data_frame_with_columns_is_taken(result):
    """By the interchange of arrays, without a dependency: such as one of polars."""

    class Frame:
        columns = ("length", "width", "depth")

        def __array__(self, dtype=None, copy=None):
            return np.array(REAL, dtype)

    other = jaxem.fit(MODEL, Frame(), key=0, restarts=4)
    assert other.column_names == NAMES
    assert other.objective == result.objective


def test_messages_name_columns():
    wrong = FRAME.copy()
    wrong.loc[3, "width"] = np.nan
    with pytest.raises(ValueError, match=r"the first at index \(3, 1\) in 'width': nan; it takes"):
        jaxem.fit(MODEL, wrong, key=0, restarts=4)
    words = FRAME.assign(depth="deep", width="wide")
    with pytest.raises(TypeError, match="in columns 'width', 'depth': pass real numbers"):
        jaxem.fit(MODEL, words, key=0, restarts=4)


def test_the_page_about_a_fit(result):
    page = result.summary()
    lines = page.splitlines()
    assert lines[0].startswith("Mixture(components=Normal(covariance='tied'")
    values = dict(line.split()[::-1] for line in lines if len(line.split()) == 2)
    values = {name: float(value) for value, name in values.items() if "." in value}
    likelihood = float(result.log_likelihood)
    p, n = int(result.n_parameters), len(REAL)
    for name, expected in (
        ("log-likelihood", likelihood),
        ("AIC", 2 * p - 2 * likelihood),
        ("BIC", p * np.log(n) - 2 * likelihood),
        ("ICL", p * np.log(n) - 2 * likelihood + 2 * float(result.entropy())),
    ):
        np.testing.assert_allclose(values[name], expected, atol=6e-5)
    words = " ".join(page.split())
    assert f" units {n} free parameters {p} log-likelihood " in words
    assert "restarts: 4 CONVERGED" in page
    assert page.count("length") == 3  # above the means, above and beside the covariance
    weights = rows_under(page, "component   weights", skipped=1)
    np.testing.assert_allclose(np.ravel(weights), result.params.weights, rtol=1e-5)


def rows_under(page, title, skipped=2):
    """The numbers of the table with this title, which ends with an empty line."""
    lines = page.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(title)) + skipped
    rows = []
    for line in lines[first:]:
        if not line:
            break
        rows.append([float(word) for word in line.split()[1:]])
    return rows


def test_a_matrix_of_all_components_is_no_table_of_components(result):
    """Also where it has as many rows as there are components, and where the data are gone."""
    for one in (result, jax.tree.map(np.asarray, result)):
        page = one.summary(NAMES)
        shared = rows_under(page, "components.covariance, the same for all components")
        np.testing.assert_allclose(shared, result.params.components.covariance, rtol=1e-5)
        mean = rows_under(page, "components.mean")
        np.testing.assert_allclose(mean, result.params.components.mean, rtol=1e-5)


def made_up(model, params, shape, objective=-1.0):
    """A result with these params, which no fit found."""
    ends = {"log_likelihood": -1.0, "objective": objective, "n_iter": 3, "status": 2}
    fit = jaxem.Fit(params, **{name: np.asarray(value) for name, value in ends.items()})
    every = jax.tree.map(lambda a: np.asarray(a)[None], fit)
    return jaxem.Result.of(model, fit, every, shape)


def test_shared_noise_of_as_many_columns_as_components():
    mean, loadings = np.zeros((3, 3)), np.ones((3, 3, 1))
    params = jaxem.FactorParams(mean, loadings, np.array([1.0, 2.0, 3.0]))
    params = jaxem.MixtureParams(np.full(3, 1 / 3), params)
    model = jaxem.Mixture(jaxem.Factors(1, shared_noise=True), 3)
    page = made_up(model, params, (40, 3)).summary()
    assert rows_under(page, "components.noise, the same") == [[1.0, 2.0, 3.0]]
    assert "warnings\n  MAX_ITER: the iteration limit was reached first" in page


def test_a_matrix_of_every_component_has_rows_and_columns():
    covariance = np.array([[[4.0, 1.0], [1.0, 2.0]], [[9.0, -1.0], [-1.0, 3.0]]])
    params = jaxem.NormalParams(np.array([[0.0, 1.0], [5.0, 6.0]]), covariance)
    model, params = jaxem.Mixture(jaxem.Normal(), 2), jaxem.MixtureParams(np.full(2, 0.5), params)
    result = made_up(model, params, (40, 2))
    for names, first in ((None, "0"), (["height", "weight in kg"], "height")):
        page = result.summary(names)
        for j in range(2):
            title = f"components.covariance of component {j}"
            lines = page[page.index(title) :].splitlines()[1:4]
            assert lines[1].split()[0] == first
            found = [[float(word) for word in line.split()[-2:]] for line in lines[1:]]
            np.testing.assert_array_equal(found, covariance[j])
            assert len({len(line) for line in lines}) == 1  # aligned


def test_the_page_about_a_users_model():
    params = {"shares": np.array([0.3, 0.7]), "links": np.array([[0.5, 0.1], [0.1, 0.4]])}
    page = made_up(adopt(Graph(2)), params, (1, 12, 12), objective=-1.5).summary()
    assert "objective" in page and "shares" in page and "0.7" in page


def test_frames_of_optima_selections_and_fleets(result):
    optima = result.optima().to_dataframe()
    assert list(optima.columns) == ["status", "objective", "count", "share", "index"]
    assert optima["count"].sum() == 4 and optima.objective[0] == float(result.objective)
    table = (
        jaxem.Row("a, k=1", MODEL, 1, 5, -30.0, 70.0, jaxem.Status.CONVERGED),
        jaxem.Row("a, k=2", MODEL, 2, 9, -20.0, 60.0, jaxem.Status.MAX_ITER),
    )
    frame = jaxem.Selection("bic", table, (result, result), 1).to_dataframe()
    assert frame.status.tolist() == ["CONVERGED", "MAX_ITER"]
    assert frame.chosen.tolist() == [False, True] and frame.k.tolist() == [1, 2]
    rows = tuple(row._replace(data_set=i) for i in (0, 1) for row in table)
    scores = np.array([[70.0, 60.0], [70.0, 60.0]])
    of_batch = jaxem.BatchSelection("bic", rows, (result, result), scores, np.array([1, 0]))
    frame = of_batch.to_dataframe()
    assert frame.data_set.tolist() == [0, 0, 1, 1]
    assert frame.chosen.tolist() == [False, True, True, False]
    assert len(result.to_dataframe()) == 1


def test_without_pandas(result, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas, which is not installed"):
        result.optima().to_dataframe()
