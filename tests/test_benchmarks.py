"""`python -m benchmarks gpu` at a tiny size: its record, its budget, and what a failure leaves."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from benchmarks import gpu, gpu_contest
from benchmarks.gpu_contest import CPU, Context, described

SIZE = dataclasses.replace(
    CPU, fits=3, many=3, rows=60, lanes=(3,), ragged=(58, 60), wide=(2, 2), full=(600, 2, 3),
    diagonal=(600, 2, 3), steps=(1, 2), documents=6, held_out=2, words=8, topics=2, sweeps=1,
    scored=3, agreed=3, copied=64, product=8, loops=3, repeats=1,
)  # fmt: skip
"""Equal shapes, so that workloads share programs."""


def record_of(path, *args, **options):
    gpu.run(Context(SIZE), path, *args, **options)
    return json.loads(path.read_text())


def test_the_file_gets_every_workload(tmp_path, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # it takes a second in a process of many tests
    record = record_of(tmp_path / "gpu-cpu.json", budget=1e6)
    assert record["device"] == jax.devices()[0].device_kind
    assert record["jax"] == jax.__version__
    assert [*record] == ["device", "date", "jax", "jaxlib", "workloads"]
    assert [*record["workloads"]] == [*gpu.WORKLOADS]
    for name, found in record["workloads"].items():
        assert "error" not in found, (name, found)
        assert not found.get("failed"), (name, found)
        for side in found.get("sides", {}).values():
            assert "error" not in side, (name, side)
            assert not side.get("failed"), (name, side)
            assert side["first call"] > 0
            assert len(side["seconds"]) == 1
    assert record["workloads"]["large full"]["sides"]["jaxem"]["floor"] > 0
    assert record["workloads"]["gradient"]["sides"]["fit and gradient"]["trusted"] > 0


def test_a_failure_is_recorded_and_the_rest_runs(tmp_path, capsys):
    path, written = tmp_path / "gpu-cpu.json", []

    def fails(context):
        raise RuntimeError("no memory: /home/somebody/code/file.py:3\nsecond line")

    def reads(context):
        written.append(json.loads(path.read_text())["workloads"])
        return {"answer": 1.0}

    workloads = record_of(path, {"first": fails, "second": reads})["workloads"]
    assert [*written[0]] == ["first"]  # the file is written after every workload
    assert workloads["first"]["error"] == "RuntimeError: no memory: ...:3"
    assert workloads["second"]["answer"] == 1.0
    assert "ERROR: RuntimeError" in capsys.readouterr().out


def test_no_workload_begins_after_the_budget(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])

    def slow(context):
        clock[0] += 60
        return {}

    names = ["a", "b", "c", "d"]
    found = record_of(tmp_path / "gpu-cpu.json", dict.fromkeys(names, slow), budget=100)
    assert ["skipped" in found["workloads"][name] for name in names] == [False, False, True, True]
    assert "SKIPPED: 120 s had passed, the budget is 100 s" in capsys.readouterr().out


def test_a_failing_rival_leaves_the_others():
    def fails():
        raise MemoryError

    record, answers = gpu_contest.contest({"jaxem": lambda: 1, "other": fails}, SIZE, 1)
    assert record["other"]["error"] == "MemoryError: "
    assert answers == {"jaxem": 1}
    assert len(record["jaxem"]["seconds"]) == 1


def test_a_side_that_ends_lower_has_failed():
    best, record = np.zeros(100), {"jaxem": {}, "lower": {}, "nan": {}, "accelerated": {}}
    scores = {"jaxem": best, "lower": best - 0.01 * (np.arange(100) < 2)}
    scores["nan"] = np.where(np.arange(100) < 2, np.nan, 0)
    scores["accelerated"] = np.where(np.arange(100) < 50, -0.01, 0.02)
    gpu_contest.judged(record, scores, others=("accelerated",))
    assert [side["failed"] for side in record.values()] == [False, True, True, False]
    assert record["lower"]["lower"] == 0.02


@pytest.mark.parametrize(
    "text", ["no such file: '/a/b/c.so'", "at /usr/lib/x.py line 3", "a\\n/b/c/d", "~/x/y is bad"]
)
def test_errors_hold_no_paths(text):
    assert "/" not in described(OSError(text))


def test_names_of_files():
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3.json"
    assert gpu.file_name("cpu", part=True) == "gpu-cpu-part.json"


def test_without_torch_its_column_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu_torch", raising=False)
    assert gpu.find_torch("cpu") == (None, None, "PyTorch is not installed")
