"""The batch files of scripts/slurm, run by submitit's executors in the place of SLURM, with a stand-in for `srun`."""

import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from tests.support.pipeline import ROOT, TINY_RUN, summary
from tests.support.processes import PLACES, slurm_job
from tests.support.run_comparison import (
    SMALL,
    assert_same_run,
    one_process,
)

submitit = pytest.importorskip("submitit", reason="the optional extra submitit is not installed")

BATCH_FILES = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "${status:-0}"
"""
PYTHON = f"""#!/bin/bash
exec {sys.executable} "$@"
"""
RECORDING_PYTHON = f"""#!/bin/bash
exec {sys.executable} -c 'import json, os, sys; print(json.dumps([sys.argv[1:], sorted(os.environ)]))' "$@"
"""
TASK_OF_AN_ARRAY = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.fixture
def cluster(tmp_path):
    """Run a batch file on a cluster of one node with so many tasks; return what it printed."""
    commands = tmp_path / "bin"
    commands.mkdir()

    def run(executor: str, batch_file: str, *overrides: str, python: str = PYTHON, **variables: str) -> str:
        for name, text in (("srun", SRUN), ("python", python)):
            (commands / name).write_text(text, "utf-8")
            (commands / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name not in PLACES}
        environment |= {
            "PATH": f"{commands}{os.pathsep}{environment['PATH']}", "GRADFILTERING_SHARED": str(tmp_path / "shared"),
            "OMP_NUM_THREADS": "1", **variables,
        }  # fmt: skip
        command = submitit.helpers.CommandFunction(
            ["bash", str(ROOT / "scripts" / "slurm" / batch_file), *overrides], verbose=False, cwd=ROOT, env=environment
        )
        queue = submitit.AutoExecutor(folder=tmp_path / "queue", cluster=executor)
        queue.update_parameters(timeout_min=5)
        return str(queue.submit(command).result())

    return run


def test_each_kind_of_job_has_a_batch_file():
    assert [file.stem for file in BATCH_FILES] == ["proxy", "sweep", "targets"]


@pytest.mark.parametrize("batch_file", BATCH_FILES, ids=lambda file: file.stem)
def test_options_that_batch_files_name_exist(batch_file, cluster, tmp_path):
    job = {**slurm_job(tasks=1), **TASK_OF_AN_ARRAY}
    printed = cluster("debug", batch_file.name, "selector.count=3", python=RECORDING_PYTHON, **job)
    (script, *overrides), variables = json.loads(printed.strip().splitlines()[-1])
    assert (ROOT / script).is_file() and overrides[-1] == "selector.count=3"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [word for word in overrides if word != "-m"], return_hydra_config=True)
    assert cfg.cache.path == str(tmp_path / "shared" / "cache")
    if batch_file.stem == "sweep":
        assert cfg.hydra.sweep.dir == str(tmp_path / "shared" / "sweeps" / job["SLURM_JOB_ID"]) and "-m" in overrides
        assert cfg.hydra.launcher._target_.endswith("SlurmLauncher") and cfg.hydra.launcher.array_parallelism == 8
        assert not [name for name in variables if name.startswith("SLURM_")]
    else:
        assert (cfg.trainer.num_nodes, cfg.trainer.devices, cfg.trainer.strategy) == (1, 1, "ddp")
        assert cfg.run_dir.startswith(str(tmp_path / "shared" / "runs"))
    if batch_file.stem == "targets":
        assert cfg.selector.fraction == 0.2 and cfg.run_dir.endswith("/77/2") and cfg.until == "report"


@pytest.mark.parametrize("batch_file", BATCH_FILES, ids=lambda file: file.stem)
def test_a_batch_file_needs_a_shared_folder(batch_file):
    environment = {name: value for name, value in os.environ.items() if name != "GRADFILTERING_SHARED"}
    done = subprocess.run(["bash", str(batch_file)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "must name a folder that all nodes mount" in done.stderr


@pytest.mark.slow
def test_tasks_of_the_proxy_file_give_what_one_process_gives(cluster, tmp_path):
    few = ["data.rows=25", "selector.fraction=0.2"]
    one = one_process(tmp_path / "one", tmp_path / "cache of one", "until=select", *few)
    job = slurm_job(tasks=2)
    printed = cluster("local", "proxy.sbatch", *SMALL, "trainer=ddp_cpu", *few, **job)
    two = tmp_path / "shared" / "runs" / job["SLURM_JOB_ID"]
    assert printed.count("summary.json") == 1, "the screen belongs to the first task"
    assert_same_run(one, two, 25)


@pytest.mark.slow
def test_the_targets_file_takes_scores_from_the_cache(cluster, tmp_path):
    options = [*TINY_RUN, "trainer=ddp_cpu"]
    job = {**slurm_job(tasks=2), **TASK_OF_AN_ARRAY}
    cluster("local", "proxy.sbatch", *options, **job)
    cluster("local", "targets.sbatch", *options, "selector.fraction=null", "selector.count=5", **job)
    runs = tmp_path / "shared" / "runs"
    scored, tuned = summary(runs / job["SLURM_JOB_ID"]), summary(runs / "77" / "2")
    assert scored["proxy"]["trained"] == 4 and tuned["proxy"]["trained"] == tuned["proxy"]["logged"] == 0
    assert tuned["selection"]["selected"] == 5 and set(tuned["target"]) == {"candidate", "full", "random"}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["debug", "local"])
def test_jobs_of_the_sweep_file_share_one_ensemble(executor, cluster, tmp_path):
    job = slurm_job(tasks=1)
    overrides = [*TINY_RUN, "until=select", "hydra/launcher=submitit_local", "scorer=gsnr,raw_drop"]
    cluster(executor, "sweep.sbatch", *overrides, **job)
    sweep = tmp_path / "shared" / "sweeps" / job["SLURM_JOB_ID"]
    jobs = [summary(sweep / number) for number in "01"]
    assert [entry["selection"]["scorer"] for entry in jobs] == ["gsnr", "raw_drop"]
    assert sorted(entry["proxy"]["trained"] for entry in jobs) == [0, 4], "each member is trained by one job"
    assert len(json.loads((sweep / "sweep.json").read_text("utf-8"))) == 2
