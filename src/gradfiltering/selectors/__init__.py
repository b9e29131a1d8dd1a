"""Selectors: from scores or measurements to the selected rows, a file for each."""
