"""README: its Python blocks run in order in one namespace, and it names what there is."""

import json
import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def source_of_notebook(name):
    """The code of a notebook's cells, as it is stored: one string."""
    cells = json.loads((ROOT / "notebooks" / name).read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def lines_of_class(name, source):
    """How many lines a decorated class takes, without blank ones."""
    found = re.search(rf"^@dataclasses.\S+\nclass {name}\b.*?(?=^\w|\Z)", source, re.S | re.M)
    return len([line for line in found.group().splitlines() if line.strip()])


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 4
    namespace = {"__name__": "readme"}
    with jax.enable_x64(False):  # as readers have it
        for number, block in enumerate(blocks):
            exec(compile(block, f"README block {number}", "exec"), namespace)


def test_a_family_takes_at_most_twenty_lines():
    assert lines_of_class("Geometric", README) <= 20


def test_a_model_by_its_log_joint_takes_at_most_twenty_lines():
    assert lines_of_class("ZeroInflated", source_of_notebook("your_own_model.ipynb")) <= 20


def test_it_is_short():
    assert len(README.splitlines()) <= 220


def test_the_status_table_is_complete():
    from jaxem import Status

    for status in Status:
        assert f"{int(status)} `{status.name}`" in README


def test_every_folder_is_named():
    for path in (ROOT / "jaxem").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"| `jaxem/{path.name}/` |" in README, path.name


def test_every_notebook_is_linked_and_every_link_leads_somewhere():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in README, path.name
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
