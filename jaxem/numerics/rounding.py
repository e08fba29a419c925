"""How far rounding moves an objective."""

ROUNDING = 16
"""The objective is known to ROUNDING · eps · Σw(|ℓ|+1): late float32 iterations fall by up to 3."""
