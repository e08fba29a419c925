"""`python -m jaxem`: normal mixtures of Old Faithful, or of the columns of a file: table, summary,
picture."""

import argparse
import csv
import importlib.util
import os
import pathlib
import re
import sys
import time
import warnings
from collections import Counter

import jax
import numpy as np

import jaxem
from jaxem.analysis.plot.mixture import MOST_COLUMNS
from jaxem.data.options import suggestion
from jaxem.data.precision import float64, needs_float64
from jaxem.data.text_files import read_table
from jaxem.families.normal.structures import STRUCTURES as ALL_STRUCTURES

STRUCTURES = ("spherical", "diagonal", "tied", "full")
COMPONENTS = range(1, 7)
RESTARTS = 64
PICTURE = "old_faithful.png"
COLUMNS = ["eruption (min)", "waiting (min)"]

MCLUST = tuple(name for name in ALL_STRUCTURES if name.isupper())
ALIASES = {"spherical": "VII", "diagonal": "VVI", "tied": "EEE", "full": "VVV"}
FEW = "VII,VVI,EEE,VVV"
MOST = 1000
"""The largest number of components."""

LARGEST = 1e18
"""Larger numbers, whose squares float32 can hardly hold, are fitted in float64."""

NAMED_CELLS = 4
"""Empty cells and rows that are named; of more only their number is."""

EXAMPLE = """example:
  python -m jaxem iris.csv --k 1:9 --structures all --plot iris.png --save iris.npz
  python -c "import jaxem; print(jaxem.load('iris.npz').summary())"

Separators (comma, semicolon, tab, spaces), decimal commas and a header are found out.
Empty cells, NA, nan and ? are missing at random. Columns that are not numbers, that only
count the rows, or that have no variation are left out and named."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with exit status 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    made = Parser(
        prog="python -m jaxem",
        description="Fits normal mixtures to the columns of a text file and chooses one by BIC.\n"
        "Without a file: the demonstration, mixtures of Old Faithful.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("file", help="a table as text, such as data.csv")
    add("--k", type=sizes, default="1:9", metavar="K", help="such as 3, 2,4 or 1:9 (with 9)")
    add(
        "--structures",
        default=FEW,
        metavar="LIST",
        help=f"all, which are mclust's 14, or some of them (default {FEW})",
    )
    add("--columns", metavar="LIST", help="the columns to fit, by name or number from 1")
    add("--restarts", type=positive, default=8, help="starts of every model (default 8)")
    add("--seed", type=int, default=0, help="of the starts (default 0)")
    add(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether line 1 has names (default: found out)",
    )
    add("--plot", metavar="PNG", help="draws the chosen model and the BIC of all")
    add("--save", metavar="NPZ", help="writes the chosen fit, for jaxem.load")
    return made


def sizes(text: str) -> list[int]:
    """Numbers of components: "3", "2,4", "1:9" with 9, or such in one list."""
    found = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last <= MOST:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no number of components: give 3, 2,4 or 1:9, from 1 to {MOST}"
            )
        found |= set(range(first, last + 1))
    return sorted(found)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of 1 or more")
    return int(text)


def structures(text: str, d: int) -> list[str]:
    """mclust's names of covariance structures. Of one column there are two, "E" and "V", which are
    the first letters of all. ValueError for other names."""
    names = MCLUST if text == "all" else [name.strip() for name in text.split(",")]
    found = []
    for name in names:
        known = ALIASES.get(name.lower(), name.upper())
        if known not in (*MCLUST, "E", "V") or (d > 1 and len(known) == 1):
            choices = ("all", *MCLUST, *ALIASES) if d > 1 else ("all", "E", "V")
            raise ValueError(
                f"argument --structures: {name!r} is none of {', '.join(choices)}"
                + suggestion(known, choices)
            )
        found.append(known if d > 1 else f"{known[0]}II")
    return list(dict.fromkeys(found if d > 1 else sorted(found)))


def fit_file(options) -> int:
    """Prints the fit of a file. ValueError and OSError, in one sentence, where it has none."""
    columns = None
    if options.columns:
        columns = next(csv.reader([options.columns], skipinitialspace=True))
    require_outputs(options)
    table = read_table(options.file, columns, options.header)
    n, d = table.x.shape
    kinds = structures(options.structures, d)
    if max(options.k) > n:
        raise ValueError(
            f"argument --k: {max(options.k)} components need as many rows, and {options.file} has "
            f"{n} with values"
        )
    print("\n".join(described(options.file, table)), end="\n\n", flush=True)
    if needs_float64(table.x) or exceeds_float32(table.x):
        with float64():
            return fit_table(table, table.x, kinds, options)
    return fit_table(table, table.x.astype(np.float32), kinds, options)


def exceeds_float32(x) -> bool:
    """Whether squares of numbers or of spreads are beyond the range of float32."""
    spread = np.nanmax(x, axis=0) - np.nanmin(x, axis=0)
    return bool(np.nanmax(abs(x)) > LARGEST or spread.min() < 1 / LARGEST)


def fit_table(table, x, kinds, options) -> int:
    """Prints the fits of x and writes the picture and the file. Returns the exit status."""
    missing = bool(np.isnan(x).any())
    models = {
        f"Normal({kind!r}), k={k}": jaxem.Mixture(jaxem.Normal(kind, missing=missing), k)
        for kind in kinds
        for k in options.k
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", jaxem.FitWarning)
        selection = jaxem.select(x, models, key=options.seed, restarts=options.restarts)
    print(selection, end="\n\n")
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {text}", file=sys.stderr)
    if selection.best is None:
        print("No fit is sound: use fewer components or columns, or a simpler structure")
        return 1
    print(selection.best.summary(table.names))
    if options.plot:
        drawn, d = draw(x, selection, options.plot, table.names), x.shape[1]
        part = f" (of {d} columns the {len(drawn)} in which components differ most)"
        print(f"\nPicture: {options.plot}{part * (len(drawn) < d)}")
    if options.save:
        selection.best.save(options.save)
        print(f"\nSaved: jaxem.load({options.save!r})")
    return 0


def require_outputs(options) -> None:
    """ValueError where the picture or the file could not be written once the fit is done."""
    for name in ("plot", "save"):
        path = getattr(options, name)
        if path is not None and not pathlib.Path(path).absolute().parent.is_dir():
            raise ValueError(f"argument --{name}: there is no folder {pathlib.Path(path).parent}")
        if path is not None and pathlib.Path(path).is_dir():
            raise ValueError(f"argument --{name}: {path} is a folder")
    if options.plot is None:
        return
    if not importlib.util.find_spec("matplotlib"):
        raise ValueError('argument --plot needs matplotlib: pip install "jaxem[plot]"')
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    suffix = pathlib.Path(options.plot).suffix
    if suffix[1:].lower() not in kinds:
        raise ValueError(
            f"argument --plot: {options.plot!r} must end in one of .{', .'.join(sorted(kinds))}"
        )


def described(path, table) -> list[str]:
    """What was found in a file: its form, the columns, and cells without a value."""
    lines = [f"{path}: {table.form}", f"fitted: {', '.join(map(repr, table.names))}"]
    if table.left_out:
        reasons = (f"{name!r} {reason}" for name, reason in table.left_out.items())
        lines.append(f"left out: {'; '.join(reasons)}")
    if table.empty_lines:
        listed = few([f"line {line}" for line in table.empty_lines])
        lines.append(f"rows without a value, left out: {listed}")
    cells = np.argwhere(np.isnan(table.x))
    if len(cells):
        listed = few([f"line {table.lines[i]} {table.names[j]!r}" for i, j in cells])
        lines.append(f"empty cells, fitted as missing at random: {listed}")
    return lines


def few(entries) -> str:
    """The number of entries and the first of them."""
    end = ", ..." * (len(entries) > NAMED_CELLS)
    return f"{len(entries)} ({', '.join(entries[:NAMED_CELLS])}{end})"


def draw(x, selection, path, names) -> list[int]:
    """The data with the chosen components beside the criterion of all models; of many columns those
    in which the means of components differ most. Returns the columns that are drawn."""
    from matplotlib.figure import Figure

    result, d = selection.best, x.shape[1]
    params = jax.tree.map(np.asarray, result.params)
    away = params.components.mean - params.weights @ params.components.mean
    differ = (params.weights @ np.square(away)) / np.nanvar(x, axis=0)
    columns = sorted(np.argsort(-differ, kind="stable")[:MOST_COLUMNS].tolist())
    c = len(columns) if d > 2 else 1
    width = 7.0 if c == 1 else 1.9 * c + 1
    figure = Figure(figsize=(width + 7, max(4.5, 1.8 * c)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(width, 7))
    panels = left.subplots(c, c) if c > 1 else left.subplots()
    jaxem.plot.mixture(result, x, panels, columns=columns, names=names)
    jaxem.plot.selection(selection, right.subplots())
    figure.savefig(path, dpi=120)
    return columns


def timed(x):
    models = [jaxem.Mixture(jaxem.Normal(s), k=k) for s in STRUCTURES for k in COMPONENTS]
    begun = time.perf_counter()
    selection = jaxem.select(x, models, key=0, restarts=RESTARTS)
    return selection, time.perf_counter() - begun


def demonstrate() -> int:
    """Old Faithful, from the BIC table to the chosen model."""
    x = jaxem.datasets.old_faithful().astype(np.float32)
    with warnings.catch_warnings():
        # Fits that ended otherwise are marked in the table and counted below.
        warnings.simplefilter("ignore", jaxem.FitWarning)
        selection, first = timed(x)
        _, again = timed(x)

    print(f"Old Faithful: {len(x)} eruptions\n\n{selection}\n")
    print(selection.best.summary(COLUMNS))
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
        draw(x, selection, PICTURE, COLUMNS)
        print(f"Picture: {PICTURE}")
    else:
        print('No picture: pip install "jaxem[plot]" draws one')
    print("A file of your own: python -m jaxem data.csv, with --help for more")
    return 0


def main(argv=None) -> int:
    """Returns the exit status; SystemExit with status 2 where the arguments or the file are
    wrong."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        return demonstrate()
    command = parser()
    options = command.parse_args(argv)
    try:
        return fit_file(options)
    except BrokenPipeError:  # of `| head`: the flush at exit must not raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        command.error(f"{error.filename} cannot be written: {error.strerror}")
    except ValueError as error:
        command.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
