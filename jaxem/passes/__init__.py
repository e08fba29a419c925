"""Passes over the data: sums of statistics and evidence over units."""
