"""Trains and measures the proxy in float64 on two hosts, of which the second fails in the middle of an epoch, once.

Run as `python -m tests.support.failing_host FOLDER COLLECT EPOCH` under torchrun; process R leaves `FOLDER/rank=R`, as
`tests.support.ddp_training` does. The host that fails leaves `FOLDER/failed`, so that the one in its place does not.
"""

import os
import signal
import sys
from pathlib import Path

from gradfiltering.distributed import process_group
from gradfiltering.ensembles import stack_training
from tests.support.ddp_training import ROWS, keep_measurements, proxy_context, trainer_of

FAILING_RANK, FAILING_STEP = 1, 2
CHECKPOINT_MINUTES = 1e-6  # one after every step


class FailingSaver(stack_training._MemberSaver):
    """Kills its process and the launcher of it in the middle of an epoch, as a machine that fails ends them."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        has_failed = Path(sys.argv[1]) / "failed"
        stretch = trainer.datamodule.stretch
        steps_done = module.steps_taken - stretch.first_update
        is_here = process_group.rank() == FAILING_RANK and stretch.moment == int(sys.argv[3])
        if is_here and steps_done == FAILING_STEP and not has_failed.exists():
            has_failed.touch()
            os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, collect = Path(sys.argv[1]), sys.argv[2]
    stack_training._MemberSaver = FailingSaver
    two_hosts = trainer_of(2, 2)
    with process_group.connected_processes(two_hosts):
        context = proxy_context(folder, ROWS[1], collect, two_hosts, checkpoint_minutes=CHECKPOINT_MINUTES)
        keep_measurements(context, folder / f"rank={process_group.rank()}" / collect)
