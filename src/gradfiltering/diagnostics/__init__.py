"""Diagnostics of a run: numbers that show when a score cannot be trusted, with limits and remedies."""
