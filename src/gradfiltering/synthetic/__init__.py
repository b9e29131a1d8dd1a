"""Generated tasks with known answers, planted defects, and tiny models trained from scratch."""
