"""The reference: every public name is on a page, no link is dead, nothing names the machine."""

import html
import importlib
import inspect
import pathlib
import re

import pytest

import jaxem
from jaxem.reference import MODULES, build, public_names

pytest.importorskip("pdoc", reason="the reference needs pdoc")
NAMES = {"jaxem": jaxem.__all__} | {f"jaxem.{name}": public_names(name) for name in MODULES}
PUBLIC = {
    f"{module}.{name}": getattr(importlib.import_module(module), name)
    for module, names in NAMES.items()
    for name in names
    if name not in MODULES
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return {page.relative_to(folder): page.read_text() for page in build(folder)}


def anchors(page):
    return {html.unescape(name) for name in re.findall(r'id="([^"]+)"', page)}


def test_every_public_name_is_on_its_page(pages):
    for name in PUBLIC:
        module, _, title = name.rpartition(".")
        page = pathlib.Path(*module.split(".")).with_suffix(".html")
        assert title in anchors(pages[page]), name
    methods = {"Result.bic", "Result.standard_errors", "Mixture.log_prob", "Selection.to_dataframe"}
    assert methods <= anchors(pages[pathlib.Path("jaxem.html")])


def test_no_link_is_dead(pages):
    links = 0
    for path, page in pages.items():
        for link in re.findall(r'<a[^>]* href="([^"$]+)"', page):
            if link.startswith(("https:", "data:")):
                continue
            links += 1
            target, _, anchor = link.partition("#")
            target = (pathlib.Path("/") / path.parent / target).resolve() if target else None
            found = path if target is None else target.relative_to("/")
            assert found in pages, (path, link)
            assert not anchor or html.unescape(anchor) in anchors(pages[found]), (path, link)
    assert links > 500


def test_pages_are_the_same_on_every_machine(pages):
    for path, page in pages.items():
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert not re.search(r"0x[0-9a-f]{6}", text), path
        assert str(pathlib.Path(jaxem.__file__).parents[1]) not in text, path


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_documented(name):
    """With a docstring of its own, not the signature that a dataclass gets."""
    value = PUBLIC[name]
    text = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    assert text and not text.startswith(f"{value.__name__}("), name
