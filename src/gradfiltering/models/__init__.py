"""Language models, LoRA adapters and objectives."""
