"""Measurements that scorers and selectors ask for, one file for each kind of request."""
