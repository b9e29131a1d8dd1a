"""An offline W&B run, read back from its own files."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import wandb
import yaml

from gradfiltering.reports.experiment_logger import close_logger, log_run, open_loggers
from gradfiltering.reports.page.charts import ChartLabels, bar_chart, write_figures
from gradfiltering.reports.wandb_logger import RunWandbLogger, make_run_id, make_run_name
from tests.reports.folders import EVIL, add_targets, config_of, write_run
from tests.reports.wandb_files import read_ended_run, read_offline_run
from tests.support.pipeline import ROOT, SMALL_MODELS, SMALL_RUN, SMALL_TASKS, TINY_RUN, run_train

SETTINGS = yaml.safe_load((ROOT / "conf" / "logger" / "wandb.yaml").read_text("utf-8"))["settings"]
SECRET = "sk-never-to-be-seen"


def logger_of(folder, **options):
    settings = wandb.Settings(**{key: value for key, value in SETTINGS.items() if key != "_target_"})
    given = dict.fromkeys(("entity", "name", "group", "id", "tags"))
    given |= {"project": "p", "offline": True, "artifacts": True, "settings": settings, **options}
    return RunWandbLogger(save_dir=folder, **given)


def written(folder):
    """The offline runs of a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that was logged twice, as when it is killed and started again, with a secret on the command line."""
    folder = write_run(tmp_path_factory.mktemp("logged") / "run", overrides=["scorer=gsnr", "run_dir=x"])
    add_targets(folder)
    labels = ChartLabels("drop", "?", "", "x", "y")
    write_figures([bar_chart(labels, pd.DataFrame({"x": ["a", "b"], "y": [1, 2]}))], folder / "figures")
    before, sys.argv = sys.argv, ["train.py", f"judge.judge.api_key={SECRET}"]
    try:
        killed = open_loggers(lambda: {"only": logger_of(folder)}, {"seed": 0})[0]
        killed.log_metrics({"proxy/loss": 2.0}, step=0)
        wandb.finish(exit_code=1)
        logger = open_loggers(lambda: {"only": logger_of(folder)}, {"seed": 0})[0]
        logger.log_metrics({"proxy/loss": 1.5}, step=1)
        log_run(logger, folder)
        close_logger(logger)
    finally:
        sys.argv = before
    return folder


def test_a_resumed_run_is_one_run(logged):
    first, second = (read_ended_run(path) for path in written(logged))
    assert first.id == second.id == make_run_id(logged) and first.exit_code == 1 and second.exit_code == 0
    assert first.values("proxy/loss") == [2.0] and second.values("proxy/loss") == [1.5]
    assert second.name == "scorer=gsnr" and second.config["seed"] == 0


def test_numbers_stand_under_their_stage(logged):
    run = read_ended_run(written(logged)[-1])
    for name, value in {"data/examples": 20, "pws/full/all/value": 1.2, "target/candidate/heldout_loss": 1.5}.items():
        assert run.values(name)[-1] == value


def test_tables_hold_the_rows_with_their_text(logged):
    folder = written(logged)[-1]
    run = read_ended_run(folder)
    columns, top = run.table(folder, "selection/top_rows")
    assert columns == ["rank", "example_id", "score", "selected", "g_early", "g_late", "kind", "source", "prompt",
                       "response"]  # fmt: skip
    assert top[0][:4] == [1, 0, 1.0, True] and top[0][-2:] == [f"Question 0 {EVIL}", "answer 0"]
    assert [row[0] for row in run.table(folder, "selection/bottom_rows")[1]][-1] == 20
    columns, verdicts = run.table(folder, "judge/verdicts")
    said = dict(zip(columns, verdicts[1], strict=True))
    assert said["verdict"] == "win" and said["scores"] == "8 7" and said["baseline"] == "full 1"
    assert run.table(folder, "run/warnings")[1] == [["the score follows length"]]
    assert run.table(folder, "judge/pws")[1][0][:3] == ["full", "tasks", 1.2]
    assert len(run.table(folder, "target/curves")[1]) == 4
    assert run.table(folder, "run/stages")[1] == [["proxy", 2.0, False, 1000]]


def test_figures_are_pictures(logged):
    folder = written(logged)[-1]
    (about,) = read_ended_run(folder).values("figures/drop")
    assert about["_type"] == "image-file"
    assert (folder / "files" / about["path"]).read_bytes() == (logged / "figures" / "drop.png").read_bytes()


def test_artifacts_hold_the_files_and_say_what_they_were_made_from(logged):
    found = read_ended_run(written(logged)[-1]).artifacts
    (data,), (scores,), (subset,), (adapter,) = (found[kind] for kind in ("dataset", "scores", "subset", "adapter"))
    assert data.name == "dataset-" + "f" * 16 and data.use_after_commit and not scores.use_after_commit
    assert json.loads(data.metadata) == {"fingerprint": "f" * 32, "origin": "the bundled tasks", "rows": 20}
    inside = {kind.type: sorted(entry.path for entry in kind.manifest.contents) for kind in (scores, subset, adapter)}
    assert inside["scores"] == ["scores.parquet", "unscored.parquet"]
    assert {"subset.jsonl", "subset.parquet", "dataset_info.json"} <= set(inside["subset"])
    assert "target/candidate/adapter/adapter_model.safetensors" in inside["adapter"]
    assert {entry.local_path for entry in adapter.manifest.contents} == {str(logged / n) for n in inside["adapter"]}
    made_from = json.loads(adapter.metadata)["made_from"]["subset"]
    assert made_from == f"{subset.name}, digest {subset.digest}"
    assert set(json.loads(subset.metadata)["made_from"]) == {"dataset", "scores"}


def test_the_command_line_and_its_secrets_stay_out(logged):
    files = [path for path in (logged / "wandb").rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(SECRET.encode() in path.read_bytes() for path in files)


def test_a_run_without_artifacts_logs_none(tmp_path):
    folder = write_run(tmp_path / "run")
    logger = open_loggers(lambda: {"only": logger_of(folder, artifacts=False)}, {})[0]
    log_run(logger, folder)
    close_logger(logger)
    assert set(read_ended_run(written(folder)[-1]).artifacts) <= {"run_table"}


def test_an_error_marks_the_run_as_failed(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(RuntimeError):
        logger = open_loggers(lambda: {"only": logger_of(folder)}, {})[0]
        try:
            raise RuntimeError("boom")
        finally:
            close_logger(logger)
    assert read_ended_run(written(folder)[-1]).exit_code == 1


class TestId:
    def test_it_is_the_experiment_and_the_folder(self, tmp_path):
        first, other = (write_run(tmp_path / name, config_of(tmp_path / name)) for name in ("a", "b"))
        assert make_run_id(first) == make_run_id(first) != make_run_id(other)
        before = make_run_id(first)
        write_run(first, {**config_of(first, scorer="raw_drop")})
        assert make_run_id(first) != before

    def test_how_far_and_on_what_it_runs_does_not_matter(self, tmp_path):
        folder = write_run(tmp_path / "a")
        before = make_run_id(folder)
        write_run(folder, {**config_of(folder), "until": "select", "progress": False, "trainer": {"devices": 2}})
        assert make_run_id(folder) == before

    def test_the_name_says_what_was_asked_for(self, tmp_path):
        asked = ["scorer=gsnr", "run_dir=/x", "+experiment=a", "cache.path=/y", "hydra.run.dir=z", "ensemble.m=3"]
        assert make_run_name(write_run(tmp_path / "a", overrides=asked)) == "scorer=gsnr +experiment=a ensemble.m=3"
        assert make_run_name(write_run(tmp_path / "b")) == "b"


@pytest.mark.slow
def test_two_loggers_at_once_and_the_hint_names_a_folder(cache, tmp_path, capfd):
    folder = tmp_path / "run"
    options = [*TINY_RUN, cache, "logger=[wandb,csv]", "until=target", f"run_dir={folder}", f"hydra.run.dir={folder}"]
    run_train(*options)
    assert "anonym" not in "".join(capfd.readouterr()).lower()
    [wandb_folder] = written(folder)
    assert f"wandb sync {wandb_folder}" in (folder / "run.log").read_text("utf-8")
    steps = pd.read_csv(folder / "metrics" / "metrics.csv")
    for name in ("proxy/loss", "target/candidate/train_loss", "target/candidate/heldout_loss"):
        by_wandb = [float(value) for value in read_ended_run(wandb_folder).values(name)]
        assert by_wandb and by_wandb == pytest.approx(steps[name].dropna().tolist(), rel=1e-6), name


@pytest.mark.slow
def test_a_killed_job_goes_on_in_its_own_run(cache, tmp_path):
    """A real run, killed by the system while it trains, and given again."""
    folder = tmp_path / "run"
    asked = [*SMALL_MODELS, *SMALL_RUN, *SMALL_TASKS, cache, "ensemble.m=2", f"run_dir={folder}"]
    command = [sys.executable, "train.py", *asked, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "training the target model" in line:
            break
    process.kill()
    process.stdout.close()
    process.wait()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    first, second = (read_offline_run(path) for path in written(folder))
    assert first.id in ("", make_run_id(folder)), "W&B may not have written anything yet, but no other run"
    assert second.id == make_run_id(folder) and first.exit_code is None and second.exit_code == 0
    assert {"scores", "subset", "adapter"} <= set(second.artifacts)
