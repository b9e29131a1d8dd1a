"""The stages of a run, a file for each."""
