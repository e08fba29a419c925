"""Every notebook runs, cell by cell, with its assertions, and prints what is stored in it."""

import pytest

from notebooks.__main__ import NOTEBOOKS, code_cells, difference, is_volatile, printed, run


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
    """`python -m notebooks NAME` stores a notebook anew."""
    outputs = run(path)
    for number, (cell, found) in enumerate(zip(code_cells(path), outputs, strict=True), 1):
        what = difference(printed(cell["outputs"]), printed(found))
        assert not what or is_volatile(cell), f"code cell {number}\n{what}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_a_picture(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(o["output_type"] == "display_data" for cell in cells for o in cell["outputs"])


@pytest.mark.parametrize(
    "stored, found, is_close",
    [
        ("a 1.00 b\n", "a 1.01 b\n", True),
        ("a 1.00 b\n", "a 1.20 b\n", False),
        ("a 1.00 b\n", "c 1.00 b\n", False),
        ("took 1.0 s\n", "took 3.0 s\n", True),
        ("took 1.0 s\n", "lost 1.0 s\n", False),
        ("[ 1.5 2 ]\n", "[1.5  2]\n", True),
        ("restarts: 8 CONVERGED\n", "restarts: 7 CONVERGED, 1 MAX_ITER\n", True),
        ("-1e-7\n", "-1.01e-7\n", True),
        ("one\n", "", False),
    ],
)
def test_the_comparison_of_texts(stored, found, is_close):
    assert (difference(stored, found) == "") == is_close
