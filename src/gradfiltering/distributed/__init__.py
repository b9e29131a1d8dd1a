"""The processes of a run: the process group, and what they exchange."""
