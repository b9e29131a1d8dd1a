"""Options to objects: the only package that knows option paths."""
