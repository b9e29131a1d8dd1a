"""What train.py imports, for a process that forks others; nothing of it starts a thread."""

import wandb  # noqa: F401
