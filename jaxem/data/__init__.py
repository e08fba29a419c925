"""What a user hands in, as arrays with one unit axis."""
