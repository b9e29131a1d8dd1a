"""Scorers: from measurements of the rows to a score per example, a file for each."""
