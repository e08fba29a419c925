"""What is built on finished fits: compare, check, quantify."""
