"""`python -m jaxem data.csv`: the table, the summary, the picture, and what is wrong with files."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxem
from jaxem.__main__ import main

NAMES = ("Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width")
SPECIES = np.repeat(["setosa", "versicolor", "virginica"], 50)
QUICK = ("--k", "1:2", "--structures", "VVV", "--restarts", "2")


@pytest.fixture
def run(capsys):
    """Runs the command line: (the exit status, stdout, stderr)."""

    def call(*arguments):
        with jax.enable_x64(False):  # as users have it
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as error:
                status = error.code
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def written(path, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, row)) for row in rows) + "\n")
    return path


def iris_rows():
    """Iris as R's write.csv has it: the numbers of rows first, species in quotes last."""
    yield ['""', *(f'"{name}"' for name in NAMES), '"Species"']
    for i, (row, species) in enumerate(zip(jaxem.datasets.iris(), SPECIES, strict=True)):
        yield [f'"{i + 1}"', *row, f'"{species}"']


def groups(n=60):
    """Two columns (n, 2) in two groups far apart, in two digits."""
    rng = np.random.default_rng(0)
    return np.round(rng.normal(size=(n, 2)) + 8 * (np.arange(n) % 2)[:, None], 2)


def refused(found):
    """The one sentence of a call that was refused."""
    status, out, err = found
    assert status == 2 and not out
    assert err.startswith("python -m jaxem: ") and err.count("\n") == 1
    return err


def test_iris_end_to_end(run, tmp_path):
    """mclust's choice among three structures; the picture and the fit are files."""
    path = written(tmp_path / "iris.csv", iris_rows())
    picture, saved = tmp_path / "iris.png", tmp_path / "iris.npz"
    chosen = ("--k", "1:3", "--structures", "EEE,VEV,VVV")
    status, out, err = run(path, *chosen, "--plot", picture, "--save", saved)
    assert status == 0 and not err
    assert "150 rows, 6 columns separated by commas, names in line 1" in out
    assert f"fitted: {', '.join(map(repr, NAMES))}" in out
    assert "'column 1' only counts the rows (1 to 150)" in out
    assert "'Species' is not a number (line 2: 'setosa')" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:3].strip()}
    assert rows["1"] == ["829.98", "829.98", "829.98"]  # mclust: -829.9782, of one normal
    assert rows["2"] == ["688.10", "561.73*", "574.02"]
    assert "* Normal('VEV'), k=2" in out and "Petal.Length" in out.split("components.mean")[1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = jaxem.load(saved)
    assert abs(result.bic(jaxem.datasets.iris().astype(np.float32)) - 561.7285) < 1e-3


@pytest.mark.slow  # 126 models
def test_iris_in_all_structures(run, tmp_path):
    path = written(tmp_path / "iris.csv", iris_rows())
    status, out, _ = run(path, "--k", "1:9", "--structures", "all", "--save", tmp_path / "fit.npz")
    assert status == 0 and "* Normal('VEV'), k=2" in out and "561.73*" in out
    blocks = [line.split()[1:] for line in out.splitlines() if line.startswith("  k")]
    assert sum(map(len, blocks)) == 14
    assert all(
        sum(line.startswith(f"  {k} ") for line in out.splitlines()) == 2 for k in range(1, 10)
    )


def test_a_file_with_faults_is_fitted_and_its_faults_are_named(run, tmp_path):
    """Empty cells in four spellings, a row without a value, columns of no use; the fit is that of
    the library on the same numbers."""
    x = groups()
    x[3, 0] = x[10, 1] = x[20, 0] = x[30, 1] = x[40, 0] = np.nan
    x[50] = np.nan
    cells = np.where(np.isnan(x), "", x.astype(str))
    cells[10, 1], cells[20, 0], cells[30, 1], cells[50] = "NA", "nan", "?", ["", "NA"]
    rows = [["id", "a", "b", "site", "note", "gone"]]
    rows += [[i, *row, 7, "1O" if i == 5 else i % 4, ""] for i, row in enumerate(cells)]
    path, saved = written(tmp_path / "faults.csv", rows), tmp_path / "fit.npz"
    status, out, err = run(path, *QUICK, "--save", saved)
    assert status == 0 and not err
    assert "fitted: 'a', 'b'\n" in out
    assert "'id' only counts the rows (0 to 59)" in out
    assert "'site' is the same in all rows (7)" in out
    assert "'note' is not a number (line 7: '1O')" in out
    assert "'gone' has no values" in out
    assert "rows without a value, left out: 1 (line 52)" in out
    named = "line 5 'a', line 12 'b', line 22 'a', line 32 'b', ..."
    assert f"empty cells, fitted as missing at random: 5 ({named})" in out
    y = np.delete(x, 50, axis=0).astype(np.float32)
    with jax.enable_x64(False):
        expected = jaxem.fit(jaxem.load(saved).model, y, key=0, restarts=2)
    assert abs(jaxem.load(saved).log_likelihood - expected.log_likelihood) < 1e-3
    assert f"{expected.bic():.2f}*" in out


FORMS = {
    "semicolons, decimal commas": (";", True, True, "semicolons, decimal commas, names in line 1"),
    "tabs, no header": ("\t", False, False, "tabs, no names of columns"),
    "spaces": ("   ", True, False, "spaces, names in line 1"),
    "tabs, decimal commas": ("\t", True, True, "tabs, decimal commas, names in line 1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form, run, tmp_path):
    """The same numbers in other forms give the same table."""
    separator, has_names, comma, said = FORMS[form]
    cells = groups().astype(str)
    cells = np.char.replace(cells, ".", ",") if comma else cells
    path = written(tmp_path / "x.txt", [["a", "b"]] * has_names + cells.tolist(), separator)
    status, out, err = run(path, *QUICK)
    assert status == 0 and not err
    assert f"60 rows, 2 columns separated by {said}\n" in out
    with jax.enable_x64(False):
        x = groups().astype(np.float32)
        table = str(jaxem.select(x, k=range(1, 3), covariance="VVV", key=0, restarts=2))
    assert table in out


def test_one_column_has_two_structures(run, tmp_path):
    """One column, in UTF-16 with its mark as Excel writes it, has mclust's E and V."""
    path = tmp_path / "waits.txt"
    path.write_text("waiting time\n" + "\n".join(map(str, groups()[:, 0])), encoding="utf-16")
    status, out, _ = run(path, "--k", "2", "--structures", "all", "--plot", tmp_path / "x.svg")
    assert status == 0 and "fitted: 'waiting time'" in out and "60 rows, 1 column, names" in out
    heads = [line.split() for line in out.splitlines() if line.startswith("  k")]
    assert heads == [["k", "EII", "VII"]]
    assert (tmp_path / "x.svg").read_text().count("waiting time")


def test_columns_are_chosen(run, tmp_path):
    """By name or number; a column that counts rows is fitted where it is asked for."""
    rows = [["n", "a, b", "c"], *([i + 1, *row] for i, row in enumerate(groups()))]
    rows[0] = ["n", '"a, b"', "c"]
    path = written(tmp_path / "x.csv", rows)
    status, out, _ = run(path, *QUICK, "--columns", '"a, b",1')
    assert status == 0 and "fitted: 'a, b', 'n'\n" in out and "left out" not in out
    err = refused(run(path, "--columns", "C"))
    assert "no column 'C', only 'n', 'a, b', 'c'" in err


def test_names_by_numpy(run, tmp_path):
    """np.savetxt has a number sign before the names."""
    np.savetxt(tmp_path / "x.txt", groups(), header="a b")
    status, out, _ = run(tmp_path / "x.txt", *QUICK)
    assert status == 0 and "fitted: 'a', 'b'\n" in out and "left out" not in out


def test_names_of_rows_without_a_heading(run, tmp_path):
    """R's write.table has one name less than columns."""
    rows = [["a", "b"], *([f'"row {i}"', *row] for i, row in enumerate(groups()))]
    status, out, _ = run(written(tmp_path / "x.txt", rows, " "), *QUICK)
    assert status == 0 and "fitted: 'a', 'b'\n" in out
    assert "left out: 'column 1' is not a number (line 2: 'row 0')" in out


X = "a,b,word\n1.5,2,u\n2.5,4,v\n3.5,3,w\n"
WRONG_FILES = {
    "empty": (b"\n \n", "is empty"),
    "latin-1": ("name,x\nJosé,1\n".encode("latin-1"), "is not text in UTF-8 (byte 11)"),
    "workbook": (b"PK\x03\x04\x00\x00", "is not a text file: save it as CSV in UTF-8"),
    "ragged": (b"a,b\n1,2\n\n1,2,3\n4,5\n", "line 4 has 3 cells and line 1 has 2"),
    "twice": (b"a,b,a\n1,2,3\n2,3,4\n", "two columns are called 'a'"),
    "names only": (b"a,b\n", "has names of columns and no rows"),
    "words": (b"a,b\nx,y\nz,w\n", "no column to fit: 'a' is not a number (line 2: 'x'); 'b' is"),
    "infinite": (b"a\n1\ninf\n3\n", "'a' is not finite (line 3: 'inf')"),
    "years": (b"place,2001,2002\n3,4,5\n7,9,1\n", "('place', '2001'): say --header or --no-header"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_what_is_wrong_with_a_file(name, run, tmp_path):
    path = tmp_path / "x.csv"
    content, said = WRONG_FILES[name]
    path.write_bytes(content)
    assert said in refused(run(path, "--k", "1"))


WRONG_ARGUMENTS = {
    "k is zero": (("--k", "0:3"), "--k: '0:3' is no number of components"),
    "k falls": (("--k", "9:1"), "--k: '9:1' is no number of components"),
    "k is a word": (("--k", "two"), "give 3, 2,4 or 1:9"),
    "k above n": (("--k", "1:4"), "--k: 4 components need as many rows, and"),
    "structure": (("--k", "1", "--structures", "VVX"), "'VVX' is none of all, EII"),
    "restarts": (("--restarts", "0"), "--restarts: '0' is no integer of 1 or more"),
    "option": (("--key", "3"), "unrecognized arguments: --key"),
    "a folder that is not there": (("--save", "no/fit.npz"), "--save: there is no folder no"),
    "picture": (("--plot", "x.csv"), "--plot: 'x.csv' must end in one of"),
    "k is vast": (("--k", "1:999999999"), "from 1 to 1000"),
    "no column": (("--columns", "c"), "has no column 'c', only 'a', 'b', 'word'"),
    "words": (("--columns", "a,word"), "column 'word' is not a number (line 2: 'u')"),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_what_is_wrong_with_arguments(name, run, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(X)
    arguments, said = WRONG_ARGUMENTS[name]
    assert said in refused(run(path, *arguments))


def test_a_file_that_is_not_there():
    """In a process of its own: one sentence, no traceback."""
    command = [sys.executable, "-m", "jaxem", "absent.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and not done.stdout
    said = "python -m jaxem: absent.csv cannot be read: No such file or directory\n"
    assert done.stderr == said


def test_no_sound_fit_is_said(run, tmp_path):
    """Three rows on a line: every full covariance collapses."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n2,4\n3,6\n")
    status, out, err = run(path, "--k", "2", "--structures", "VVV", "--restarts", "1")
    assert status == 1 and "No fit is sound" in out and "note: 1 of 1 models" in err


def test_the_demonstration(run, tmp_path, monkeypatch):
    """Without arguments, with fewer models than users have."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("STRUCTURES", ("full",)), ("COMPONENTS", range(1, 3)), ("RESTARTS", 2)):
        monkeypatch.setattr(f"jaxem.__main__.{name}", value)
    status, out, _ = run()
    assert status == 0 and "4 fits ended: 4 CONVERGED" in out
    assert "* Normal('full'), k=2" in out and "-1130.26" in out
    assert (tmp_path / "old_faithful.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_units_beyond_float32(unit, run, tmp_path):
    """Masses of atoms and of planets in kilograms: the table is that in other units, shifted by
    2 n d log(unit)."""
    x = groups()
    path = tmp_path / "x.csv"
    np.savetxt(path, x * unit, delimiter=",")
    status, out, err = run(path, *QUICK, "--save", tmp_path / "fit.npz")
    assert status == 0 and not err and "k=2" in out.split("* ")[1]
    result = jaxem.load(tmp_path / "fit.npz")
    expected = jaxem.fit(jaxem.Mixture(jaxem.Normal("VVV"), 2), x, key=0, restarts=2)
    assert abs(result.bic() - expected.bic() - 2 * x.size * np.log(unit)) < 1e-3
    means = result.params.components.mean / unit
    order = [np.argsort(m[:, 0]) for m in (means, expected.params.components.mean)]
    np.testing.assert_allclose(
        means[order[0]], expected.params.components.mean[order[1]], rtol=1e-5, atol=1e-6
    )


def test_an_output_that_cannot_be_written(run, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(X)
    err = refused(run(path, "--k", "1", "--save", tmp_path / f"{'x' * 300}.npz"))
    assert "x.npz cannot be written: " in err


def test_help_has_an_example(run):
    status, out, _ = run("--help")
    assert status == 0 and "python -m jaxem iris.csv --k 1:9 --structures all" in out
