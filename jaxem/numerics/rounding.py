"""The bound on the rounding error of an objective."""

ROUNDING = 16
"""The rounding error of an objective is at most ROUNDING · ε · Σw(|ℓ| + 1), ℓ the evidence of a
unit in nats. Late iterations in float32 lower the objective by up to 3 · ε · Σw(|ℓ| + 1)."""
