"""Pages in HTML of a run and of a sweep."""
