"""From a tuned model to verdicts: prompts, generation, judges, and the pairwise winning score."""
