"""The stages of an experiment in their order."""
