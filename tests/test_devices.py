"""Fits on several devices: fleets and restarts are spread over them, and data stay where they are.

The functions run in subprocesses that have four devices of a CPU.
"""

import functools
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxem
from jaxem.numerics import tuning
from jaxem.solver import devices, lanes, threads
from jaxem.solver.programs import Program

COLLECTIVES = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(")
MODEL = jaxem.Mixture(jaxem.Normal(), k=2)
RNG = np.random.default_rng(0)
SETS = RNG.normal(size=(128, 40, 2)) + 3 * RNG.integers(2, size=(128, 40, 1))
OPTIONS = {"key": 0, "lanes": 8}


def spread_everything():
    tuning.PART_SECONDS = 0


def mesh_of(kind):
    return jax.make_mesh((4,), ("a",), axis_types=(kind,))


def sharded(x, mesh, *names):
    spec = jax.sharding.PartitionSpec(*names)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))


def assert_equal(a, b, **tolerance):
    """All fits are equal, bit by bit or to a tolerance."""
    found = [(r.params, r.objective, r.n_iter, r.status) for r in (a.restarts, b.restarts)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 0} | tolerance)


@functools.cache
def of_one_device():
    x = jax.device_put(SETS, jax.devices()[0])
    return jaxem.fit(MODEL, jaxem.Batch(x), **OPTIONS)


def modules():
    """The optimised modules of the programs that are compiled from now on, as a list that grows."""
    texts, run = [], threads.not_abandoned

    def record(compile_program):
        compiled = run(compile_program)
        texts.append(compiled.as_text())
        return compiled

    threads.not_abandoned = record
    return texts


def fleets():
    """A sharded fleet, in every kind of mesh, equals that of one device, without a collective."""
    expected, texts = of_one_device(), modules()
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = mesh_of(kind)
        x = sharded(SETS, mesh, "a")
        result = jaxem.fit(MODEL, jaxem.Batch(x), **OPTIONS)
        assert_equal(result, expected)
        assert result.params.weights.sharding.is_equivalent_to(x.sharding, 2)
        with jax.set_mesh(mesh):
            again = jaxem.fit(MODEL, jaxem.Batch(x), **OPTIONS)
            assert_equal(again, expected)
            assert again.own_data is not None
    assert not any(COLLECTIVES.search(text) for text in texts)


def plain():
    """Plain arrays are spread over all devices; the last one is filled up."""
    spread_everything()
    auto = mesh_of(jax.sharding.AxisType.Auto)
    expected, texts = of_one_device(), modules()
    some = jaxem.fit(MODEL, jaxem.Batch(SETS[:126]), **OPTIONS)
    assert_equal(some, expected[:126])
    assert len(some.params.weights.sharding.device_set) == 1
    assert "num_partitions=4" in texts[-1]
    assert not COLLECTIVES.search(texts[-1])
    assert_equal(jaxem.fit(MODEL, jaxem.Batch(sharded(SETS[:126], auto)), **OPTIONS), some)
    start = jax.tree.map(np.asarray, expected.params)
    given = jaxem.fit(MODEL, jaxem.Batch(SETS), init=start, lanes=8)
    assert given.n_iter.max() < expected.n_iter.max()


def restarts():
    """The restarts of one data set are spread."""
    x = jax.device_put(SETS[0], jax.devices()[0])
    expected = jaxem.fit(MODEL, x, restarts=67, **OPTIONS)
    spread_everything()
    texts = modules()
    result = jaxem.fit(MODEL, SETS[0], restarts=67, **OPTIONS)
    assert "num_partitions=4" in texts[-1]
    assert_equal(result, expected, rtol=1e-9, atol=1e-12)
    many = np.tile(SETS.reshape(-1, 2), (60, 4))[:-1] + RNG.normal(size=(60 * 5120 - 1, 8))
    alone = jaxem.fit(MODEL, jax.device_put(many, jax.devices()[0]), key=0)
    together = jaxem.fit(MODEL, many, key=0)  # its units are sharded, one is added
    assert "num_partitions=4" in texts[-1]
    assert_equal(together, alone, rtol=1e-6, atol=1e-7)
    labels = jaxem.Labels(np.arange(len(many)) % 2)
    assert devices.shards(jaxem.fit(MODEL, many, init=labels, max_iter=0, tol=0).params) is None


def slices():
    """A long fleet in slices, on a mesh of two axes, without a collective."""
    expected, texts = of_one_device(), modules()
    tuning.STEP_SECONDS = 1e-4
    auto = jax.sharding.AxisType.Auto
    x = sharded(SETS, jax.make_mesh((2, 2), ("a", "b"), axis_types=(auto, auto)), ("b", "a"))
    assert_equal(jaxem.fit(MODEL, jaxem.Batch(x), **OPTIONS), expected)
    assert len(texts) > 2
    assert not any(COLLECTIVES.search(text) for text in texts)


def transformed():
    """Inside of jit, vmap and shard_map: the same answers, or a sentence."""
    P, kinds = jax.sharding.PartitionSpec, jax.sharding.AxisType
    expected = of_one_device()

    def fit(x):
        return jaxem.fit(MODEL, jaxem.Batch(x), **OPTIONS)

    auto, explicit = mesh_of(kinds.Auto), mesh_of(kinds.Explicit)
    assert_equal(jax.jit(fit)(sharded(SETS, auto, "a")), expected)
    with pytest.raises(TypeError, match=r"Explicit axes.*call fit outside of it"):
        jax.jit(fit)(sharded(SETS, explicit, "a"))

    def each(x):
        return jax.vmap(lambda x: jaxem.fit(MODEL, x, **OPTIONS).params)(x)

    options = {"in_specs": P("a"), "out_specs": P("a")}
    x, shard_map = sharded(SETS, auto, "a"), functools.partial(jax.shard_map, mesh=auto, **options)
    parts = jax.jit(shard_map(each, check_vma=False))(x)
    for one, other in zip(*map(jax.tree.leaves, (parts, jax.jit(each)(SETS))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    with pytest.raises(TypeError, match=r"shard_map\(..., check_vma=False\)"):
        jax.jit(shard_map(each))(x)


def rows():
    """Sharded units: one all-reduce a step, nothing gathered, the answers of one device."""
    tuning.STEP_SECONDS = 1e-4  # a program of its own for the steps
    x = SETS.reshape(-1, 2)
    weights = RNG.integers(3, size=len(x))
    wide = np.tile(x, (20, 4)) + RNG.normal(size=(20 * len(x), 8))  # in chunks
    mesh = mesh_of(jax.sharding.AxisType.Explicit)
    calls = [
        (x, {}),
        (wide, {}),
        (x, {"weights": weights}),
        (x, {"restarts": 3}),
        (jaxem.Labelled(x, np.where(np.arange(len(x)) % 9, -1, x[:, 0] > 1)), {}),
    ]
    steps = []
    for data, options in calls:
        expected = jaxem.fit(MODEL, data, key=0, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "not_abandoned", threads.not_abandoned)
            texts = modules()
            placed = jax.tree.map(lambda leaf: sharded(leaf, mesh, "a"), data)
            result = jaxem.fit(MODEL, placed, key=0, **options)
        assert_equal(result, expected, rtol=1e-7, atol=1e-9)
        collectives = [COLLECTIVES.findall(text) for text in texts]
        assert not any("all-gather" in found for found in collectives)
        # In chunks: one in matrix products, one where their rounding errors are too large.
        steps += [len(found) == (2 if data is wide else 1) for found in collectives[1:2]]
    assert len(steps) > 2 and all(steps)  # data with weights have the program of those without


FOUR_DEVICES = [("fleets", "transformed", "slices"), ("plain",), ("restarts",), ("rows",)]


@pytest.mark.parametrize("names", FOUR_DEVICES, ids="-".join)
def test_on_four_devices(names):
    run = started(4, "; ".join(f"t.{name}()" for name in names))
    error = run.communicate()[1]
    assert run.returncode == 0, error[-2000:]


def of_process(index, port):
    """One of two processes with two devices each, which hold half of the data each."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    mesh, P = jax.make_mesh((4,), ("a",)), jax.sharding.PartitionSpec

    def placed(x):
        sharding = jax.sharding.NamedSharding(mesh, P("a"))
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    x = SETS.reshape(-1, 2)
    here, both = jaxem.fit(MODEL, x, key=0), jaxem.fit(MODEL, placed(x), key=0)
    assert_equal(both, here, rtol=1e-7, atol=1e-9)
    expected = jaxem.fit(MODEL, jaxem.Batch(SETS), **OPTIONS)
    for seconds in (tuning.STEP_SECONDS, 1e-4):
        tuning.STEP_SECONDS = seconds  # whole, and in slices
        assert_equal(jaxem.fit(MODEL, jaxem.Batch(placed(SETS)), **OPTIONS), expected)


def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    runs = [started(2, f"t.of_process({i}, {port})") for i in range(2)]
    try:
        for run in runs:
            error = run.communicate(timeout=200)[1]
            assert run.returncode == 0, error[-2000:]
    finally:
        for run in runs:
            run.kill()


def started(devices: int, code: str):
    """A process that runs code with this module as `t`, and has so many devices of a CPU."""
    root = pathlib.Path(__file__).parents[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {"XLA_FLAGS": flags, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    code = (
        f"import jax; jax.config.update('jax_enable_x64', True); import test_devices as t; {code}"
    )
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=os.environ | env)


def test_where_programs_run(monkeypatch):
    """The devices of the data, then the mesh, then the default device, then the default backend."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert tuning.platform() == tuning.platform_of(SETS) == "gpu"
    assert tuning.platform_of({"a": SETS, "b": jax.device_put(SETS, jax.devices()[0])}) == "cpu"
    with jax.set_mesh(jax.make_mesh((1,), ("a",))):
        assert tuning.platform() == "cpu"
    with jax.default_device(jax.devices()[0]), tuning.on_platform("tpu"):
        assert tuning.platform() == "tpu"
    with jax.default_device("gpu"):
        assert tuning.platform() == "gpu"
    plans = []

    def call(self, effort, *args, plan, **static):
        plans.append(plan)
        raise KeyError

    monkeypatch.setattr(Program, "__call__", call)
    for x in (SETS[0], jax.device_put(SETS[0], jax.devices()[0])):
        with pytest.raises(KeyError):
            jaxem.fit(MODEL, x, key=0)
    assert [plan.platform for plan in plans] == ["gpu", "cpu"]


def test_a_fleet_laid_out_for_a_tpu_ends_as_on_a_cpu():
    """Data with the units last, in blocks, where the program runs on a TPU."""
    x = RNG.normal(size=(70, 30, 2)) + 3 * RNG.integers(2, size=(70, 30, 1))
    here = jaxem.fit(MODEL, jaxem.Batch(x), key=0, max_iter=20, tol=0)
    with tuning.on_platform("tpu"):
        tree, original = lanes.compact({"a": x, "b": x[0, 0]}, 1)
        assert tree["a"].shape == (70, 60) and np.array_equal(tree["a"][3, :30], x[3, :, 0])
        assert np.array_equal(original(tree)["a"], x) and tree["b"].shape == (2,)
        there = jaxem.fit(MODEL, jaxem.Batch(x), key=0, max_iter=20, tol=0)
    np.testing.assert_allclose(here.objective, there.objective, rtol=1e-9)
    np.testing.assert_array_equal(here.status, there.status)
