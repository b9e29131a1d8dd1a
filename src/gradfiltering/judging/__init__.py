"""From a fine-tuned model to verdicts: prompts, generated answers, judges, and their summary."""
