"""The pages that show a run: charts, templates, and what is read from a run folder for them."""
