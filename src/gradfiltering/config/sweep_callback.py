"""Hydra's callback at the end of a multirun; it is loaded before anything is shown, so it imports nothing large."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gradfiltering.distributed.process_group import is_rank_zero_at_launch


class SweepTable(Callback):
    """Write and print the table of a sweep's folder, and its page."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Do so if any of the jobs got as far as a summary."""
        folder = Path(config.hydra.sweep.dir)
        if is_rank_zero_at_launch() and any(folder.glob("*/summary.json")):
            from gradfiltering.reports.sweep_table import write_sweep

            write_sweep(folder)
