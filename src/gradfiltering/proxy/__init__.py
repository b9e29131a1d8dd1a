"""The proxy ensemble: backbone, adapters, gradient engines, gradient log."""
