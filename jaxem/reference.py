"""`python -m jaxem.reference [folder]` builds the reference of all public names from docstrings.

It needs the extra `docs`: pdoc. The pages are HTML: one for `jaxem`, one for every public module.
"""

import functools
import importlib
import pathlib
import re
import sys

import jaxem

MODULES = {
    "datasets": (
        "Published data sets, as NumPy arrays.",
        ("diabetes", "iris", "old_faithful", "patents", "seizures", "wine"),
    ),
    "model": (
        "What a model and a bank of components promise: the classes to derive others from.",
        ("Bank", "Domain", "Model"),
    ),
    "objective": (
        "The free energy F(q, θ) of a model, its terms, and what each half of a step gains.",
        ("Ascent", "FreeEnergy", "ascent", "decompose", "free_energy"),
    ),
    "plot": ("Pictures of results: every function draws one thing and returns its Axes.", None),
    "sklearn": ("Estimators in the form of scikit-learn; they need the extra `sklearn`.", None),
    "spaces": (
        "The spaces in which params lie, for `spaces` of a model.\n\n"
        "REAL: all numbers. POSITIVE: numbers of 0 or more, such as variances and rates. "
        "ABOVE_ZERO: without 0. UNIT: probabilities. SIMPLEX: shares (..., k) that sum to 1. "
        "POSITIVE_DEFINITE: covariance matrices (..., d, d). KNOWN: numbers above 0 that are not "
        "estimated.",
        ("Space",),
    ),
    "topics": (
        "Questions to a fitted topic model.",
        ("coherence", "completed", "perplexity", "top_words", "transform"),
    ),
}
"""The public modules: what each is about, and its public names; None: its own `__all__`."""

FOLDER = "reference"
ANCHOR = re.compile(r'<a href="#([^"]+)">(.*?)</a>')


def public_names(name: str) -> tuple[str, ...]:
    """The public names of a module in `MODULES`."""
    names = MODULES[name][1]
    if names is not None:
        return names
    module = importlib.import_module(f"jaxem.{name}")
    return tuple(n for n, v in vars(module).items() if not n.startswith("_") and callable(v))


def build(folder) -> list[pathlib.Path]:
    """Writes the pages into a folder, and gives their paths.

    Raises ImportError where pdoc is missing.
    """
    try:
        import pdoc
    except ImportError as error:
        raise ImportError("the reference needs pdoc: pip install 'jaxem[docs]'") from error
    for name in jaxem.__all__:  # pdoc lists what is imported
        getattr(jaxem, name)
    for name, (text, _) in MODULES.items():
        module = importlib.import_module(f"jaxem.{name}")
        module.__doc__, module.__all__ = text, list(public_names(name))
    _list_inherited(pdoc.doc.Class)
    options = {"docformat": "google", "math": True, "show_source": False}
    pdoc.render.configure(**options, include_undocumented=False)
    names = [f"jaxem.{name}" for name in MODULES if name not in jaxem.__all__]
    pdoc.pdoc("jaxem", "!jaxem.fit", *names, output_directory=pathlib.Path(folder))
    pages = sorted(pathlib.Path(folder).rglob("*.html"))
    for page in pages:
        page.write_text(_without_dead_links(page.read_text()))
    return pages


def _list_inherited(documented) -> None:
    """Makes pdoc list the methods that a class has from jaxem's other classes with its own ones:
    most of these are not public, so that a link to them would lead nowhere."""
    found = documented._declarations.func
    if found.__module__ == __name__:
        return

    def declarations(self):
        return {
            name: (self.modulename, f"{self.qualname}.{name}")
            if module.partition(".")[0] == "jaxem"
            else (module, qualname)
            for name, (module, qualname) in found(self).items()
        }

    documented._declarations = functools.cached_property(declarations)
    documented._declarations.__set_name__(documented, "_declarations")


def _without_dead_links(page: str) -> str:
    """The page without links to names that it does not have, such as undocumented ones."""
    present = set(re.findall(r'id="([^"]+)"', page))

    def kept(match):
        return match[0] if match[1] in present else match[2]

    return ANCHOR.sub(kept, page)


if __name__ == "__main__":
    chosen = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
    print(f"{len(build(chosen))} pages: open {chosen / 'index.html'}")
