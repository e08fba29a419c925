"""Tables in text files: separators, header, decimal commas and missing cells are found out."""

import codecs
import csv
import io
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from jaxem.data.options import suggestion

MISSING = ("", "na", "nan", "n/a", "null", "?")
"""Cells without a value, in any case of letters."""

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", " ": "spaces", "": "nothing"}
"""Separators in words; "" is that of a single column."""

SAMPLED_LINES = 200
"""Lines from which the separator is found out."""

COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
"""A number with a decimal comma."""


class TableError(ValueError):
    """A file that is no table of numbers, in one sentence."""


class Table(NamedTuple):
    """The numbers of a file.

    x (n, d): float64, NaN where a cell has no value; names: of the d columns; lines (n,): the line
    of every row in the file, from 1; left_out: the reason of every other column, by its name;
    empty_lines: those of rows without a value, which are left out; form: a sentence on the form of
    the file.
    """

    x: np.ndarray
    names: list[str]
    lines: np.ndarray
    left_out: dict[str, str]
    empty_lines: list[int]
    form: str


def read_table(path, columns=None, header=None) -> Table:
    """The columns of numbers of a text file.

    Separators are tabs, semicolons, commas or spaces, fields may be in double quotes. Numbers have
    a decimal comma in columns that hold no point, unless commas separate. Left out are columns that
    are not numbers, that only count the rows (1 to n or 0 to n - 1), or that have no variation, and
    rows without a value.

    path: in UTF-8, or in UTF-16 with its byte order mark. columns: names, or numbers from 1, of the
    columns to read; None: all. header: whether the first line has names; None: found out.

    Raises TableError, whose message is one sentence that names the file.
    """
    lines, rows, separator = _rows(path)
    if len(rows) > 1 and separator in ("\t", " ") and _lack_one_name(rows) and header is not False:
        rows[0].insert(0, "")  # R's write.table has no name for the names of the rows
        header = True
    _require_rectangle(path, lines, rows)
    if header is None:
        header = _has_header(path, rows, separator)
    names = _names(path, rows, header)
    named = f"names in line {lines[0]}" if header else "no names of columns"
    if header:
        lines, rows = lines[1:], rows[1:]
    chosen, reasons, comma = _chosen(path, lines, rows, names, separator, columns)
    x, lines = np.stack(list(chosen.values()), axis=1), np.array(lines)
    is_empty = np.isnan(x).all(axis=1)
    form = f"{len(rows)} rows, {len(names)} column{'s' * (len(names) > 1)}"
    form += f" separated by {SEPARATORS[separator]}" if separator else ""
    form += ", decimal commas" if comma else ""
    empty_lines, present = lines[is_empty].tolist(), ~is_empty
    form += f", {named}"
    return Table(x[present], list(chosen), lines[present], reasons, empty_lines, form)


def _names(path, rows, header: bool) -> list[str]:
    """The names of the columns. TableError where two are the same, or where no rows follow."""
    heads = rows[0] if header else [""] * len(rows[0])
    if header and len(rows) == 1:
        raise TableError(f"{path} has names of columns and no rows")
    names = [name or f"column {j + 1}" for j, name in enumerate(heads)]
    twice = [name for j, name in enumerate(names) if name in names[:j]]
    if twice:
        raise TableError(f"{path}: two columns are called {twice[0]!r}: give each its own name")
    return names


def _chosen(path, lines, rows, names, separator: str, columns):
    """The values (n,) of columns of numbers by name, the reasons of the others, and whether there
    are decimal commas. TableError where a column that was asked for is left out, or where all
    are."""
    cells = list(zip(*rows, strict=True))
    wanted = range(len(names)) if columns is None else _places(path, columns, names)
    chosen, reasons, comma = {}, {}, False
    for j in wanted:
        values, has_comma, reason = _numbers(cells[j], separator, lines)
        reason = reason or _without_use(values, columns is not None)
        if reason and columns is not None:
            raise TableError(f"{path}: column {names[j]!r} {reason}")
        if reason:
            reasons[names[j]] = reason
        else:
            chosen[names[j]], comma = values, comma or has_comma
    if not chosen:
        listed = "; ".join(f"{name!r} {reason}" for name, reason in reasons.items())
        raise TableError(f"{path} has no column to fit: {listed}")
    return chosen, reasons, comma


def _rows(path):
    """The lines of a file that hold rows, from 1, the cells of each row, and the separator."""
    text = _text(path).removeprefix("#")  # before the names in a file of np.savetxt
    if not text.strip():
        raise TableError(f"{path} is empty")
    sample = text.splitlines()[:SAMPLED_LINES]
    separator = max(SEPARATORS, key=lambda s: _likelihood(sample, s))
    try:
        found = list(_cells(io.StringIO(text, newline=""), separator))
    except csv.Error as error:
        raise TableError(f"{path} cannot be read as a table: {error}") from error
    lines, rows = zip(*found, strict=True)
    return list(lines), list(rows), separator


def _text(path) -> str:
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error
    has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if has_mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path} is not text in UTF-8 (byte {error.start + 1}): save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise TableError(f"{path} is not a text file: save it as CSV in UTF-8")
    return text


def _cells(lines, separator: str):
    """(the last line, the cells) of every row that is not blank."""
    if separator == " ":
        lines = (line.replace("\t", " ").strip() + "\n" for line in lines)
    options = {"delimiter": separator or "\t", "skipinitialspace": separator != "\t"}
    reader = csv.reader(lines, **options)
    for row in reader:
        if any(cell.strip() for cell in row) or len(row) > 1:
            yield reader.line_num, [cell.strip() for cell in row]


def _likelihood(sample, separator: str):
    """How much a sample of lines looks like a table with this separator: the part of its rows with
    the most frequent number of cells, times the part of cells that are numbers or missing."""
    try:
        rows = [row for _, row in _cells(iter(sample), separator)]
    except csv.Error:
        return -1.0, 0.0
    sizes = [len(row) for row in rows]
    usual = max(set(sizes), key=sizes.count)
    if (usual == 1) != (separator == ""):
        return -1.0, 0.0
    cells = [cell for row in rows[1:] or rows for cell in row]
    comma = separator != ","
    read = sum(cell.lower() in MISSING or _number(cell, comma) is not None for cell in cells)
    agreement = sizes.count(usual) / len(sizes)
    return agreement * read / max(1, len(cells)), agreement


def _lack_one_name(rows) -> bool:
    """Whether the first row has one cell less than every other one."""
    return all(len(row) == len(rows[0]) + 1 for row in rows[1:])


def _require_rectangle(path, lines, rows) -> None:
    """TableError where a row has another number of cells than the first one."""
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise TableError(
                f"{path}: line {line} has {len(row)} cell{'s' * (len(row) != 1)} and line "
                f"{lines[0]} has {width}"
            )


def _number(cell: str, comma: bool = False) -> float | None:
    """The number in a cell, with a decimal comma too if `comma`; None where it is none."""
    if comma and COMMA.fullmatch(cell):
        cell = cell.replace(",", ".")
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _has_header(path, rows, separator: str) -> bool:
    """Whether the first row has names. TableError where it may be either."""
    comma = separator != ","
    present = [j for j, cell in enumerate(rows[0]) if cell.lower() not in MISSING]
    names = [j for j in present if _number(rows[0][j], comma) is None]
    if not names or len(names) == len(present):
        return bool(names)
    for j in names:
        below = [row[j] for row in rows[1:] if row[j].lower() not in MISSING]
        if below and all(_number(cell, comma) is not None for cell in below):
            number = next(rows[0][i] for i in present if i not in names)
            raise TableError(
                f"{path}: line 1 has both names and numbers ({rows[0][j]!r}, {number!r}): say "
                "--header or --no-header"
            )
    return False


def _numbers(cells, separator: str, lines):
    """The values (n,) of a column, whether they have decimal commas, and, where they are no
    numbers, the reason."""
    comma = separator != "," and any(COMMA.fullmatch(cell) for cell in cells)
    comma = comma and not any("." in cell and _number(cell) is not None for cell in cells)
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if cell.lower() in MISSING:
            continue
        number = _number(cell, comma)
        if number is None or not math.isfinite(number):
            kind = "a number" if number is None else "finite"
            return values, False, f"is not {kind} (line {lines[i]}: {cell!r:.40})"
        values[i] = number
    return values, comma, None


def _without_use(values, is_chosen: bool) -> str | None:
    """Why a column of numbers says nothing about components; None where it may. is_chosen: a column
    that was asked for may count the rows."""
    n = len(values)
    present = values[~np.isnan(values)]
    if not len(present):
        return "has no values"
    if np.ptp(present) == 0:
        return f"is the same in all rows ({present[0]:g})"
    for first in (0, 1):
        if not is_chosen and np.array_equal(values, np.arange(first, n + first)):
            return f"only counts the rows ({first} to {n + first - 1})"
    return None


def _places(path, columns, names) -> list[int]:
    """The places of columns by name, or by number from 1. TableError where there is none such."""
    places = []
    for column in columns:
        if column in names:
            places.append(names.index(column))
        elif column.isdecimal() and 1 <= int(column) <= len(names):
            places.append(int(column) - 1)
        else:
            listed = ", ".join(map(repr, names[:8])) + ", ..." * (len(names) > 8)
            raise TableError(
                f"{path} has no column {column!r}, only {listed}" + suggestion(column, names)
            )
    return list(dict.fromkeys(places))
