"""One pass over the data; sums come up."""
