"""Benchmarks of large data on the smallest size: as many rows as asked for, and figures for each stage."""

import json
import re
import sys

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.runs.gradient_log import GradientLogReader
from scripts import bench_processes, bench_scale, data_memory
from tests.support.command import run_command
from tests.support.pipeline import TINY_RUN


@pytest.fixture(autouse=True)
def same_datasets_cache(monkeypatch):
    """The scripts give the library folders of their own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the commands that are to be measured in this process."""

    def run_measured(command):
        if command[1:3] == ["-m", "gradfiltering"]:
            assert run_command(*command[3:]) == 0
        else:
            bench_scale.main(command[2:])
        return "measured"

    monkeypatch.setattr(bench_scale, "run_measured", run_measured)


def test_what_a_command_took_is_said_in_words(capsys):
    words = bench_scale.run_measured([sys.executable, "-c", "pass"])
    assert re.fullmatch(r"\d+ s in all \(\d s of processor time\), at most 0\.\d\d GiB", words)
    with pytest.raises(SystemExit, match="ended with status 3"):
        bench_scale.run_measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_tenth_of_scored_rows_is_selected(in_this_process, tmp_path, capsys):
    bench_scale.main(["scored", "--rows", "1000", "--folder", str(tmp_path)])
    assert "100 rows selected" in capsys.readouterr().out
    scores = pq.read_table(tmp_path / "scored-1000.parquet").to_pandas().set_index("example_id")["score"]
    selected = pq.read_table(tmp_path / "subset.parquet")["example_id"].to_numpy()
    assert set(selected) == set(scores.nlargest(100).index)


def test_a_synthetic_log_falls_for_most_rows(tmp_path):
    bench_scale.write_log(tmp_path / "gradient_log", 500, 3)
    reader = GradientLogReader(tmp_path / "gradient_log")
    early, late = (reader.epoch(epoch) for epoch in bench_scale.EPOCHS)
    assert early.grad_norm.shape == late.grad_norm.shape == (3, 500)
    assert 0.6 < (late.grad_norm.mean(0) < early.grad_norm.mean(0)).mean() < 0.95
    np.testing.assert_array_equal(early.response_tokens, late.response_tokens)


@pytest.mark.slow
def test_selecting_from_a_log_prints_each_stage(in_this_process, tmp_path, capsys):
    bench_scale.main(["log", "--rows", "300", "--members", "2", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for selector in ("top", "stratified"):
        assert re.search(rf"300 rows, {selector}: score \d+ s, at most [\d,]+ MiB", printed)
        assert f"300 rows, {selector}: measured" in printed
        assert pq.read_metadata(tmp_path / "log-300" / selector / "subset.parquet").num_rows == 30


def test_an_online_epoch_records_every_row(in_this_process, tmp_path, capsys):
    bench_scale.main(["online", "--rows", "600", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    before, at_most = map(int, re.search(r"anonymous memory: (\d+) MiB before, (\d+) MiB at most", printed).groups())
    assert 0 < before <= at_most and "600 rows: measured" in printed
    (log_file,) = tmp_path.rglob("online.parquet")
    assert pq.read_metadata(log_file).num_rows == 600


def test_repeated_rows_are_changed_but_for_a_few(in_this_process, rows_file, tmp_path, capsys):
    folder = str(tmp_path)
    bench_scale.main(["hygiene", "--rows", "100", "--folder", folder, "--alpaca", str(rows_file)])
    rows = [json.loads(line) for line in (tmp_path / "alpaca-100.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 100 and rows[:40] == json.loads(rows_file.read_text())
    counts = re.search(r"s of processor time, (\{.*\})", capsys.readouterr().out)[1]
    assert "'exact_duplicate'" in counts and not (tmp_path / "hygiene-100").exists()


def test_hygiene_asks_for_the_rows_that_it_repeats(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench_scale.main(["hygiene", "--rows", "100", "--folder", str(tmp_path)])
    assert "hygiene needs --alpaca" in capsys.readouterr().err


def test_the_data_stage_has_a_line_for_each_step_and_leaves_nothing(tmp_path, capsys):
    data_memory.main(["--rows", "60", "30", "--folder", str(tmp_path), "--processes", "1"])
    printed = capsys.readouterr().out
    for row_count in (60, 30):
        for step in ("read and check", "tokenise by 1 processes", "select a tenth"):
            assert re.search(rf"^{row_count} rows, {step}: .* MiB at most: own \d+", printed, re.MULTILINE)
    tokens = [[int(number.replace(",", "")) for number in line] for line in re.findall(
        r"([\d,]+) examples, ([\d,]+) tokens, a tenth of them ([\d,]+)", printed)]  # fmt: skip
    assert [line[0] for line in tokens] == [60, 30] and all(line[2] < line[1] / 5 for line in tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_have_stages_and_their_communication(tmp_path, capsys):
    json_file = tmp_path / "processes.json"
    bench_processes.main(["--processes", "1", "2", "--json", str(json_file), "--", *TINY_RUN])
    measured = json.loads(json_file.read_text())
    assert list(measured) == ["1", "2"] and len(capsys.readouterr().out.splitlines()) == 2
    for processes, figures in measured.items():
        assert list(figures["stages"]) == list(bench_processes.STAGES) and figures["processor_seconds"] > 1
        assert set(figures["planned_seconds"]) == {"base_model_passes", "proxy"}
        for stage in figures["stages"].values():
            assert stage["seconds"] > 0 and 0 <= stage["exchange_share"] <= 1 and stage["waiting_share"] >= 0
        assert (figures["stages"]["proxy"]["collectives"] > 0) == (processes == "2")
