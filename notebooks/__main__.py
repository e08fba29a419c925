"""`python -m notebooks [name ...]` runs the notebooks anew and stores what they print and draw.

The cells are plain Python, without magics, so that no kernel is needed to run them. They run in
float32, as readers have it, in a folder of their own.
"""

import ast
import base64
import contextlib
import io
import json
import math
import pathlib
import re
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?(?![\w.]*\w)", re.IGNORECASE)
VOLATILE = re.compile(r"\b(seconds?|s|ms|minutes?|times|MB|MiB|steps|evaluations|sweeps)\b")
"""Lines with such a word have figures that differ between machines."""

COUNTS = "restarts: "
"""How such a line begins, with numbers of restarts by status: its words differ as well."""

CLOSE = 0.03
"""The largest relative difference between figures of two machines or two versions of JAX."""


def code_cells(path) -> list[dict]:
    cells = json.loads(pathlib.Path(path).read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(path, dpi=72) -> list[list[dict]]:
    """The outputs of every code cell of a notebook, in the notebook format: text and pictures."""
    import jax
    import matplotlib

    with (
        matplotlib.rc_context({"backend": "agg", "figure.dpi": dpi, "savefig.dpi": dpi}),
        jax.enable_x64(False),
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):
        return _outputs(pathlib.Path(path))


def _outputs(path):
    import matplotlib.pyplot as plt

    namespace, found = {"__name__": "__main__"}, []
    shown, plt.show = plt.show, lambda: None
    try:
        for number, cell in enumerate(code_cells(path), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                _execute("".join(cell["source"]), f"{path.name}, code cell {number}", namespace)
            found.append(_text(printed.getvalue()) + [_picture(n) for n in plt.get_fignums()])
            plt.close("all")
    finally:
        plt.show = shown
        plt.close("all")
    return found


def _execute(source, name, namespace):
    """Runs a cell; the value of an expression at its end is printed, as in a notebook."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if value is not None:
            print(repr(value))


def _text(printed):
    lines = printed.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _picture(number):
    import matplotlib.pyplot as plt

    image = io.BytesIO()
    options = {"bbox_inches": "tight", "metadata": {"Software": None}}
    plt.figure(number).savefig(image, format="png", **options)
    content = base64.b64encode(image.getvalue()).decode()
    data = {"image/png": content, "text/plain": ["<Figure>"]}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def store(path) -> None:
    """Runs a notebook and writes it with its outputs."""
    notebook, outputs = json.loads(path.read_text()), run(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, found) in enumerate(zip(cells, outputs, strict=True), 1):
        cell["outputs"], cell["execution_count"] = found, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def printed(outputs) -> str:
    """The text among the outputs of a cell."""
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


def is_volatile(cell) -> bool:
    """Whether a cell has the tag "volatile": what it prints differs between machines, as do counts
    of restarts by optimum, or between versions of Python, as does its documentation."""
    return "volatile" in cell["metadata"].get("tags", ())


def difference(stored: str, found: str) -> str:
    """What differs between two texts; nothing where the words are the same and the figures close.
    Spaces, figures of `VOLATILE` lines, and lines of `COUNTS` do not count."""
    before, after = stored.splitlines(), found.splitlines()
    if len(before) != len(after):
        return f"{len(before)} lines are stored, and {len(after)} were printed:\n{found}"
    for old, new in zip(before, after, strict=True):
        if old.startswith(COUNTS) and new.startswith(COUNTS):
            continue
        figures = NUMBER.findall(old), NUMBER.findall(new)
        same = _words(old) == _words(new) and len(figures[0]) == len(figures[1])
        if not same or (not VOLATILE.search(old) and not all(map(_close, *figures))):
            return f"stored: {old}\nfound:  {new}"
    return ""


def _words(line):
    return "".join(NUMBER.sub("0", line).split())


def _close(old, new):
    """Whether two printed figures are close, or their last printed digits differ by one."""
    digits = len(old.lower().partition("e")[0].partition(".")[2])
    a, b = (float(text.replace(",", "")) for text in (old, new))
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1.01 * 10.0**-digits)


if __name__ == "__main__":
    import warnings

    import jaxem

    warnings.simplefilter("error", jaxem.FitWarning)
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or NOTEBOOKS:
        begun = time.perf_counter()
        store(path)
        print(f"{path.stem}: {time.perf_counter() - begun:.0f} s", flush=True)
