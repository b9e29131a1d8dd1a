"""GradFiltering: choose instruction-tuning data by the gradients of a LoRA ensemble, and show the evidence."""
