"""Data and other arguments of a fit, checked and converted to arrays with one unit axis."""
