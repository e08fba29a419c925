"""Regressions: components whose rows depend on regressors."""
