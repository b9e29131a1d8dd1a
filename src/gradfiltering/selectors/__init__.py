"""One file per selector: from scores, or less, to the chosen rows."""
