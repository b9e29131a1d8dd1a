"""Proxy ensembles: how members are trained and which snapshots are measured."""
