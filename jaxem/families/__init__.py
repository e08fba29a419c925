"""Probability distributions, one a file, each a bank of k components."""
