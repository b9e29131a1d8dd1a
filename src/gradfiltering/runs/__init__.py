"""The run folder, the cache, and logging."""
