"""`python -m benchmarks fleet`: a benchmark by name, with the parts that belong to it."""

import importlib
import sys

PARTS = {
    "accelerators": ("accelerators",),
    "cold": ("cold",),
    "compile": ("compile",),
    "default": ("default",),
    "errors": ("errors",),
    "gradient": ("gradient",),
    "gpu": ("gpu",),
    "hmm": ("hmm",),
    "fleet": ("fleet", "ragged", "restarts"),
    "incremental": ("incremental",),
    "lda": ("lda",),
    "missing": ("missing",),
    "ragged": ("ragged",),
    "regression": ("regression",),
    "restarts": ("restarts",),
    "single": ("single",),
    "structures": ("structures",),
}

if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
    sys.exit(f"usage: python -m benchmarks {{{','.join(PARTS)}}}")
for part in PARTS[sys.argv[1]]:
    importlib.import_module(f"benchmarks.{part}").main()
