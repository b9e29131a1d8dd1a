"""One file per scorer: from the gradient log, or less, to one score per example."""
