"""Multivariate normal components, one file a covariance structure."""
