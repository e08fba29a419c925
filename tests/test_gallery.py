"""The models of the gallery on published data, in float64.

The models stand in notebooks/gallery.ipynb alone, where readers see them: this file runs the cells
that define them.
"""

import ast
import csv
import json
import pathlib

import numpy as np
import pytest

import jaxem

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT.parent / "shared" / "published"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"] if FOLDER.exists() else []
LATENT = {case["id"]: case for case in CASES if case["issue"] == "latent"}
published = pytest.mark.skipif(not LATENT, reason="../shared/published is absent")


def gallery():
    """The names that the imports and the model cells of the notebook define, and their classes."""
    cells = json.loads((ROOT / "notebooks" / "gallery.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace = {"__name__": "gallery"}
    trees = [(source, ast.parse(source).body) for source in code]
    classes = [s for s, body in trees if isinstance(body[0], ast.ClassDef)]
    for source in (code[0], *classes):
        exec(compile(source, "gallery.ipynb", "exec"), namespace)
    return namespace, classes


MODELS, SOURCES = gallery()


def fit(model, x, **options):
    return jaxem.fit(model, x, tol=1e-12, max_iter=20_000, **{"key": 0} | options)


def columns(case):
    """The columns of a table, by name."""
    heads, *rows = csv.reader((FOLDER / case["data"]).open())
    return {head: np.array([row[i] for row in rows]) for i, head in enumerate(heads)}


def check(case, result):
    assert result.converged
    assert abs(float(result.log_likelihood) - case["log_likelihood"]) < case["tolerance"]


def test_there_are_ten_models_of_at_most_twenty_lines():
    assert len(SOURCES) == 10
    for source in SOURCES:
        assert len([line for line in source.splitlines() if line.strip()]) <= 20, source


GENES = {
    "abo-435": (((0, 2, 0), (2, 1, 1), (0, 1, 3)), ["A", "B", "AB", "O"], "pqr"),
    "peppered-moths": (
        ((0, 0, 0), (0, 1, 1), (0, 1, 2)),
        ["carbonaria", "insularia", "typica"],
        "CIT",
    ),
}


@published
@pytest.mark.parametrize("name", GENES)
def test_alleles(name):
    case, (table, phenotypes, alleles) = LATENT[name], GENES[name]
    x = np.arange(float(len(phenotypes)))[:, None]
    weights = np.array([case["inline"][phenotype] for phenotype in phenotypes], float)
    result = fit(MODELS["Alleles"](table), x, weights=weights)
    check(case, result)
    expected = [case["params"][allele] for allele in alleles]
    np.testing.assert_allclose(result.params, expected, atol=case["params_tolerance"])
    errors = result.standard_errors(x, weights).errors
    np.testing.assert_allclose(errors, case["standard_errors"], rtol=1e-5)


@published
def test_raters():
    """The published local maximum from the shares of votes, the highest known one from random
    starts."""
    case = LATENT["dawid-skene"]
    table = columns(case)
    patient, rater, rating = (table[name].astype(int) - 1 for name in case["columns"])
    x = np.zeros((45, 5, 4))
    np.add.at(x, (patient, rater, rating), 1)
    model, votes = MODELS["Raters"](), x.sum(1) / x.sum((1, 2))[:, None]
    start = model.maximize(None, model.statistics(None, x, votes, np.ones(45)))
    result = fit(model, x, init=start)
    check(case, result)
    tolerance = case["params_tolerance"]
    np.testing.assert_allclose(result.params["shares"], case["params"]["weights"], atol=tolerance)
    first = result.params["confusion"][0]
    np.testing.assert_allclose(first, case["params"]["rater1"], atol=tolerance)
    assert (np.bincount(result.predict(x)) == [18, 19, 5, 3]).all()
    best = fit(model, x, restarts=100)
    assert best.converged
    assert abs(float(best.log_likelihood) - case["best_known"]) < case["tolerance"]


@published
@pytest.mark.parametrize("name", ["lsat6-rasch", "lsat6-2pl"])
def test_abilities(name):
    case = LATENT[name]
    table = columns(case)
    answers = np.stack([table[f"Q{j}"].astype(float) for j in range(1, 6)], 1)
    x, weights = np.unique(answers, axis=0, return_counts=True)
    slopes = np.size(case["params"]["a"])
    result = fit(MODELS["Rasch"](slopes, nodes=61), x, weights=weights.astype(float))
    check(case, result)
    found = np.concatenate([result.params["slope"], result.params["easiness"]])
    expected = np.append(case["params"]["a"], case["params"]["d"])
    np.testing.assert_allclose(found, expected, atol=case["params_tolerance"])
    if "standard_errors" in case:
        errors = result.standard_errors(x, weights.astype(float)).errors
        found = np.concatenate([errors["slope"], errors["easiness"]])
        np.testing.assert_allclose(found, case["standard_errors"], rtol=2e-5)


@published
def test_random_intercepts():
    case = LATENT["dyestuff"]
    table = columns(case)
    y = table["Yield"].astype(float).reshape(6, 5)
    assert (table["Batch"].reshape(6, 5) == table["Batch"][::5, None]).all()
    result = fit(MODELS["RandomCoefficients"](), (np.ones((6, 5, 1)), y))
    check(case, result)
    expected, tolerance = case["params"], case["params_tolerance"]
    for name in ("mean", "between", "within"):
        np.testing.assert_allclose(result.params[name].ravel(), expected[name], atol=tolerance)


@published
def test_random_intercepts_and_slopes():
    case = LATENT["sleepstudy"]
    table = columns(case)
    y, days = (table[name].astype(float).reshape(18, 10) for name in ("Reaction", "Days"))
    assert (table["Subject"].reshape(18, 10) == table["Subject"][::10, None]).all()
    x = (np.stack([np.ones((18, 10)), days], 2), y)
    result = fit(MODELS["RandomCoefficients"](), x)
    check(case, result)
    params, expected = result.params, case["params"]
    tolerance = case["params_tolerance"]
    np.testing.assert_allclose(params["mean"], expected["coef"], atol=tolerance)
    np.testing.assert_allclose(params["between"], expected["cov"], atol=tolerance)
    residual = np.sqrt(params["within"])
    np.testing.assert_allclose(residual, expected["residual_sd"], atol=tolerance)
    errors = result.standard_errors(x).errors["mean"]
    np.testing.assert_allclose(errors, case["standard_errors"]["coef"], rtol=1e-5)


def network(case):
    """The 0/1 matrix of the 51 trees (1, 51, 51), without loops."""
    table = columns(case)
    ends = np.stack([table["i"].astype(int), table["j"].astype(int)])
    x = np.zeros((1, 51, 51))
    x[0, ends[0], ends[1]] = x[0, ends[1], ends[0]] = 1
    return x * (1 - np.eye(51))


BLOCKS = [(2, 4), (3, 12), (4, 24)]


@published
@pytest.mark.parametrize(("k", "restarts"), BLOCKS, ids=lambda value: str(value))
def test_blocks(k, restarts):
    """Mean field reaches the best known bound, and so passes those that the vignette prints."""
    case = LATENT[f"trees-blocks-{k}"]
    result = jaxem.fit(MODELS["Blocks"](k), network(case), key=0, restarts=restarts)
    assert result.converged and (result.restarts.status == jaxem.Status.CONVERGED).all()
    assert abs(float(result.objective) - case["elbo"]) < case["tolerance"]
    shares = np.sort(result.params["shares"])
    expected = np.sort(case["params"]["weights"])
    np.testing.assert_allclose(shares, expected, atol=case["params_tolerance"])


def test_emission():
    """At the maximum of the concave likelihood a step multiplies no pixel by more than 1."""
    rng = np.random.default_rng(0)
    paths = rng.dirichlet(np.ones(30), 6).T * (rng.uniform(size=(30, 6)) < 0.5) + 0.01
    counts = rng.poisson(paths @ [400, 200, 0, 0, 100, 300.0]).astype(float)
    result = fit(MODELS["Emission"](), (counts, paths))
    assert str(result).startswith("Emission(): 30 units")
    pixels = np.asarray(result.params)
    factor = (counts / (paths @ pixels)) @ paths / paths.sum(0)
    assert result.converged and counts.sum() * (factor.max() - 1) < 1e-4
    assert pixels @ paths.sum(0) == pytest.approx(counts.sum())
    wrong = pixels * 1.01 ** np.arange(6)
    wrong *= counts.sum() / (wrong @ paths.sum(0))
    factor = (counts / (paths @ wrong)) @ paths / paths.sum(0)
    assert counts.sum() * (factor.max() - 1) > 1
