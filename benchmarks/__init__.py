"""Benchmarks: `python -m benchmarks NAME`. Every figure of the README comes from here."""
