"""LoRA fine-tuning of a target model on a set of rows."""
