"""LoRA fine-tuning of the target on chosen rows."""
