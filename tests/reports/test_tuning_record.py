"""Tuning apart from reporting: what is recorded, what is refused, and what a table says of it in words."""

import io
import json
from copy import deepcopy

import pytest
import yaml
from rich.console import Console

from gradfiltering.errors import UserError
from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from gradfiltering.reports.tuning_record import (
    digest_setting,
    list_study_marks,
    read_tuning,
    record_tuning,
    refuse_tuning_runs,
    rows_are_apart,
)
from tests.reports.folders import config_of
from tests.reports.test_seed_tables import seed_job
from tests.support.pipeline import TINY_RUN, run_train

FILE = {"_target_": "gradfiltering.data.sources.FileSource", "path": "rows.jsonl", "heldout": {"path": None}}
HUB = {"_target_": "gradfiltering.data.sources.HubSource", "name": "alpaca", "split": "train", "path": None}
CURRICULUM = {"_target_": "gradfiltering.synthetic.curriculum_source.CurriculumSource", "rows": 20}
TASKS = {"_target_": "gradfiltering.synthetic.task_source.TaskSource", "rows": 20}


def mixture(**sources):
    parts = {name: {"path": path, "count": count} for name, (path, count) in sources.items()}
    return {"_target_": "gradfiltering.data.mixture.MixtureSource", "sources": parts}


def data_of(use, **changes):
    return {**FILE, "study_part": {"use": use, "tuning_share": 0.5, "seed": 0}, **changes}


def study_job(folder, number, scorer, seed, loss, use, rate=0.001, tuning=()):
    """A job of a study with a learning rate, on a part of the rows."""
    seed_job(folder, number, scorer, seed, 0.5, loss, ["random"])
    path = folder / str(number)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config |= {
        "data": data_of(use),
        "ensemble": {"m": 3, "lr": rate},
        "report": {"tuning": [str(one) for one in tuning]},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((path / "environment.json").read_text())
    environment["overrides"] += [f"ensemble.lr={rate}", f"data.study_part.use={use}"]
    (path / "environment.json").write_text(json.dumps(environment))


@pytest.fixture
def tuning(tmp_path):
    """G-SNR with three rates, the raw drop with one, over seeds 0 and 1."""
    folder = tmp_path / "tuning"
    losses = {0.001: (1.5, 1.7), 0.002: (1.2, 1.4), 0.003: (1.1, 1.9)}
    number = 0
    for rate, seed_losses in losses.items():
        for seed, loss in enumerate(seed_losses):
            study_job(folder, number, "gsnr", seed, loss, "tuning", rate)
            number += 1
    for seed in range(2):
        study_job(folder, number, "raw_drop", seed, 1.0, "tuning")
        number += 1
    return folder


def report_study(tmp_path, tuning, scorers=("gsnr",), rate=0.002, seeds=(5, 6, 7), use="reporting"):
    folder = tmp_path / "reporting"
    for index, scorer in enumerate(scorers):
        for seed in seeds:
            study_job(folder, 10 * index + seed, scorer, seed, 1.0, use, rate if scorer == "gsnr" else 0.001, [tuning])
    return read_jobs(folder)


def test_the_record_has_settings_seeds_and_mean_losses(tuning):
    record = record_tuning(read_jobs(tuning))
    assert record.seeds == {0, 1} and [*record.tried] == ["gsnr", "raw_drop"]
    assert [setting.heldout_loss for setting in record.tried["gsnr"]] == pytest.approx([1.6, 1.3, 1.5])
    best = record.best_setting("gsnr")
    assert best.heldout_loss == pytest.approx(1.3) and best.seeds == (0, 1)
    assert best.options == "scorer=gsnr ensemble.lr=0.002"
    assert record.best_setting("other") is None


def test_settings_with_fewer_seeds_are_not_compared(tuning):
    study_job(tuning, 20, "gsnr", 0, 0.1, "tuning", 0.9)
    assert record_tuning(read_jobs(tuning)).best_setting("gsnr").options.endswith("ensemble.lr=0.002")


def test_a_tuning_sweep_writes_and_prints_its_record(tuning):
    stream = io.StringIO()
    write_sweep(tuning, Console(file=stream, width=200))
    content = json.loads((tuning / "tuning.json").read_text())
    assert [entry["best"] for entry in content["methods"]["gsnr"]] == [False, True, False]
    text = stream.getvalue()
    assert f"'report.tuning=[{tuning}]'" in text and "Settings were compared on rows for tuning here" in text
    assert "Settings were compared on rows for tuning here" in (tuning / "sweep.html").read_text("utf-8")
    from_file = read_tuning([tuning])
    (tuning / "tuning.json").unlink()
    assert from_file == read_tuning([tuning]) == record_tuning(read_jobs(tuning))


@pytest.mark.parametrize(
    ("seed", "data", "reason"),
    [
        (5, data_of("reporting"), None),
        (1, data_of("reporting"), r"seed 1 was a seed of the tuning \(its seeds: 0, 1\)"),
        (5, data_of("tuning"), "its rows are those that the setting was chosen on"),
        (5, FILE, "its rows are those"),
        (5, data_of("reporting", study_part={"use": "reporting", "tuning_share": 0.3, "seed": 0}), "its rows are"),
        (5, data_of("reporting", study_part={"use": "reporting", "tuning_share": 0.5, "seed": 1}), "its rows are"),
        (5, {**FILE, "path": "other.jsonl"}, None),
    ],
)
def test_a_run_on_seeds_or_rows_of_the_tuning_is_refused(tuning, seed, data, reason):
    if reason is None:
        refuse_tuning_runs([str(tuning)], seed, data)
    else:
        with pytest.raises(UserError, match=reason):
            refuse_tuning_runs([str(tuning)], seed, data)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        refuse_tuning_runs([str(tmp_path)], 0, FILE)


@pytest.mark.parametrize(
    ("first", "second", "are_apart"),
    [
        (TASKS, TASKS, True),  # each seed generates rows of its own
        (FILE, TASKS, True),
        ({**FILE, "heldout": {"path": "h.jsonl"}}, {**FILE, "path": "b", "heldout": {"path": "h.jsonl"}}, False),
        (data_of("reporting"), data_of("tuning"), False),  # the other way round
        ({**FILE, "limit": 10}, {**FILE, "limit": 20}, False),
        (FILE, {**FILE, "path": "./rows.jsonl"}, False),
        (FILE, {**HUB, "path": "rows.jsonl"}, False),
        (HUB, {**HUB, "split": "test"}, True),
        (HUB, {**HUB, "limit": 20}, False),
        (mixture(a=("rows.jsonl", 10)), mixture(a=("rows.jsonl", 20)), False),
        (mixture(a=("rows.jsonl", 10), b=("more.jsonl", 10)), mixture(a=("more.jsonl", 10)), False),
        (mixture(a=("rows.jsonl", 10)), FILE, False),
        (mixture(a=("rows.jsonl", 10)), mixture(a=("others.jsonl", 10)), True),
        (CURRICULUM, CURRICULUM, True),
    ],
)
def test_rows_are_apart_where_nothing_is_shared(first, second, are_apart):
    assert rows_are_apart(first, second) is are_apart


def test_a_fair_study_has_no_marks(tmp_path, tuning):
    assert list_study_marks(report_study(tmp_path, tuning)) == []


def test_unequal_budgets_are_marked(tmp_path, tuning):
    (mark,) = list_study_marks(report_study(tmp_path, tuning, ("gsnr", "raw_drop", "random")))
    assert mark == ("The methods had unequal tuning budgets (settings tried: gsnr 3 in 6 runs, raw_drop 1 in 2 runs).")
    untried = list_study_marks(report_study(tmp_path, tuning, ("gsnr", "ifd")))
    assert any("ifd 0 in 0 runs" in mark for mark in untried)


@pytest.mark.parametrize(
    ("rate", "mark"),
    [
        (0.001, "A reported setting of gsnr was not the best of the tuning, which was scorer=gsnr ensemble.lr=0.002."),
        (0.004, "A reported setting of gsnr was not tried in the tuning."),
    ],
)
def test_a_setting_that_tuning_did_not_find_is_marked(tmp_path, tuning, rate, mark):
    assert list_study_marks(report_study(tmp_path, tuning, rate=rate)) == [mark]


def test_shared_seeds_and_rows_of_finished_runs_are_marked(tmp_path, tuning):
    marks = list_study_marks(report_study(tmp_path, tuning, seeds=(1, 5, 6), use="tuning"))
    assert marks == [
        "Not apart from the tuning: seed 1 was a seed of the tuning (its seeds: 0, 1).",
        "Not apart from the tuning: its rows are those that the setting was chosen on.",
    ]


def test_reporting_without_a_record_is_marked(tmp_path):
    for seed in range(3):
        study_job(tmp_path, seed, "gsnr", seed, 1.0, "reporting")
    (mark,) = list_study_marks(read_jobs(tmp_path))
    assert mark.startswith("No record of the tuning was named")


def test_marks_stand_on_screen_page_and_in_every_table(tmp_path, tuning):
    report_study(tmp_path, tuning, rate=0.004)
    folder, stream = tmp_path / "reporting", io.StringIO()
    write_sweep(folder, Console(file=stream, width=200))
    mark = "A reported setting of gsnr was not tried in the tuning."
    assert mark in stream.getvalue() and f'<strong class="bad">{mark}</strong>' in (folder / "sweep.html").read_text()
    assert all(mark in (folder / "tables" / f"{name}.tex").read_text() for name in ("verdicts", "seeds"))


def test_a_setting_is_all_options_but_seed_data_and_budget(tmp_path):
    config = {**config_of(tmp_path), "ensemble": {"m": 3, "lr": 0.1, "seed": 0}}
    digest = digest_setting(config)
    for part, changes in (("ensemble", {"seed": 5}), ("selector", {"fraction": 0.2}), ("data", {"rows": 9})):
        changed = deepcopy(config)
        changed[part] |= changes
        assert digest_setting({**changed, "seed": 7}) == digest
    assert digest_setting({**config, "ensemble": {"m": 3, "lr": 0.2, "seed": 0}}) != digest


@pytest.mark.parametrize("inside", ["second", "inner"])
def test_the_budget_of_a_selector_inside_another_is_none_either(tmp_path, inside):
    digests = set()
    for budget in (0.05, 0.1):
        selector = {"fraction": budget, "first": {"fraction": 0.7}, inside: {"fraction": budget, "count": None}}
        digests.add(digest_setting({**config_of(tmp_path), "selector": selector}))
    assert len(digests) == 1
    selector["first"] = {"fraction": 0.5}
    assert digest_setting({**config_of(tmp_path), "selector": selector}) not in digests, "how much a filter keeps is"


def test_the_command_line_refuses_a_seed_of_the_tuning(tmp_path, tuning, capsys):
    with pytest.raises(SystemExit):
        run_train(*TINY_RUN, f"report.tuning=[{tuning}]", "seed=1", f"run_dir={tmp_path / 'run'}")
    assert "seed 1 was a seed of the tuning" in capsys.readouterr().err
