"""Cold start: a fresh process that imports the library and fits Old Faithful once.

Both sides read the same file, fit k=2 with a full covariance by their defaults and print the
log-likelihood, which must agree. They run in turn, so that a machine whose speed drifts
disadvantages neither, and both from bytecode: pip compiles a package when it installs one, and an
untimed first run does so for a checkout, unless the environment forbids it.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxem.data.datasets import old_faithful

REPEATS = 25
OURS = """
import sys, numpy as np, jaxem
x = np.load(sys.argv[1])
result = jaxem.fit(jaxem.Mixture(jaxem.Normal(), k=2), x, key=0)
print(float(result.log_likelihood))
"""
THEIRS = """
import sys, numpy as np
from sklearn.mixture import GaussianMixture
x = np.load(sys.argv[1])
print(GaussianMixture(2, random_state=0).fit(x).score(x) * len(x))
"""
IMPORT = "import sys, numpy, jax.numpy"


def run(code, path):
    """Seconds of a whole process, and what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return time.perf_counter() - begun, done.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.npy")
        np.save(path, old_faithful().astype(np.float32))
        for code in (OURS, THEIRS, IMPORT):
            run(code, path)
        seconds = {"jaxem": [], "scikit-learn": [], "import jax alone": []}
        for _ in range(REPEATS):
            for name, code in zip(seconds, (OURS, THEIRS, IMPORT), strict=True):
                took, printed = run(code, path)
                seconds[name].append(took)
                if printed and not abs(float(printed) + 1130.264) <= 0.01:  # NaN fails too
                    sys.exit(f"FAILED: {name} ended at {printed}")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:>18}: median {middle:.3f} s, quartiles {low:.3f} to {high:.3f}")
    ratios = [a / b for a, b in zip(seconds["jaxem"], seconds["scikit-learn"], strict=True)]
    print(f"jaxem / scikit-learn, pair by pair: median {statistics.median(ratios):.3f}")
    results = pathlib.Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    record = {"machine": machine(), "seconds": seconds, "ratios": ratios}
    (results / "cold.json").write_text(json.dumps(record, indent=1) + "\n")


def machine():
    """What the figures were taken on."""
    names = ("jax", "jaxlib", "numpy", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "device": "CPU " + platform.machine(),
    }
