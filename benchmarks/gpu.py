"""jaxem on a GPU beside compiled PyTorch and gmmx, and beside what the device can do.

`python -m benchmarks gpu` runs every workload in one process in less than 8 minutes, compilation
included, and writes results/gpu-<device>.json after each. A workload that would begin after
`BUDGET` seconds is skipped, and one that fails leaves its error as its result. Names of workloads
after `gpu` run these alone, and write gpu-<device>-part.json. On a CPU all sizes are a hundredth.

All sides have the same data on the device, the same starts and the same stopping rule, in float32
at full precision. A float64 function in NumPy scores every answer: a side that ends lower than
the best by more than 1e-3 nats a row on more than 1% of the fits has FAILED. Fits in which a
component has collapsed on any side have no maximum: they are counted and not compared. PyTorch and
gmmx run where they are installed. The floor of a step is its arithmetic or the data it reads, at
the measured ceilings.
"""

import datetime
import gc
import importlib
import json
import pathlib
import re
import statistics
import sys
import time

import jax
import jaxlib.version

from benchmarks.gpu_contest import CPU, Context, Size, described
from benchmarks.gpu_workloads import WORKLOADS

BUDGET = 390.0
"""Seconds after which no workload begins."""


def find_torch(backend):
    """(the module `gpu_torch`, its device, None), or (None, None, why there is none)."""
    try:
        module = importlib.import_module("benchmarks.gpu_torch")
    except (ImportError, OSError) as error:  # OSError: of a library that PyTorch loads
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        why = "is not installed" if missing else f"cannot be imported: {described(error)}"
        return None, None, f"PyTorch {why}"
    device = module.device_for(backend)
    if device is None:
        return None, None, "PyTorch is installed without support for this device"
    return module, device, None


def duration(value):
    unit, scale = ("µs", 1e6) if abs(value) < 1e-3 else ("ms", 1e3) if abs(value) < 1 else ("s", 1)
    return f"{value * scale:.3g} {unit}"


def lines(record):
    """The lines of the table for one workload."""
    for key in ("skipped", "error"):
        if key in record:
            yield f"  {key.upper()}: {record[key]}"
            return
    sides = record.get("sides", {})
    for key, value in record.items():
        if key not in ("sides", "unit", "seconds in all", "failed"):
            yield f"  {key}: {f'{value:.4g}' if isinstance(value, float) else value}"
    if record.get("failed"):
        yield "  FAILED"
    first = next(iter(sides), None)
    base = sides[first].get("seconds") if sides else None
    for name, side in sides.items():
        yield f"  {name:>18}: {told(side, base if name != first else None, record['unit'], first)}"


def told(side, base, unit, first):
    """One side's part of a line. base: the seconds of the first side, to which it is a ratio."""
    if "error" in side:
        return f"ERROR: {side['error']}"
    taken = side["seconds"]
    middle = statistics.median(taken)
    text = f"{duration(middle)}"
    if len(taken) > 1:
        low, _, high = statistics.quantiles(taken, n=4)
        text += f" ({duration(low)} to {duration(high)})"
    if side["units"] > 1:
        text += f", {duration(middle / side['units'])} a {unit}"
    if base:
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=False))
        text += f", {ratio:.2f} times {first}"
    if side.get("floor"):
        text += f", {middle / side['floor']:.1f} times the floor"
    if "steps, mean" in side:
        text += f", steps {side['steps, mean']:.0f} (most {side['steps, most']})"
    for key in ("perplexity", "trusted", "collapsed"):
        if side.get(key):
            text += f", {key} {side[key]:.4g}"
    text += f", first call {duration(side['first call'])}"
    if "not compiled" in side:
        text += f", not compiled ({side['not compiled']})"
    if side.get("failed"):
        text += f"  FAILED: {side['lower']:.1%} end lower" if "lower" in side else "  FAILED"
    return text


def run(context, path, workloads=WORKLOADS, budget=BUDGET):
    """Runs workloads, prints their lines, and writes the record to `path` after each."""
    begun = time.perf_counter()
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__}
    device = jax.devices()[0].device_kind
    record = {"device": device, "date": datetime.date.today().isoformat(), **versions}
    if context.torch is not None:
        record["PyTorch"] = context.torch.version()
    record["workloads"] = found = {}
    for name, workload in workloads.items():
        passed = time.perf_counter() - begun
        print(name, flush=True)
        if passed > budget:
            found[name] = {"skipped": f"{passed:.0f} s had passed, the budget is {budget:.0f} s"}
        else:
            try:
                found[name] = workload(context)
            except Exception as error:
                found[name] = {"error": described(error)}
            found[name]["seconds in all"] = time.perf_counter() - begun - passed
            gc.collect()  # a failure leaves arrays in cycles
        for line in lines(found[name]):
            print(line, flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{time.perf_counter() - begun:.0f} s in all")
    return record


def file_name(device, part=False):
    """gpu-<device in lower case with dashes>.json; `part`: of a run of some workloads."""
    return "-".join(["gpu", *re.findall("[a-z0-9]+", device.lower())] + part * ["part"]) + ".json"


def main():
    chosen = sys.argv[2:] or list(WORKLOADS)
    if unknown := set(chosen) - {*WORKLOADS}:
        sys.exit(f"no workload {', '.join(unknown)}: choose from {', '.join(WORKLOADS)}")
    backend = jax.default_backend()
    device = "cpu" if backend == "cpu" else jax.devices()[0].device_kind
    torch, torch_device, why = find_torch(backend)
    print(f"{device}, jax {jax.__version__}" + (f"\n{why}" if why else ""))
    context = Context(CPU if backend == "cpu" else Size(), backend, torch, torch_device)
    results = pathlib.Path(__file__).parent / "results"
    path = results / file_name(device, part=bool(sys.argv[2:]))
    run(context, path, {name: WORKLOADS[name] for name in chosen})
