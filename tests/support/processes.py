"""Starting this project as a user does: by itself, by torchrun, or as the tasks of a SLURM job."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.pipeline import ROOT

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node"]
PLACES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LONG_ENOUGH = 900  # seconds: against hanging only. Beside other work a run of a few seconds can take minutes
SLURM_FIRST_PORT = 15000  # Lightning adds the last four digits of the job's number


def start(temporary: Path, *command: str, within: Sequence[str] = (), **variables: str) -> subprocess.Popen:
    """Starts `python command` in a clean environment with `variables`, temporary files under `temporary`.

    `within` are words before it, of a command that starts it elsewhere.
    """
    temporary.mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if name not in PLACES and not name.startswith("SLURM_")}
    environment = {**plain, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), **variables}
    return subprocess.Popen(
        [*within, sys.executable, *command], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Waits for a process; when that takes too long, it and whatever it started are stopped."""
    try:
        output, errors = process.communicate(timeout=LONG_ENOUGH)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def launch(temporary: Path, *command: str) -> subprocess.CompletedProcess:
    """`python command` as from a shell."""
    return finish(start(temporary, *command))


def run_in_processes(temporary: Path, *command: str) -> str:
    """What `python command` prints; it must end well."""
    done = launch(temporary, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def slurm_variables(job: Mapping[str, str], task: int) -> dict[str, str]:
    """What srun sets for one task of a job on this machine."""
    return {**job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_NODEID": "0"}


def slurm_job(tasks: int) -> dict[str, str]:
    """What SLURM sets for all tasks of a job on this machine; its number leads to a port that is free."""
    for number in range(os.getpid() % 9000 + 1000, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", SLURM_FIRST_PORT + number)) != 0:
                break
    return {
        "SLURM_JOB_ID": str(number), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost",
    }  # fmt: skip
