"""Every notebook runs, cell by cell and in order, with its assertions, and is stored clean.

The cells are plain Python, without magics, so that no kernel is needed to run them. Figures are
drawn into memory.
"""

import json
import pathlib

import jax
import matplotlib
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with matplotlib.rc_context({"backend": "agg"}), jax.enable_x64(False):  # as readers have it
        monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
        for number, cell in enumerate(code_cells(path)):
            source = "".join(cell["source"])
            exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_clean(path):
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
