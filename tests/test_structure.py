"""The house: who imports whom, what importing costs, and what it leaves alone."""

import ast
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.smoke

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxem"
FLOORS = (
    ("numerics",),
    ("protocol",),
    ("passes",),
    ("data", "families", "wrappers"),
    ("methods", "models", "solver"),
    ("gradient", "results"),
    ("fit",),
    ("analysis",),
    ("estimators", "__init__"),
    ("__main__",),
)
"""The folders of the package from the ground up; imports go down only, or stay in their folder."""

SHIMS = {"datasets", "model", "objective", "plot", "sklearn", "spaces", "topics"}
"""Public paths at the top of the package that only pass names on."""

FLOOR_OF = {folder: i for i, floor in enumerate(FLOORS) for folder in floor}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}


def module_of(name):
    """The module of jaxem that a dotted name is or lies in, None where it is another package's."""
    parts = name.split(".")
    if parts[0] != "jaxem":
        return None
    for end in range(len(parts), 1, -1):
        inner = ".".join(parts[1:end])
        if inner in FILES:
            return inner
        if f"{inner}.__init__" in FILES:
            return f"{inner}.__init__"
    return "__init__"


def imported(path):
    """The modules of jaxem that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {module_of(f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {module_of(alias.name) for alias in node.names}
    return found - {None}


ARROWS = {name: imported(path) - {name} for name, path in FILES.items()}


def folder(module):
    return module.split(".")[0]


def may_import(name, other):
    if name in SHIMS or name == "__init__":
        return other != "__main__"
    if other in SHIMS:
        return False
    return folder(name) == folder(other) or FLOOR_OF[folder(other)] < FLOOR_OF[folder(name)]


def test_the_top_of_the_package_is_three_files_and_shims():
    top = {"fit", "__init__", "__main__"}
    assert {name for name in FILES if "." not in name} == top | SHIMS
    for name in SHIMS:
        assert len(FILES[name].read_text().splitlines()) == 1


def test_imports_go_down():
    wrong = [
        f"{name} imports {other}"
        for name, others in ARROWS.items()
        for other in others
        if not may_import(name, other)
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(ARROWS[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in sorted(ARROWS):
        visit(name)


def test_at_most_ten_floors():
    assert len(FLOORS) <= 10
    assert {folder(name) for name in FILES} - SHIMS == set(FLOOR_OF)


def test_names_of_methods_and_models_stay_apart():
    for name in FILES:
        others = {folder(other) for other in ARROWS[name]}
        if folder(name) in ("models", "wrappers"):
            assert "families" not in others, f"{name} names a family"
        if folder(name) == "methods":
            assert not others & {"models", "families"}, f"{name} names a model"
        if folder(name) == "numerics":
            assert not others - {"numerics"}, f"{name} knows more than arithmetic"


def test_files_stay_readable():
    long = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: lines for name, lines in long.items() if lines > 400}


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
