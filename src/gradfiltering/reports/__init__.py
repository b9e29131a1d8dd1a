"""What a run tells: run folder, diagnostics, screen, experiment logger."""
