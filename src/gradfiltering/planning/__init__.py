"""The plan of a run: its work, time, memory and disk, before anything heavy starts."""
