"""`python -m benchmarks cold`: one benchmark by name."""

import importlib
import sys

NAMES = ("cold", "fleet")

if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
    sys.exit(f"usage: python -m benchmarks {{{','.join(NAMES)}}}")
importlib.import_module(f"benchmarks.{sys.argv[1]}").main()
