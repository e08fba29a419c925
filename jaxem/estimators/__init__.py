"""Fits in the clothes of other libraries."""
