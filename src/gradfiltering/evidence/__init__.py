"""Evidence: one file per kind of request, which says how it is measured."""
