"""Climbs: state, stopping, lanes, programs."""
