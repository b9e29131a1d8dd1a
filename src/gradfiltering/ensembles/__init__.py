"""Proxy ensembles: kinds of ensembles, their training, and the cache of trained members."""
