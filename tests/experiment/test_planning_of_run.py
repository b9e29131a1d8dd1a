"""The plan of a whole run: printed before, kept in the summary beside what followed, and rows cut to the time."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from gradfiltering.config.build import build_experiment
from gradfiltering.config.composition import composed
from gradfiltering.experiment.planning_of_run import list_requests_under_ifd
from gradfiltering.planning import row_fitting, run_speed
from gradfiltering.reports import experiment_logger
from gradfiltering.scorers.ifd import IFD
from tests.support.pipeline import TINY_RUN, run_train, summary
from tests.support.plans import steady_machine

RATE = 1e9


@pytest.fixture
def steady_speed(monkeypatch):
    steady_machine(monkeypatch, dict.fromkeys(("gradients", "losses", "tuning", "answers"), RATE))


def run(folder, cache, *overrides):
    run_train(*TINY_RUN, cache, f"run_dir={folder}", f"hydra.run.dir={folder}", *overrides)
    return summary(folder)


def test_plan_alone_ends_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(experiment_logger, "open_loggers", lambda *_: pytest.fail("a plan is not logged"))
    found = run(tmp_path / "run", f"cache.path={cache}", "plan.minutes=60", "plan=true")
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "timing a few seconds of the work itself",
        "Plan of this run",
        "training the ensemble and",
        "training of 2 members",
        "in all for 24 rows",
    ):
        assert words in printed, words
    assert [stage["name"] for stage in found["stages"]] == ["data", "base_model"]
    assert found["plan"]["seconds"] > 0 and found["plan"]["minutes"] == 60
    planned = [stage["name"] for stage in found["plan"]["stages"]]
    assert planned == ["base_model_passes", "proxy", "target", "judge"]
    assert not {path.name for path in cache.iterdir()} & {"members", "gradient_log", "targets", "base_model_losses"}


def test_a_run_whose_epochs_are_long_is_measured_after_updates(cache, tmp_path, steady_speed, monkeypatch):
    """Plan, training, log and summary agree on the snapshots: an epoch has 3 updates, of which 2 are allowed."""
    monkeypatch.setattr(run_speed, "SHORT_SECONDS", 0.0)
    limited = ("epochs=e1_e2_limited", "epochs.longest_epoch=2", "until=score")
    found = run(tmp_path / "run", cache, "seed=21", *limited)
    assert (found["proxy"]["epochs"], found["proxy"]["unit"]) == ([2, 4], "update")
    work = [piece["description"] for stage in found["plan"]["stages"] for piece in stage["work"]]
    assert "training of 2 members, updates 1 to 4" in work
    logged = [path.name.partition("=") for path in (tmp_path / "run" / "gradient_log").glob("*/*")]
    assert {(unit, int(moment)) for unit, _, moment in logged} == {("update", 2), ("update", 4)}
    whole = run(tmp_path / "whole", cache, "seed=21", "epochs=e1_e2_limited", "epochs.longest_epoch=3", "until=score")
    assert (whole["proxy"]["epochs"], whole["proxy"]["unit"]) == ([1, 2], "epoch")


def test_a_finished_run_holds_its_plan_beside_what_it_took(cache, tmp_path, steady_speed, monkeypatch):
    monkeypatch.setattr(run_speed, "SHORT_SECONDS", 0.0)
    found = run(tmp_path / "run", cache, "seed=11")
    stages = {stage["name"]: stage for stage in found["plan"]["stages"]}
    for name, stage in stages.items():
        assert stage["seconds"] == pytest.approx(stage["operations"] / RATE)
        assert stage["actual_seconds"] == found["cost"][name]["seconds"]
        assert stage["actual_peak_bytes"] == found["cost"][name]["peak_bytes"] > 0
    assert set(stages) == {"base_model_passes", "proxy", "target", "judge"}


def read_reuse(found, stage_name):
    """Description of a piece of work up to its numbers -> whether it is in the cache."""
    (stage,) = (stage for stage in found["plan"]["stages"] if stage["name"] == stage_name)
    return {
        piece["description"].partition(":" if stage_name == "target" else ",")[0]: piece["reused"]
        for piece in stage["work"]
    }


def test_targets_and_answers_in_the_cache_cost_nothing(cache, tmp_path):
    one_model = ["target.base_model.architecture=gpt2", "target.base_model.context=128", "seed=13"]
    first = run(tmp_path / "first", cache, *one_model, "scorer=length")
    assert not any(read_reuse(first, "target").values()) and read_reuse(first, "judge") == {"3 models": False}
    again = run(tmp_path / "again", cache, *one_model, "scorer=length", "plan=true")
    assert read_reuse(again, "target") == {"candidate": True, "full": True, "random": True}
    assert read_reuse(again, "judge") == {"3 models": True}
    assert [stage["operations"] for stage in again["plan"]["stages"] if stage["name"] in ("target", "judge")] == [0, 0]
    measured = run(tmp_path / "measured", cache, *one_model, "scorer=gsnr", "plan=true")
    assert read_reuse(measured, "target") == {"candidate": False, "full": True, "random": True}, "its rows are open"
    assert read_reuse(measured, "judge") == {"1 model": False, "2 models": True}
    other = run(tmp_path / "other", cache, *one_model, "scorer=length", "target.tuning.lr=0.5", "plan=true")
    assert not any(read_reuse(other, "target").values()) and read_reuse(other, "judge") == {"3 models": False}


def test_rows_are_cut_to_the_time_given_and_never_in_silence(cache, tmp_path, steady_speed, monkeypatch, capsys):
    monkeypatch.setattr(row_fitting, "MIN_ROWS", 4)
    sizes = ["until=select", "selector.fraction=0.5", "seed=12", "ensemble.train_rows=23"]
    whole = run(tmp_path / "whole", cache, *sizes, "plan.only=true")
    minutes = 0.6 * whole["plan"]["seconds"] / 60
    found = run(tmp_path / "cut", cache, *sizes, f"plan.minutes={minutes}")
    rows = found["plan"]["rows"]
    assert 4 <= rows < 24 == found["plan"]["pool_rows"] == found["data"]["examples"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{rows} of 24 rows, so that the run takes" in printed and "drawn with seed 12" in printed
    assert "the ensemble trains on all of them, fewer than the 23 rows asked for" in printed
    scores = pq.read_table(tmp_path / "cut" / "scores.parquet").to_pydict()["example_id"]
    unscored = pq.read_table(tmp_path / "cut" / "unscored.parquet").to_pylist()
    left_out = [row["example_id"] for row in unscored if "drawn for the time given" in row["reason"]]
    assert len(scores) == rows and sorted([*scores, *left_out]) == list(range(24)), "ids are positions in the input"
    assert found["selection"]["selected"] == int(rows / 2 + 0.5), "half of the rows that were drawn, halves up"
    texts = [json.loads(line) for line in (tmp_path / "cut" / "subset.jsonl").read_text("utf-8").splitlines()]
    assert len(texts) == found["selection"]["selected"]


@pytest.mark.parametrize(
    ("overrides", "is_paired", "is_proposed"),
    [
        ([], False, True),
        (["scorer=raw_drop", "selector=stratified"], False, True),
        ([], True, False),
        (["selector=spice"], False, False),  # reads gradients itself
        (["scorer=less"], False, False),
        (["method=lead"], False, False),
        (["until=proxy"], False, False),
        (["selector=random"], False, False),
        (["ensemble.m=auto"], False, False),  # found by the scores of gradients
        (["epochs=loss_fall"], False, False),
    ],
)
def test_ifd_is_proposed_where_it_can_take_the_scorers_place(overrides, is_paired, is_proposed, tmp_path):
    with composed([*overrides, f"run_dir={tmp_path}", "logger=none"]) as cfg:
        requests = list_requests_under_ifd(build_experiment(cfg), SimpleNamespace(is_paired=is_paired))
    assert requests == (IFD().requests if is_proposed else None)
