"""Every Python block of the README runs, in order, in one namespace."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 4
    namespace = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README block {number}", "exec"), namespace)


def test_the_family_takes_twenty_lines():
    text = README.read_text()
    family = re.search(r"@dataclasses.*?(?=\n\ncounts = )", text, re.S).group()
    model = re.search(r"@dataclasses.\S+\nclass ZeroInf.*?(?=\n\nwidows = )", text, re.S)
    for own in (family, model.group()):
        assert len([line for line in own.splitlines() if line.strip()]) <= 20


def test_the_status_table_is_complete():
    from jaxem import Status

    text = README.read_text()
    for status in Status:
        assert f"{int(status)} `{status.name}`" in text


def test_the_map_is_complete():
    text = README.read_text()
    package = README.parent / "jaxem"
    for path in package.glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py", "datasets.py", "pytree.py"):
            assert f"`{path.name}`" in text, path.name
