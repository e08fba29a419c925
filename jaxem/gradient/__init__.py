"""The derivative of where a fit ends."""
