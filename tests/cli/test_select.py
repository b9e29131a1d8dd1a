import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from gradfiltering.cli import main
from gradfiltering.config.log_selection import select_from_log
from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog
from gradfiltering.runs.files import write_json
from gradfiltering.runs.run_folder import RunFolder
from tests.support.gradient_logs import write_epoch
from tests.support.pipeline import TINY_RUN, run_train, summary


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with the tiny models, up to its subset."""
    folder = tmp_path_factory.mktemp("select") / "run"
    page = ["report.page=true", "report.figures=false"]  # with it go the rows' sources
    run_train(*TINY_RUN, *page, "until=select", "seed=3", f"run_dir={folder}", f"cache.path={folder.parent / 'cache'}")
    return folder


def read(folder, name):
    return pd.read_parquet(folder / name)


def test_the_selection_of_a_run_comes_out_again(run_folder, tmp_path):
    select_from_log(run_folder, tmp_path / "again", ["selector.fraction=0.25"])
    for name in ("scores.parquet", "subset.parquet", "unscored.parquet"):
        pd.testing.assert_frame_equal(read(tmp_path / "again", name), read(run_folder, name))
    again, before = summary(tmp_path / "again"), summary(run_folder)
    assert again["selection"] == before["selection"] and again["data"] == before["data"]
    failed_names = [
        [failure["name"] for failure in run["diagnostics"]["failed"] if failure["name"] != "easiness"]
        for run in (again, before)
    ]
    assert sorted(failed_names[0]) == sorted(failed_names[1])
    for name, value in again["diagnostics"].items():
        if isinstance(value, float):
            np.testing.assert_allclose(value, before["diagnostics"][name], rtol=1e-9, err_msg=name)
    for name, value in again["diagnostics"]["score_spearman"].items():
        np.testing.assert_allclose(value, before["diagnostics"]["score_spearman"][name], rtol=1e-9, err_msg=name)
    assert again["verdict"]["command"] == before["verdict"]["command"]


def test_the_command_takes_another_scorer_and_selector(run_folder, tmp_path, capsys):
    output = tmp_path / "another"
    options = ["scorer=raw_drop", "selector=stratified", "selector.strata=2", "selector.count=6"]
    with pytest.raises(SystemExit, match="0"):
        main(["select", str(run_folder), str(output), *options, "selector.fraction=null", "report.figures=false"])
    scores, found = read(output, "scores.parquet").set_index("example_id"), summary(output)
    np.testing.assert_array_equal(scores["score"], scores["g_early"] - scores["g_late"])
    np.testing.assert_array_equal(scores["rank"], scores["score"].rank(ascending=False, method="first"))
    assert len(read(output, "subset.parquet")) == 6
    assert (found["selection"]["scorer"], found["selection"]["selector"]) == ("raw_drop", "stratified")
    assert sum(stratum["selected"] for stratum in found["selection"]["strata"].values()) == 6
    assert "6 of 24 rows" in (output / "report.html").read_text("utf-8")
    assert "6 of 24 rows selected by raw_drop" in capsys.readouterr().out


def test_fewer_rows_than_the_budget_has_are_warned_of(run_folder, tmp_path):
    source = shutil.copytree(run_folder, tmp_path / "run")
    with_others = summary(source) | {"counted_rows": 30}  # six rows more, which the log lacks
    (source / "summary.json").write_text(json.dumps(with_others), "utf-8")
    select_from_log(source, tmp_path / "all", ["selector=top", "selector.fraction=1", "report.page=false"])
    (warning,) = [text for text in summary(tmp_path / "all")["diagnostics"]["warnings"] if "budget" in text]
    assert warning.startswith("the budget is 30 rows and 24 were selected: no more rows can be scored")


def test_single_options_leave_the_rest_as_in_the_run(run_folder, tmp_path):
    select_from_log(run_folder, tmp_path / "drop", ["scorer=raw_drop", "selector.fraction=0.5", "report.page=false"])
    select_from_log(tmp_path / "drop", tmp_path / "again", ["scorer.epsilon=7", "report.page=false"])
    expected = read(tmp_path / "drop", "scores.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "again", "scores.parquet"), expected)  # raw_drop divides by nothing
    assert summary(tmp_path / "again")["selection"]["scorer"] == "raw_drop"
    assert RunFolder(tmp_path / "again").read_config()["scorer"]["epsilon"] == 7


def test_one_snapshot_that_is_given_leaves_the_other_as_in_the_run(tmp_path):
    norms = {epoch: np.random.default_rng(epoch).random((2, 6), dtype=np.float32) for epoch in (1, 2, 3, 4)}
    for epoch, norm in norms.items():
        log = EpochLog(np.arange(6), norm, norm, np.arange(1, 7, dtype=np.int32))
        write_epoch(tmp_path / "run" / "gradient_log", log, [0, 1], epoch)
    write_json(tmp_path / "run" / "summary.json", {"proxy": {"epochs": [2, 4]}})
    options = ["scorer=raw_drop", "selector.fraction=0.5", "report.page=false"]
    select_from_log(tmp_path / "run", tmp_path / "out", [*options, "epochs.late=3"])
    expected = norms[2].astype(float).mean(0) - norms[3].astype(float).mean(0)
    np.testing.assert_allclose(read(tmp_path / "out", "scores.parquet")["score"], expected, rtol=1e-12)


def test_a_row_that_only_the_scorer_of_the_run_left_out_is_scored(run_folder, tmp_path):
    source = shutil.copytree(run_folder, tmp_path / "run")
    unscored = read(source, "unscored.parquet").astype({"example_id": "int64"})
    scored_ids = read(source, "scores.parquet")["example_id"].tolist()
    left_out = pd.DataFrame({"example_id": scored_ids[:2], "reason": ["it has no loss alone"] * 2})
    pd.concat([unscored, left_out]).to_parquet(source / "unscored.parquet", index=False)
    select_from_log(source, tmp_path / "out", ["scorer=raw_drop", "report.page=false"])
    assert read(tmp_path / "out", "unscored.parquet")["example_id"].tolist() == unscored["example_id"].tolist()
    assert read(tmp_path / "out", "scores.parquet")["example_id"].tolist() == scored_ids
    data = summary(tmp_path / "out")["data"]
    assert data["unscored"] == sum(data["unscored_reasons"].values()) == len(unscored)
    assert summary(tmp_path / "out")["objective"] == summary(run_folder)["objective"]


def test_the_command_that_would_settle_it_selects_as_here(run_folder, tmp_path):
    strata = ["selector=stratified", "selector.strata=2", "selector.fraction=0.5", "report.page=false"]
    select_from_log(run_folder, tmp_path / "first", ["scorer=length_controlled", "scorer.bins=2", *strata])
    select_from_log(tmp_path / "first", tmp_path / "second", ["scorer=raw_drop", "report.page=false"])
    overrides = RunFolder(tmp_path / "second").read_environment()["overrides"]
    assert [name for name in overrides if name.startswith(("scorer", "selector"))] == ["scorer=raw_drop"]


def test_a_folder_with_nothing_but_a_log_is_enough(run_folder, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "gradient_log").symlink_to(run_folder / "gradient_log")
    select_from_log(tmp_path / "bare", tmp_path / "out", ["selector.fraction=0.5", "report.page=false"])
    logged = summary(tmp_path / "out")["data"]["examples"]
    assert len(read(tmp_path / "out", "subset.parquet")) == round(logged / 2)
    assert summary(tmp_path / "out")["verdict"]["command"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ensemble.m=3"], "ensemble.m=3 has no effect on a selection from a log; give options of scorer, selector"),
        (["epochs=auto"], "pair of numbers; give epochs.early and epochs.late"),
        (["epochs.early=7", "epochs.late=9"], r"has no epoch 7 for member 0 \(epochs logged: \[1, 2\]"),
        (["scorer=ifd"], "IFD reads ResponseLosses, which a gradient log does not hold"),
        (["selector=spice"], "SpiceSelector reads Projections"),
        (["selector.fraction=2"], r"selector.fraction=2"),
        (["scorer=nothing"], "Could not find 'scorer/nothing'"),
        (["~selector"], "~selector has no effect on a selection from a log; give options of"),
        (["scorer.bins=3"], r"no option scorer\.bins; options of the run's scorer: _target_, epsilon, ddof"),
        (["+scorer.bins=3"], r"\+scorer\.bins=3 does not set an option; give it as scorer\.bins=value"),
    ],
)
def test_what_a_log_does_not_serve_is_refused(overrides, message, run_folder, tmp_path):
    with pytest.raises(UserError, match=message):
        select_from_log(run_folder, tmp_path / "out", overrides)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_folder_of_the_log_is_not_written_over(run_folder):
    with pytest.raises(UserError, match="holds the gradient log; give another folder"):
        select_from_log(run_folder, run_folder)
    assert json.loads((run_folder / "summary.json").read_text("utf-8"))["selection"]


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"no gradient log at {tmp_path / 'gradient_log'}")):
        select_from_log(tmp_path, tmp_path / "out")
