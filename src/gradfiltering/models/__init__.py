"""Language models, LoRA adapters, losses and prompt templates."""
