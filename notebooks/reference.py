"""The reference, a page for each public module, from docstrings: `python -m notebooks.reference`.

pdoc documents the names of `jaxem.__all__` and of the public modules, wherever they are defined.
A method without a docstring has that of the protocol which it implements, and links to it.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import itertools
import pathlib
import re
import types
import typing

import pdoc.doc
import pdoc.render

import jaxem

RETURNED = "jaxem.returned"
"""The page of the classes that public functions return and nobody imports."""

MODULES = ("jaxem", *(f"jaxem.{name}" for name in jaxem._MODULES), RETURNED)
"""The public modules, and that page."""

TEMPLATES = pathlib.Path(__file__).parent / "templates"


@functools.cache
def module_of(name: str) -> types.ModuleType:
    """A public module, by its name; for `RETURNED` one that is made here."""
    if name != RETURNED:
        return importlib.import_module(name)
    text = "What functions return: classes that no program imports. No module has this page's name."
    module = types.ModuleType(RETURNED, text)
    files = {
        "analysis.check_model": ["Findings"],
        "estimators.kmeans": ["Clusters"],
        "methods.em": ["Evaluation", "Expectation", "Signal"],
        "methods.stationary": ["StationaryMap"],
        "models.bayesian": ["Elbo"],
        "models.hmm.paths": ["Forecast"],
        "passes.chunks": ["Sums"],
        "passes.linear": ["FusedPass", "Linear"],
        "protocol.units": ["Standardized"],
        "results.optima": ["Optima", "Optimum"],
        "results.trace": ["Trace"],
    }
    for file, classes in files.items():
        source = importlib.import_module(f"jaxem.{file}")
        vars(module).update((cls, getattr(source, cls)) for cls in classes)
    module.__all__ = sorted(itertools.chain(*files.values()))
    return module


class Public(pdoc.doc.Module):
    """The documentation of a public module: its public names, whichever file defines them."""

    @functools.cached_property
    def _member_objects(self):
        names = getattr(self.obj, "__all__", None)
        if names is None:
            names = [name for name in vars(self.obj) if not name.startswith("_")]
        values = {name: getattr(self.obj, name) for name in names}
        return {k: v for k, v in values.items() if not isinstance(v, types.ModuleType)}

    @functools.cached_property
    def submodules(self):
        return [read(name) for name in MODULES if name.startswith(f"{self.fullname}.")]

    @functools.cached_property
    def implementation(self) -> types.ModuleType:
        """The module whose names a public path passes on; the module itself where it does not."""
        if self.fullname == RETURNED:
            return self.obj
        found = re.match(r"from (\S+) import \*", inspect.getsource(self.obj))
        return importlib.import_module(found.group(1)) if found else self.obj

    @functools.cached_property
    def docstring(self):
        return inspect.getdoc(self.implementation) or ""

    @functools.cached_property
    def _var_docstrings(self):
        return pdoc.doc.doc_ast.walk_tree(self.implementation).var_docstrings


@functools.cache
def read(name: str) -> Public:
    """The documentation of a public module, by its name."""
    module = Public(module_of(name))
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Class):
            _complete(member)
        elif isinstance(member, pdoc.doc.Function):
            member.signature = _plain(member.signature)
        member.docstring = _as_markdown(member.docstring)
    return module


def _as_markdown(docstring: str) -> str:
    """A docstring without lines that begin like an item of a list, and in which no two arguments,
    which are parted by two blanks, share a line."""
    docstring = re.sub(
        r"^( *)(\+|\d+\.)(?=\s|$)",
        lambda m: f"{m[1]}{m[2][:-1]}\\{m[2][-1]}",
        docstring,
        flags=re.M,
    )
    shared = re.compile(r"^( +)(\S.*?[.;])  (?=\w+(?:, \w+)*: )", re.M)
    while shared.search(docstring):
        docstring = shared.sub(r"\1\2\n\1", docstring)
    return docstring


def functions(cls: pdoc.doc.Class) -> list:
    """The public methods and properties of a class, also those without a docstring."""
    return [
        doc
        for doc in cls.members.values()
        if _is_written_here(cls, doc)
        and not doc.name.startswith("_")
        and (doc.kind == "function" or _is_property(inspect.getattr_static(cls.obj, doc.name, 0)))
    ]


def build(folder: pathlib.Path) -> None:
    """Writes the pages of the reference to a folder."""
    pdoc.render.configure(docformat="google", show_source=False, template_directory=TEMPLATES)
    modules = {name: read(name) for name in MODULES}
    for name, module in modules.items():
        page = folder / f"{name.replace('.', '/')}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(pdoc.render.html_module(module, modules), encoding="utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(modules), encoding="utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")


@functools.cache
def _places() -> dict:
    """(module, name) of every public class."""
    places = {}
    for module in MODULES:
        for name, value in Public(module_of(module))._member_objects.items():
            if isinstance(value, type):
                places.setdefault(value, (module, name))
    return places


@functools.cache
def _capabilities() -> list[type]:
    """The classes that name the functions of models."""
    return [cls for cls in _places() if getattr(cls, "_is_protocol", False)]


def _is_written_here(cls: pdoc.doc.Class, doc) -> bool:
    """Whether a member of a class is written in jaxem: not by another package, not the default of a
    field, and not what wrappers pass on, whose text is that of the wrapped model."""
    value = inspect.getattr_static(cls.obj, doc.name, None)
    if isinstance(value, types.FunctionType) and doc.name in _fields(cls.obj):
        return False  # a default
    function = getattr(value, "fget", value)
    module = getattr(function, "__module__", None) or doc.taken_from[0]
    is_passed_on = module == "jaxem.protocol.wrapper" and "<locals>" in function.__qualname__
    names = doc.taken_from[0], module
    return all(name.startswith("jaxem") for name in names) and not is_passed_on


def _is_property(value) -> bool:
    return isinstance(value, (property, functools.cached_property))


def _complete(cls: pdoc.doc.Class) -> None:
    """Sets signatures without what says nothing, the nearest public class as the base, and by
    `origin`, (module, class) or None, where the text of every member stands: that of
    `own_members` here, that of `linked_members` at a public class."""
    for doc in cls.members.values():
        if isinstance(doc, pdoc.doc.Function):
            hidden = _hidden(cls.obj) if doc.name == "__init__" else ()
            doc.signature = _plain(doc.signature, hidden)
        source = None if doc.name.startswith("_") else _source(cls.obj, doc.name)
        doc.origin = source and _places()[source]
        if source is not None:
            doc.docstring = doc.docstring or _docstring_in(source, doc.name)
        is_named = doc.name == "__init__" or not doc.name.startswith("_")
        if doc.docstring.startswith(("Alias for field", "Create new instance")):
            doc.docstring = ""  # of a named tuple
        doc.docstring = _as_markdown(doc.docstring)
        has_text = doc.kind == "function" or bool(doc.docstring)
        doc.on_page = is_named and has_text and _is_written_here(cls, doc)
    bases = [base for base in cls.obj.__mro__[1:] if base in _places()]
    cls.bases = [(*_places()[base], base.__name__) for base in bases[:1]]
    on_page = [doc for doc in cls.members.values() if doc.on_page]
    cls.own_members = [doc for doc in on_page if doc.origin is None]
    cls.linked_members = [doc for doc in on_page if doc.origin is not None]


def _source(cls: type, name: str):
    """The public class that documents an attribute, None where that is the class itself or a base
    of it that is not public."""
    places, bases = _places(), cls.__mro__
    defining = next((base for base in bases if name in vars(base)), None)
    if (defining is cls or defining not in places) and _docstring_in(defining, name):
        return None
    others = [base for base in bases[1:] if base in places]
    if issubclass(cls, jaxem.Model):
        others += [jaxem.Model, jaxem.Bank, *_capabilities()]
    return next((base for base in others if _docstring_in(base, name)), None)


def _docstring_in(cls, name: str) -> str:
    """The docstring of an attribute in the class itself, or under its assignment."""
    if cls is None:
        return ""
    value = vars(cls).get(name)
    if isinstance(value, (classmethod, staticmethod)) or inspect.isroutine(value):
        return getattr(value, "__doc__", None) or ""
    if _is_property(value):
        return value.__doc__ or ""
    return pdoc.doc.doc_ast.walk_tree(cls).var_docstrings.get(name, "")


def _fields(cls: type) -> dict:
    """The fields of a dataclass by name."""
    is_dataclass = dataclasses.is_dataclass(cls)
    return {field.name: field for field in dataclasses.fields(cls)} if is_dataclass else {}


def _hidden(cls: type) -> set[str]:
    """The arguments of a constructor that are not for users: private, or left out of the repr."""
    return {name for name, f in _fields(cls).items() if name.startswith("_") or not f.repr}


def _plain(signature: inspect.Signature, hidden=()) -> inspect.Signature:
    """A signature without the annotation `Any`, without the arguments `hidden`, and without
    `**unknown`, by which functions refuse arguments."""
    parameters = [
        p.replace(annotation=_named(p.annotation))
        for name, p in signature.parameters.items()
        if name not in hidden and not (p.kind == p.VAR_KEYWORD and name == "unknown")
    ]
    returned = _named(signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=returned)


def _named(annotation):
    """An annotation with jaxem's classes by their public paths, those that are not public by their
    names; none in place of one with `Any`."""
    if typing.get_origin(annotation) is list:
        return list[tuple(map(_named, typing.get_args(annotation)))]
    if "typing.Any" in str(annotation):
        return inspect.Parameter.empty
    module = getattr(annotation, "__module__", "")
    if not isinstance(annotation, type) or not module.startswith("jaxem."):
        return annotation
    place, name = _places().get(annotation, ("builtins", annotation.__name__))
    return type(name, (), {"__module__": place, "__qualname__": name})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="builds the reference from docstrings")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default="reference")
    build(parser.parse_args().folder)
