"""Component families: one a file, each a bank of k components."""
