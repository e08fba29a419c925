"""The reference builds, its links lead somewhere, and nothing public is without its facts.

What is public: the names of `jaxem.__all__` and of the public modules, with the methods of classes.
What a docstring must have is checked by rules on the signature and the source of what it describes.
"""

import ast
import dataclasses
import html.parser
import inspect
import pathlib
import re
import textwrap
import types
import urllib.parse

import pytest

pytest.importorskip("pdoc", reason="the reference needs pdoc: pip install 'jaxem[docs]'")

import jaxem
from notebooks import reference

SHAPE = re.compile(r"\((?:\w|[₀-₉ +·*])*,(?: ?[\w+·* .]+,?)*\)")
"""A shape such as (n,), (n, d) or (k, 1 + g)."""

VALUE = re.compile(
    r"\b(scalar|(a|an|any|one|None or the) (number|int|tree|function|sequence|list|path|model|bank"
    r"|rule|key|name)|numbers|ints|integers|booleans|how many|the number of)\b"
)
"""What an argument is that is no array."""

YEAR = re.compile(r"\b(1[89]|20)\d\d\b")

PATHS = set(reference.MODULES) - {"jaxem", reference.RETURNED}
FOLDERS = "|".join(path.name for path in pathlib.Path(jaxem.__file__).parent.iterdir())

UNITS = re.compile(r"\b(nats|units?|standard errors?|probability|proportion|steps)\b")
"""The units of a quantity."""

MEASURED = {
    *("log_likelihood", "objective", "evidence", "statistic", "score", "gain", "expected", "tol"),
    *("mean", "covariance", "variance", "scale", "rate", "noise", "errors", "floor", "volume"),
    *("reach", "nudge", "step"),
}
"""Names of arguments and fields that are quantities with a unit."""

ARRAYS = {"x", "X", "data", "weights", "sample_weight", "q", "labels", "loadings", "features"}
"""Names of arguments that are arrays."""

NO_ORIGIN = {"Labelled", "check_model", "has", "load", "name_of", "top_words"}
"""Functions that compute nothing which somebody published."""


class Page(html.parser.HTMLParser):
    """The anchors, links, text and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.text, self.tags = set(), [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])

    def handle_data(self, data):
        self.text.append(data)


def broken(folder):
    """(page, link) of the links inside a folder of pages that lead nowhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if urllib.parse.urlsplit(link).scheme in ("http", "https", "data"):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if target not in pages or (anchor and anchor not in pages[target].anchors):
                yield str(path.relative_to(folder)), link


def test_the_pages_have_every_public_name_and_no_broken_link(tmp_path):
    reference.build(tmp_path)
    pages = {
        name: Page((tmp_path / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8"))
        for name in reference.MODULES
    }
    values = {name: getattr(jaxem, name) for name in jaxem.__all__}
    for name, value in values.items():
        is_module = isinstance(value, types.ModuleType)
        assert f"jaxem.{name}" in pages if is_module else name in pages["jaxem"].anchors, name
    for anchor in ("Result.predict", "Result.bic", "Selection.best", "Uncertainty.interval"):
        assert anchor in pages["jaxem"].anchors
    assert not list(broken(tmp_path))
    assert (tmp_path / "index.html").exists() and (tmp_path / "search.js").exists()
    for page in pages.values():
        text = "".join(page.text)
        assert not re.search(r"\bat 0x[0-9a-f]+|/(home|usr|opt|tmp|root)/", text)
        assert not page.tags & {"ol", "table"}  # no text was taken for a list or a table
        assert not re.search(rf"jaxem\.({FOLDERS})\.|unknown\)", text)
    (tmp_path / "jaxem.html").write_text('<a href="#nowhere"></a>')
    assert ("jaxem.html", "#nowhere") in set(broken(tmp_path))  # the test can fail


@dataclasses.dataclass
class Entry:
    """A public name: its object, its docstring, and the text that it shares with its class."""

    name: str
    value: object
    doc: str
    text: str
    kind: str
    arguments: list
    linked: bool = False


def entries():
    """Every public class, function, method, property and constant once."""
    known = set()
    for module in map(reference.read, reference.MODULES):
        for doc in module.members.values():
            if doc.kind == "variable":
                yield Entry(doc.fullname, None, doc.docstring, doc.docstring, "constant", [])
            elif doc.obj not in known:
                known.add(doc.obj)
                yield from entries_of(doc)


def entries_of(doc):
    if doc.kind == "function":
        arguments = list(doc.signature.parameters)
        yield Entry(doc.fullname, doc.obj, doc.docstring, doc.docstring, "function", arguments)
        return
    cls, written = doc.obj, inspect.getdoc(doc.obj) or ""
    bases = [base for base in cls.__mro__[1:] if base.__module__.startswith("jaxem")]
    text = "\n".join([written, *(inspect.getdoc(base) or "" for base in bases)])
    yield Entry(doc.fullname, cls, doc.docstring, text, "class", fields(cls, doc))
    for member in reference.functions(doc):
        value = inspect.getattr_static(cls, member.name)
        arguments = list(member.signature.parameters) if member.kind == "function" else []
        arguments = [name for name in arguments if name not in ("self", "cls")]
        entry = (member.fullname, value, member.docstring, f"{member.docstring}\n{text}", "method")
        yield Entry(*entry, arguments, member.origin is not None)


def fields(cls, doc):
    """The fields of a class, or the arguments of its constructor."""
    if dataclasses.is_dataclass(cls):
        known = dataclasses.fields(cls)
        return [f.name for f in known if f.repr and not f.name.startswith("_")]
    if hasattr(cls, "_fields"):
        return list(cls._fields)
    if "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
        return list(doc.members["__init__"].signature_without_self.parameters)
    return []


def in_common():
    """The arguments that the modules describe once for all their functions."""
    texts = (reference.read(f"jaxem.{name}").docstring for name in ("model", "sklearn"))
    return {name for text in texts for name in re.findall(r"^ *(\w+): ", text, re.M)}


def undescribed(entry, common):
    """The arguments and fields that the docstring of an entry, or of its class, does not name."""
    text = entry.text if entry.kind in ("class", "method") else entry.doc
    return [
        name
        for name in entry.arguments
        if not re.search(rf"\b{name}\b", text) and not (entry.kind == "method" and name in common)
    ]


def functions_in(value):
    """The functions of a class, method or property that raise where its arguments are wrong."""
    if isinstance(value, type):
        return [vars(value)[n] for n in ("__init__", "__post_init__") if n in vars(value)]
    while not isinstance(value, types.FunctionType):
        value = getattr(value, "fget", None) or getattr(value, "__func__", None)
        if value is None:
            return []
    return [inspect.unwrap(value)]


def parsed(function):
    """The nodes of the source of a function of jaxem, or of this file."""
    if not function.__module__.startswith(("jaxem", __name__)):
        return []
    try:
        source = inspect.getsource(function)
    except OSError:  # written by `dataclass`
        return []
    return list(ast.walk(ast.parse(textwrap.dedent(source))))


def called(function):
    """The functions of jaxem that a function calls, as `name(...)` or `module.name(...)`."""
    for node in parsed(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            first, _, name = ast.unparse(node.func).partition(".")
            value = function.__globals__.get(first)
            if name:
                value = getattr(value, name, None) if isinstance(value, types.ModuleType) else None
            if isinstance(value, types.FunctionType) and value.__module__.startswith("jaxem"):
                yield inspect.unwrap(value)


def raised(function):
    """The names of the exceptions that a function raises, or one that it calls."""
    nodes = [node for f in (function, *called(function)) for node in parsed(f)]
    found = [node.exc for node in nodes if isinstance(node, ast.Raise) and node.exc]
    return {ast.unparse(e.func if isinstance(e, ast.Call) else e) for e in found}


def unnamed_errors(entry):
    if entry.linked:  # the text is that of the protocol
        return set()
    return {
        error
        for function in functions_in(entry.value)
        for error in raised(function)
        if error not in entry.text
    }


def lacks_shapes(entry):
    """Whether an entry takes or holds arrays, and its text has no shape or kind of value."""
    if entry.kind == "class":
        hints = getattr(entry.value, "__annotations__", {})
        holds = any(str(hints.get(name)).endswith("Any") for name in entry.arguments)
        return holds and not SHAPE.search(entry.text) and not VALUE.search(entry.text)
    if entry.kind == "method" or not ARRAYS & set(entry.arguments):
        return False
    return not SHAPE.search(entry.doc)


def has_origin(entry):
    """Whether somebody published what an entry computes: families, models, rules, accelerators and
    functions of data; not pictures, params and wrappers."""
    cls = entry.value
    if entry.kind == "function":
        return ".plot." not in entry.name and entry.name.split(".")[-1] not in NO_ORIGIN
    if entry.kind != "class" or not cls.__module__.startswith("jaxem."):
        return False
    if cls.__module__.startswith("jaxem.wrappers") or getattr(cls, "_is_protocol", False):
        return False
    rule = any(hasattr(cls, name) for name in ("evaluate", "expect", "improve", "advance"))
    return rule or issubclass(cls, jaxem.Model) or cls.__name__.endswith("Prior")


def test_every_public_name_has_a_docstring():
    assert not [e.name for e in entries() if not e.doc or "Alias for field" in e.doc]
    assert all(reference.read(name).docstring for name in reference.MODULES)
    listed = set(re.findall(r"`(?:jaxem\.)?(\w+)`", jaxem.__doc__))
    assert listed == {*jaxem.__all__, *(name.partition(".")[2] for name in PATHS)}


def test_every_argument_and_field_is_described():
    common = in_common()
    assert {"x", "weights", "params", "X", "sample_weight"} <= common
    found = {e.name: names for e in entries() if not e.linked and (names := undescribed(e, common))}
    assert not found, found


def test_arrays_have_shapes():
    assert not [e.name for e in entries() if lacks_shapes(e)]


def test_quantities_have_units():
    measured = [e for e in entries() if e.kind != "method" and MEASURED & set(e.arguments)]
    assert not [e.name for e in measured if not UNITS.search(e.text)]


def test_errors_are_named():
    found = {e.name: errors for e in entries() if (errors := unnamed_errors(e))}
    assert not found, found


def test_methods_have_sources():
    assert not [e.name for e in entries() if has_origin(e) and not YEAR.search(e.text)]


def test_rules_find_what_is_missing():
    def example(x, shift):
        """Adds."""
        if shift is None:
            raise ValueError("no shift")
        return x + shift

    entry = Entry("example", example, "Adds.", "Adds.", "function", ["x", "shift"])
    assert undescribed(entry, {"x"}) == ["x", "shift"]
    assert unnamed_errors(entry) == {"ValueError"}
    assert lacks_shapes(entry) and has_origin(entry) and not YEAR.search(entry.text)


def test_the_readme_names_the_command():
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    assert '-e ".[docs]"' in readme and "python -m notebooks.reference" in readme
