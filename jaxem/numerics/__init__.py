"""Arithmetic and trees that know no EM."""
