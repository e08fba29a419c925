"""Climbs of the objective: state, stopping rules, lanes, compiled programs."""
