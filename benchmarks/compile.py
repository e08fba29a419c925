"""What an EM step does on a GPU or TPU that is not there, read off programs compiled for it.

    python -m benchmarks compile lower [NAME ...]        # export to both, no compiler needed
    python -m benchmarks compile cuda|tpu [NAME ...]     # their own compilers; extra `aot`

`cuda` needs Python 3.12 or newer. Set JAX_PLATFORMS=cpu, and XLA_FLAGS=--xla_gpu_autotune_level=0
for cuda, TPU_SKIP_MDS_QUERY=1 for tpu. Every workload has a process and `LIMIT` seconds of its own.

A step is a turn of the loop of EM steps, a round what the lanes of a fleet do between two checks
for finished fits beside their steps (`hlo` says what is counted). On a TPU the counts are of
instructions, small ones included. Beside a step stand the launches of the branches of every
conditional in it, as {143|6}; the step counts the most. MB are 1e6 bytes, on a TPU with the padding
of its tiles.
"""

import datetime
import json
import pathlib
import subprocess
import sys
import time
from collections import Counter

import jax
import jax.export
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.hlo import Module, low_products, times
from benchmarks.workloads import workloads
from jaxem.numerics import tuning
from jaxem.passes.chunks import in_chunks
from jaxem.solver.lanes import run_lanes
from jaxem.solver.loop import iterate

H200 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  device_memory_size: 151397597184 memory_bandwidth: 4800000000000
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
"""

TARGETS = {
    "cuda": ("NVIDIA H200", {"target_config": H200, "topology": "1x1x1"}),
    "tpu": ("TPU v5e", {"topology_name": "v5e:2x2"}),
}
"""Platform -> the device's name, and how its topology is asked for."""

PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}
"""The names of `tuning.platform`."""

LIMIT = 420
"""Seconds in which a workload has to be compiled."""

ROUND, STEP = run_lanes.__qualname__, f"{run_lanes.__qualname__}.<locals>.body"
"""The functions whose loops are the rounds and the steps of lanes."""

CHOLESKY = ("potrf", "cholesky")

GOALS = {
    "cuda": [
        ("large", "launches a step", 400),
        ("large", "factorisations in the loop over chunks", 0),
        ("fleet4096", "launches a step", 22),
        ("fleet4096", "launches a round", 12),
        ("fleet20000", "scratch MB", 4000),
    ],
    "tpu": [("fleet4096", "scratch MB", 160)],
}
"""(workload, figure, the most it should be)."""


def main():
    what, *names = sys.argv[2:] or [""]
    if what not in ("lower", *TARGETS):
        sys.exit("usage: python -m benchmarks compile {lower,cuda,tpu} [NAME ...]")
    every = workloads()
    if unknown := set(names) - set(every):
        sys.exit(f"no workload {', '.join(unknown)}: choose from {', '.join(every)}")
    names = names or list(every)
    lower(names) if what == "lower" else table(what, names)


def lower(names):
    """Exports every workload to both platforms, and counts products below full precision."""
    for name in names:
        for platform, answer in PLATFORMS.items():
            try:
                low, count = low_products(exported(name, platform, answer))
            except Exception as error:  # the others go on
                print(f"{name:>14} {platform:>4}: FAILED: {short(error)}", flush=True)
                continue
            verdict = "  FAILED: none should be" if low else ""
            print(
                f"{name:>14} {platform:>4}: {low} of {count} float32 products below full precision"
                f"{verdict}",
                flush=True,
            )


def exported(name, platform, answer):
    """The StableHLO of a workload, as it is traced where programs run on that platform."""
    tuning.platform = lambda: answer
    jax.clear_caches()  # programs traced for the other platform
    function, *args = workloads()[name]
    return jax.export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()


def table(platform, names):
    """Compiles every workload, prints a row for each and writes the record after each."""
    path = pathlib.Path(__file__).parent / "results" / f"compile-{platform}.json"
    found = json.loads(path.read_text())["workloads"] if path.exists() else {}
    every = list(workloads())
    print(HEAD)
    for name in names:
        found[name] = apart(platform, name)
        ordered = {name: found[name] for name in every if name in found}
        record = {"target": TARGETS[platform][0], "workloads": ordered}
        path.write_text(in_lines(record))
        print(row(name, found[name]), flush=True)
    if missing := [name for name in every if name not in found]:
        print(f"not compiled: {', '.join(missing)}")
    print()
    for name, figure, most in GOALS[platform]:
        if name in names:
            value = found[name].get(figure)
            verdict = "not known" if value is None else f"{value:,.0f}"
            verdict += "" if value is not None and value <= most else "  FAILED"
            print(f"{name}, {figure}: {verdict} (at most {most:,})")


def in_lines(record):
    """A record as JSON, one line a workload."""
    rest = {name: value for name, value in record.items() if name != "workloads"}
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in record["workloads"].items()]
    return json.dumps(rest)[:-1] + ', "workloads": {\n' + ",\n".join(lines) + "\n}}\n"


def apart(platform, name):
    """The record of one workload, compiled in a process of its own."""
    code = f"from benchmarks.compile import measured; measured({platform!r}, {name!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        found = {"failed": f"not compiled in {LIMIT} s"}
    else:
        *_, last = [line for line in done.stdout.splitlines() if line] or [""]
        lines = done.stderr.strip().splitlines() or ["no message"]
        failed = {"failed": f"exit {done.returncode}: {lines[-1][:200]}"}
        found = json.loads(last) if last.startswith("{") else failed
    today = datetime.date.today().isoformat()
    return {"jax": jax.__version__, "date": today} | found


def measured(platform, name):
    """Prints the record of one workload, as the last line."""
    try:
        found = figures(*compiled(platform, name))
    except Exception as error:
        found = {"failed": short(error)}
    print(json.dumps(found))


def compiled(platform, name):
    """(the seconds it took, the program of a workload)."""
    tuning.platform = lambda: PLATFORMS[platform]
    topology = topologies.get_topology_desc(platform=platform, **TARGETS[platform][1])
    here = SingleDeviceSharding(topology.devices[0])
    function, *args = workloads()[name]
    args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), args)
    lowered = jax.jit(function, out_shardings=here).lower(*args)
    begun = time.perf_counter()
    program = lowered.compile()
    return time.perf_counter() - begun, program


def figures(seconds, program):
    """Everything that the table says of a program, and its loops one by one."""
    memory, module = program.memory_analysis(), Module(program.as_text())
    low, products = module.low_products
    found = {
        "seconds to compile": round(seconds, 1),
        "argument MB": memory.argument_size_in_bytes / 1e6,
        "scratch MB": memory.temp_size_in_bytes / 1e6,
        "library calls in loops": library(module.loops),
        "factorisations in the loop over chunks": factorisations(module.loops),
        "collectives": dict(module.collectives),
        "products below full precision": [low, products],
        "loops": [
            {
                "function": loop.function,
                "trips": loop.trips,
                "launches": dict(loop.launches.most_common()),
                "branches": loop.branches,
                "library calls": dict(loop.calls),
            }
            for loop in module.loops
        ],
    }
    return found | per_step(module.loops)


def per_step(loops):
    """Launches of an EM step, and of a round beside its steps."""
    steps = [loop for loop in loops if loop.function in (STEP, iterate.__qualname__)]
    rounds = [loop for loop in loops if loop.function == ROUND]
    if not (steps or rounds):  # a program under `vmap` does not say which function made a loop
        rounds, steps = loops, [p for p in loops if p.trips == tuning.ACCELERATOR_INTERVAL]
    if not (steps or rounds):
        return {}
    step = max(steps or rounds, key=total)
    found = {
        "launches a step": total(step),
        "branches of a step": step.branches,
        "kinds of a step": dict(step.launches.most_common()),
    }
    if steps and rounds:
        rest = max(rounds, key=total).launches - times(step.trips or 1, step.launches)
        found |= {"launches a round": rest.total(), "kinds of a round": dict(rest.most_common())}
    return found


def total(loop):
    return loop.launches.total()


def library(loops):
    """ "function: library call" -> how many of these the loop makes in a turn."""
    found = Counter()
    for loop in loops:
        found.update({f"{loop.function}: {call}": n for call, n in loop.calls.items()})
    return dict(found)


def factorisations(loops):
    """Cholesky factorisations in loops over chunks of units."""
    calls = sum(
        (loop.calls for loop in loops if loop.function == in_chunks.__qualname__), Counter()
    )
    return sum(n for call, n in calls.items() if any(part in call.lower() for part in CHOLESKY))


HEAD = (
    f"{'':>14} {'compile s':>9} {'argument MB':>11} {'scratch MB':>10} {'step':>20} {'round':>6}"
    "  library calls in loops; collectives"
)


def row(name, found):
    if "failed" in found:
        return f"{name:>14} FAILED: {found['failed']}"
    branches = [
        "{" + "|".join(map(str, each)) + "}" for each in found.get("branches of a step", ())
    ]
    step = " ".join([str(found.get("launches a step", "-")), *branches])
    calls = ", ".join(f"{n} {call}" for call, n in found["library calls in loops"].items())
    between = ", ".join(f"{n} {kind}" for kind, n in found["collectives"].items())
    low, products = found["products below full precision"]
    verdict = f"  FAILED: {low} of {products} products below full precision" if low else ""
    return (
        f"{name:>14} {found['seconds to compile']:>9.1f} {found['argument MB']:>11.1f} "
        f"{found['scratch MB']:>10.1f} {step:>20} {found.get('launches a round', '-'):>6}  "
        f"{calls or 'none'}; {between or 'none'}{verdict}"
    )


def short(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
