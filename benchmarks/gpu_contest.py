"""What the workloads of `gpu` share: sizes, runs in turn, verdicts, the answers of all sides."""

import re
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

import jaxem

SLACK = 1e-3
"""Nats a row by which a fit may end lower than the best of all sides."""


@dataclass(frozen=True)
class Size:
    """Sizes of all workloads. repeats, seconds: the most interleaved runs of one workload, and the
    time after which no further round of them begins."""

    fits: int = 4096
    many: int = 65_536
    rows: int = 500
    lanes: tuple = (512, 1024, 4096)
    ragged: tuple = (200, 1000)
    wide: tuple = (8, 16)
    full: tuple = (1_000_000, 32, 64)
    diagonal: tuple = (10_000_000, 16, 32)
    steps: tuple = (2, 12)
    documents: int = 20_000
    held_out: int = 200
    words: int = 10_000
    topics: int = 100
    sweeps: int = 5
    scored: int = 1024
    agreed: int = 64
    copied: int = 2**28
    product: int = 8192
    loops: int = 2000
    repeats: int = 7
    seconds: float = 6.0


CPU = Size(
    fits=41, many=655, lanes=(5, 10, 41), full=(10_000, 16, 64), diagonal=(100_000, 16, 32),
    documents=200, held_out=20, copied=2**22, product=1024, repeats=3, seconds=3.0,
)  # fmt: skip
"""A hundredth of the fits, rows and documents. The large full fit has 16 columns: with 32, gmmx
waits for ever on 2 cores, where two batched LAPACK calls of jaxlib 0.10.2 wait for each other."""


@dataclass
class Context:
    """size; backend, of JAX; torch: the module `gpu_torch`, or None; device: PyTorch's; ceilings:
    the record of that workload once it has run."""

    size: Size
    backend: str = "cpu"
    torch: Any = None
    device: Any = None
    ceilings: dict = field(default_factory=dict)

    def floor(self, operations, moved=0):
        """Seconds that the ceilings give for so many operations and bytes; None without them."""
        if not self.ceilings:
            return None
        rate, bandwidth = self.ceilings["float32 TFLOP/s"], self.ceilings["copy GB/s"]
        return max(operations / (1e12 * rate), moved / (1e9 * bandwidth))


def described(error):
    """The kind and the first line of an error, without paths."""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'/?(?:[^ /:]+/)+[^ /:]*', '...', text)[:300]}"


def seconds(run):
    begun = time.perf_counter()
    answer = run()
    return time.perf_counter() - begun, answer


def contest(sides, size, units):
    """(record, answers) of sides {name: function of nothing}: the first call of each, then runs in
    turn. units: of work in a run, as many as there are fits, for example."""
    record, answers = {}, {}
    for name, run in sides.items():
        record[name] = {"units": units}
        try:
            record[name]["first call"], answers[name] = seconds(run)
            run()  # PyTorch may compile again in a second run
            record[name]["seconds"] = []
        except Exception as error:
            record[name]["error"] = described(error)
            answers.pop(name, None)
    end = time.perf_counter() + size.seconds
    for turn in range(size.repeats):
        for name in answers:
            record[name]["seconds"].append(seconds(sides[name])[0])
        if turn and time.perf_counter() > end:
            break
    return record, answers


def judged(record, scores, others=()):
    """Writes verdicts: a side that ends lower than the best by SLACK a row on more than 1% of the
    fits has failed. Those in `others` take other ways, and fail where their mean is lower."""
    best = np.nanmax([s for name, s in scores.items() if name not in others], axis=0)
    for name, score in scores.items():
        away = score - best
        lower = float(np.mean(~(away >= -SLACK)))  # NaN is lower
        failed = not np.mean(away) > -SLACK if name in others else lower > 0.01
        record[name] |= {"score": float(np.mean(score)), "lower": lower, "failed": bool(failed)}


def quiet_fit(model, data, **options):
    """`fit` without warnings of fits that stopped at the limit; their number is recorded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)
        return jax.block_until_ready(jaxem.fit(model, data, **options))


def as_params(start):
    return jaxem.MixtureParams(start[0], jaxem.NormalParams(*start[1:]))


def as_arrays(answer):
    """(weights, mean, covariance) in NumPy of jaxem's result or PyTorch's tensors."""
    if hasattr(answer, "params"):
        p = answer.params
        answer = p.weights, p.components.mean, p.components.covariance
    return [np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in answer]


def with_torch(context, sides, name, build):
    """Adds PyTorch's side, `build(module)`, where it is installed; returns its compiled function
    in a list."""
    if context.torch is None:
        return []
    context.torch.free()
    try:
        sides[name], fast = build(context.torch)
    except Exception as error:
        failure = error

        def raises():
            raise failure

        sides[name] = raises
        return []
    return [fast]


def note_plain(record, functions, name="PyTorch"):
    """Records that PyTorch's compiler failed, so that its plain function ran."""
    for function in functions:
        if function.error:
            record[name]["not compiled"] = function.error
