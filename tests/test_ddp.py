"""Several processes give what one gives: log, adapters, scores, subset, targets and answers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.support.pipeline import ROOT, summary
from tests.support.processes import TORCHRUN, finish, launch, run_in_processes, slurm_job, slurm_variables, start
from tests.support.run_comparison import (
    LOG_RTOL,
    SMALL,
    assert_same_adapters,
    assert_same_choice,
    assert_same_log,
    assert_same_run,
    at,
    files_of,
    one_process,
)

# A float32 target, by the norm of a tensor. Processes add up a gradient in another order, so it differs by rounding.
# AdamW divides each entry by its own size: where that is near its eps (A at the second step, B being hardly off zero),
# rounding becomes a visible share of a whole update. test_ddp_exact.py shows in float64 that nothing else differs.
TARGET_RTOL = 1e-3
LOSS_RTOL = 1e-4  # float32


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_two_processes_started_by_lightning_equal_one(cache, tmp_path):
    rows = 25  # three batches of 8 and one of 1, of which the second process gets nothing
    few = [f"data.rows={rows}", "until=select", "selector.fraction=0.2"]
    one = one_process(tmp_path / "one", cache, *few)
    two = tmp_path / "two"
    output = run_in_processes(
        tmp_path / "tmp", "train.py", *SMALL, "trainer=ddp_cpu", "progress=true", *few,
        *at(two, tmp_path / "cache"),
    )  # fmt: skip
    assert summary(two)["proxy"]["trained"] == 2 * 2, "the processes trained nothing"
    assert_same_run(one, two, rows)
    assert output.count("summary.json") == 1, "the screen belongs to the first process"
    assert not list((tmp_path / "tmp").glob("gradfiltering-*")), "another process left its folder behind"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [24, 25], ids=["divisible", "not divisible"])
@pytest.mark.parametrize("collect", ["snapshot", "online"])
@pytest.mark.parametrize("processes", [2, 3])
def test_log_adapters_and_choice_under_torchrun(cache, tmp_path, processes, collect, rows):
    few = [f"data.rows={rows}", f"ensemble.collect={collect}", "ensemble.clip_norm=0.5", "until=select",
           "selector.fraction=0.2"]  # fmt: skip
    one, many = one_process(tmp_path / "one", cache, *few), tmp_path / "many"
    command = [*TORCHRUN, str(processes), "train.py", *SMALL, "trainer=ddp_cpu", f"trainer.devices={processes}"]
    run_in_processes(tmp_path / "tmp", *command, *few, *at(many, tmp_path / "cache"))
    assert summary(many)["proxy"]["trained"] == 2 * 2, "the processes trained nothing"
    assert_same_run(one, many, rows)


@pytest.mark.slow
def test_the_extra_member_in_two_processes_is_that_of_one(cache, tmp_path):
    few = ["data.rows=41", "heldout_member.train=true", "until=score"]
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    run_in_processes(tmp_path / "tmp", "train.py", *SMALL, "trainer=ddp_cpu", *few, *at(two, tmp_path / "cache"))
    losses = [summary(folder)["diagnostics"]["heldout_loss"] for folder in (one, two)]
    assert losses[0].keys() == {"base_model", "1", "2"}
    np.testing.assert_allclose(list(losses[1].values()), list(losses[0].values()), rtol=LOG_RTOL)
    assert summary(two)["heldout_member"]["trained"] == 2 and files_of(one) == files_of(two)


@pytest.mark.slow
def test_states_of_frozen_layers_are_shared_out_over_two_processes(cache, tmp_path):
    few = ["data.rows=25", "until=select", "selector.fraction=0.2", "proxy.base_model.layers=2",
           "ensemble.lora.layers=last_1"]  # fmt: skip
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    run_in_processes(tmp_path / "tmp", "train.py", *SMALL, "trainer=ddp_cpu", *few, *at(two, tmp_path / "cache"))
    shards = sorted(path.name for path in (tmp_path / "cache").glob("frozen_prefix/*/states-*.bin"))
    assert shards.count("states-001.bin") >= 1, "one process computed all"
    assert_same_log(one, two, 25)
    assert_same_adapters(one, two)
    assert_same_choice(one, two)


@pytest.mark.slow
def test_influences_in_two_processes_with_a_cache_of_their_own(cache, tmp_path):
    few = ["data.rows=25", "until=select", "selector.fraction=0.2", "scorer=less", "projection.width=32"]
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    run_in_processes(
        tmp_path / "tmp", "train.py", *SMALL, "trainer=ddp_cpu", *few, *at(two, tmp_path / "cache")
    )  # fmt: skip
    assert_same_choice(one, two)
    assert files_of(one) == files_of(two)
    for file in sorted(one.glob("influence/**/projections.npy")):
        np.testing.assert_allclose(np.load(two / file.relative_to(one)), np.load(file), rtol=1e-4, atol=1e-5)


def assert_same_target_adapter(one: Path, other: Path, model: str) -> None:
    first, second = (
        load_file(folder / "target" / model / "adapter" / "adapter_model.safetensors") for folder in (one, other)
    )
    for name, value in first.items():
        apart = np.linalg.norm(second[name] - value) / np.linalg.norm(value)
        assert apart <= TARGET_RTOL, f"{model} {name}: {apart:.1e} apart; a row is missing or counted twice"


@pytest.mark.slow
def test_whole_run_in_three_processes_with_a_cache_of_its_own(cache, tmp_path):
    few = ["data.rows=40", "target.tuning.batch_size=7"]
    one, three = one_process(tmp_path / "one", cache, *few), tmp_path / "three"
    command = ["train.py", *SMALL, "trainer=ddp_cpu", "trainer.devices=3", *few]
    run_in_processes(tmp_path / "tmp", *command, *at(three, tmp_path / "cache"))
    assert_same_choice(one, three)
    for model in ("candidate", "full", "random"):
        assert_same_target_adapter(one, three, model)
        assert (one / f"responses/{model}.jsonl").read_bytes() == (three / f"responses/{model}.jsonl").read_bytes()
    assert files_of(one) == files_of(three)
    a, b = summary(one), summary(three)
    assert a["pws"] == b["pws"] and a["selection"] == b["selection"]
    for model, found in a["target"].items():
        for name in ("steps", "examples", "tokens", "flops"):
            assert b["target"][model][name] == found[name]
        for name in ("final_loss", "heldout_loss"):
            assert b["target"][model][name] == pytest.approx(found[name], rel=LOSS_RTOL)


@pytest.mark.slow
def test_a_target_with_sharded_layers_is_that_of_one_process(cache, tmp_path):
    few = ["data.rows=25", "until=target", "selector.fraction=0.4", "target.tuning.batch_size=7"]
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    command = ["train.py", *SMALL, "trainer=ddp_cpu", "target.tuning.shard_weights=true", *few]
    run_in_processes(tmp_path / "tmp", *command, *at(two, tmp_path / "cache"))
    assert not any(entry["reused"] for entry in summary(two)["target"].values()), "nothing was trained"
    for model in ("candidate", "full", "random"):
        assert_same_target_adapter(one, two, model)


@pytest.mark.slow
def test_lead_in_two_processes_with_a_cache_of_its_own(cache, tmp_path):
    """The choices are the same while no two rows' utilities differ by rounding alone, as here none do."""
    few = ["data.rows=40", "target.data=lead", "target.lead.clusters=3", "until=target", "selector.fraction=0.2"]
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    run_in_processes(tmp_path / "tmp", "train.py", *SMALL, "trainer=ddp_cpu", *few, *at(two, tmp_path / "cache"))
    assert_same_choice(one, two)
    assert files_of(one) == files_of(two)
    alone, together = (pq.read_table(folder / "target/candidate/rounds.parquet").to_pylist() for folder in (one, two))
    assert [entry["example_id"] for entry in together] == [entry["example_id"] for entry in alone]
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=LOSS_RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], [*TORCHRUN, "2"]], ids=["lightning", "torchrun"])
def test_each_job_of_a_sweep_has_one_folder(cache, tmp_path, launcher):
    overrides = [*SMALL, "trainer=ddp_cpu", "data.rows=24", "until=select", f"cache.path={cache}"]
    sweep = tmp_path / "sweep"
    output = run_in_processes(
        tmp_path / "tmp", *launcher, "train.py", "-m", *overrides, "scorer=gsnr,raw_drop", f"hydra.sweep.dir={sweep}"
    )
    files = ["multirun.yaml", "sweep.csv", "sweep.html", "sweep.json", "tables", "verdicts.json"]
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", *files]
    assert [summary(sweep / job)["selection"]["scorer"] for job in "01"] == ["gsnr", "raw_drop"]
    assert files_of(sweep / "0") == files_of(sweep / "1") and "summary.json" in files_of(sweep / "0")
    assert output.count("summary.json") == 2, "each job is told once, by the first process"
    assert output.count("Sweep ") == 1, "and so is the table of all"
    assert not list((tmp_path / "tmp").glob("gradfiltering-*"))


@pytest.mark.slow
def test_tasks_of_a_slurm_job_find_each_other(cache, tmp_path):
    few = ["data.rows=25", "until=select", "selector.fraction=0.2"]
    one, two = one_process(tmp_path / "one", cache, *few), tmp_path / "two"
    command = ["train.py", *SMALL, "trainer=ddp_cpu", *few, *at(two, tmp_path / "cache")]
    job = slurm_job(tasks=2)
    tasks = [start(tmp_path / "tmp", *command, **slurm_variables(job, task)) for task in range(2)]
    done = [finish(task) for task in tasks]
    assert [task.returncode for task in done] == [0, 0], done[0].stderr + done[1].stderr
    assert [task.stdout.count("summary.json") for task in done] == [1, 0], "the screen belongs to the first task"
    assert summary(two)["proxy"]["trained"] == 2 * 2, "the tasks trained nothing"
    assert_same_run(one, two, 25)


@pytest.mark.slow
def test_slurm_tasks_that_the_trainer_does_not_use_are_refused(cache, tmp_path):
    command = ["train.py", *SMALL, "trainer=ddp_cpu", "trainer.devices=3", "data.rows=24", *at(tmp_path / "run", cache)]
    done = finish(start(tmp_path / "tmp", *command, **slurm_variables(slurm_job(tasks=2), 0)))
    assert done.returncode == 1 and "trainer.devices" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "foreign", "message"),
    [("ensemble.lr=1e300", None, "is not finite"), ("until=select", "scores.parquet", "which no earlier run made")],
    ids=["in every process", "in the first process"],
)
@pytest.mark.parametrize("launcher", [[], [*TORCHRUN, "2"]], ids=["lightning", "torchrun"])
def test_a_users_error_is_told_once_and_ends_all_processes(cache, tmp_path, launcher, override, foreign, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if foreign is not None:
        (folder / foreign).touch()
    overrides = [*SMALL, "trainer=ddp_cpu", "data.rows=24", "until=proxy", override]
    done = launch(tmp_path / "tmp", *launcher, "train.py", *overrides, *at(folder, cache))
    assert done.returncode == 1
    assert done.stderr.count(message) == 1, done.stderr
    assert launcher or "Traceback" not in done.stderr  # torchrun shows one of its own
    assert not list((tmp_path / "tmp").glob("gradfiltering-*")), "another process left its folder behind"


ONE_FAILS = """
from gradfiltering.distributed import process_group
from gradfiltering.errors import UserError, plain_words
from tests.support.ddp_training import trainer_of

process_group.ERROR_REPORT_TIMEOUT = process_group.timedelta(seconds=1)
with plain_words(), process_group.connected_processes(trainer_of(2)):
    if process_group.rank() == 1:
        raise UserError("the disk of the second machine is full")
    process_group.gather_from_ranks(0)
"""


@pytest.mark.slow
def test_error_of_another_process_ends_all(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(ONE_FAILS, "utf-8")
    done = finish(
        start(tmp_path / "tmp", str(script), PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), *sys.path])))
    )
    assert done.returncode != 0 and "the disk of the second machine is full" in done.stderr


@pytest.mark.slow
def test_processes_that_the_trainer_does_not_use_are_an_error(cache, tmp_path):
    command = [*TORCHRUN, "2", "train.py", *SMALL, "trainer=cpu", "data.rows=24"]
    done = launch(tmp_path / "tmp", *command, *at(tmp_path / "run", cache))
    assert done.returncode != 0 and "add trainer=ddp" in done.stderr


def started_on_two_ranks(tmp_path: Path) -> tuple[subprocess.Popen, list[int]]:
    """A run whose stages have begun, and the numbers of its other processes."""
    run = tmp_path / "run"
    folders = [f"run_dir={run}", f"hydra.run.dir={run}", f"cache.path={tmp_path / 'cache'}"]
    process = start(tmp_path / "tmp", "train.py", "trainer=ddp_cpu", "logger=none", *folders)
    deadline = time.monotonic() + 120
    while not (run / "run.log").is_file() or "stage" not in (run / "run.log").read_text("utf-8"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    others = [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert others, "no other process was started"
    return process, others


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["other rank", "rank zero"])
def test_a_rank_that_is_killed_ends_the_others_within_seconds(victim, tmp_path):
    process, others = started_on_two_ranks(tmp_path)
    time.sleep(3)
    killed_at = time.monotonic()
    os.kill(others[0] if victim == "other rank" else process.pid, signal.SIGKILL)
    done = finish(process)
    while any(Path(f"/proc/{other}").exists() and "Z" not in state_of(other) for other in others):
        assert time.monotonic() - killed_at < 60
        time.sleep(0.1)
    assert time.monotonic() - killed_at < 60 and "Traceback" not in done.stdout + done.stderr
    if victim == "other rank":
        assert done.returncode == 1
        assert "the process of rank 1 died (exit status -9), so the others are ended, too" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_processes_with_one_sentence(number, status, tmp_path):
    process, others = started_on_two_ranks(tmp_path)
    time.sleep(3)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == status and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("stopped; what is finished is saved in the cache") == 1
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{other}").exists() and "Z" not in state_of(other) for other in others):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def state_of(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
