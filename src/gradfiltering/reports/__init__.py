"""Reports on runs: pages, tables, cards, the screen and experiment loggers."""
