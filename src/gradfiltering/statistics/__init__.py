"""Intervals, tests and winning scores: arithmetic on arrays."""
