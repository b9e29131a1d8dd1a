"""What train.py imports, for a process that forks others; nothing of it starts a thread."""

import wandb  # noqa: F401

import gradfiltering.data.examples
import gradfiltering.judge.stage
import gradfiltering.proxy.bare
import gradfiltering.report.diagnostics
import gradfiltering.report.run
import gradfiltering.report.sweep
import gradfiltering.report.tracking
import gradfiltering.scorers.base
import gradfiltering.selectors.base
import gradfiltering.target.stage  # noqa: F401
