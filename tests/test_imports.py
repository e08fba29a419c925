"""The house: who imports whom, what importing costs, and what it leaves alone."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxem"
FILES = sorted(PACKAGE.rglob("*.py"))
LOW = {"pytree", "status", "linalg", "special"}


def imported(path):
    """The modules of jaxem that a file imports at its top, as dotted names without the package."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxem"):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {str(f.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for f in FILES}
    return {n.removeprefix("jaxem.") for n in names} & modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_directions(path):
    name = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    seen = imported(path)
    people = {"fit", "result", "data", "check", "storage"}
    if name.startswith("methods."):
        assert not any(m.startswith(("models.", "families.")) or m in people for m in seen)
    if name.startswith("models."):
        assert not any(m.startswith("families.") or m in people for m in seen)
    if name.startswith("families."):
        assert not any(m.startswith(("models.", "methods.")) or m in people for m in seen)
    if name in LOW:
        assert seen <= LOW
    if name == "loop":
        assert seen <= LOW


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 350


CHECK = """
import sys, os, warnings
before = dict(os.environ)
import jax
config = dict(jax.config.values)
modules = set(sys.modules)
import jaxem
optional = {"matplotlib", "sklearn", "scipy", "tqdm", "optax", "chex", "pandas", "hypothesis"}
loaded = {m.split(".")[0] for m in set(sys.modules) - modules}
assert not loaded & optional, loaded & optional
assert dict(os.environ) == before and dict(jax.config.values) == config
assert not jax._src.xla_bridge._backends, "importing must not start a backend"
"""


def test_importing_pulls_in_nothing_and_changes_nothing():
    subprocess.run([sys.executable, "-c", CHECK], check=True, timeout=120)
