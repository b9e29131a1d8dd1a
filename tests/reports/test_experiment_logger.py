"""What the experiment loggers get."""

import csv

import numpy as np
import pandas as pd
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from gradfiltering.reports.experiment_logger import close_logger, log_histogram, log_run, log_summary, open_loggers
from gradfiltering.reports.logger_tables import MOST_CHARACTERS, shorten_text, to_markdown
from gradfiltering.reports.page.charts import ChartLabels, bar_chart, write_figures
from tests.reports.folders import EVIL, add_targets, write_run

SUMMARY = {
    "data": {"examples": 20, "unscored": 1},
    "diagnostics": {"easiness": 0.5, "warnings": ["x"], "relative_variance": {"1": 0.25, "2": None}},
    "pws": {"full": {"all": {"value": 1.25, "wins": 3}}},
    "selection": {"scorer": "gsnr", "selected": 2},
    "stages": [{"name": "proxy", "seconds": 1.0, "reused": True}],
}


LABELS = ChartLabels("drop", "?", "", "x", "y")


def test_numbers_reach_the_logger_by_path(tmp_path):
    logger = open_loggers(lambda: {"only": CSVLogger(str(tmp_path), name="metrics", version="")}, {"seed": 5})[0]
    log_summary(logger, SUMMARY)
    log_histogram(logger, "score/histogram", np.ones(3))  # drawn by W&B alone
    close_logger(logger)
    with (tmp_path / "metrics" / "metrics.csv").open() as file:
        logged = [(name, float(value)) for row in csv.DictReader(file) for name, value in row.items() if value]
    assert {name: value for name, value in logged if name != "step"} == {
        "data/examples": 20, "data/unscored": 1, "diagnostics/easiness": 0.5, "diagnostics/relative_variance/1": 0.25,
        "pws/full/all/value": 1.25, "pws/full/all/wins": 3, "selection/selected": 2,
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "metrics" / "hparams.yaml").read_text()) == {"seed": 5}


@pytest.fixture
def folder(tmp_path):
    folder = write_run(tmp_path / "run")
    add_targets(folder, reused=True)
    write_figures([bar_chart(LABELS, pd.DataFrame({"x": ["a", "b"], "y": [1, 2]}))], folder / "figures")
    return folder


def test_csv_takes_the_tables_and_the_curves_of_reused_models(folder):
    logger = open_loggers(lambda: {"only": CSVLogger(str(folder), name="metrics", version="")}, {})[0]
    log_run(logger, folder)
    close_logger(logger)
    with (folder / "metrics" / "selection" / "top_rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and rows[0]["prompt"] == f"Question 0 {EVIL}" and rows[0]["selected"] == "True"
    assert (folder / "metrics" / "judge" / "verdicts.csv").is_file()
    with (folder / "metrics" / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    losses = {(row["step"], row["target/full/heldout_loss"]) for row in logged if row["target/full/train_loss"]}
    assert losses == {("4", "1.5")}


def test_tensorboard_takes_numbers_tables_and_figures(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = open_loggers(
        lambda: {"only": TensorBoardLogger(str(folder), name="tensorboard", version="")}, {"seed": 1}
    )[0]
    log_histogram(logger, "score/histogram", np.array([1.0, np.nan, 2.0]))
    log_run(logger, folder)
    close_logger(logger)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()
    found = events.Tags()
    assert "pws/full/all/value" in found["scalars"] and found["histograms"] == ["score/histogram"]
    assert found["images"] == ["figures/drop"]
    text = events.Tensors("judge/verdicts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "<script>" not in text and "&#60;script&#62;" in text


def test_no_logger_is_given_nothing(folder):
    log_run(DummyLogger(), folder)
    assert not (folder / "metrics").exists()


def test_a_table_in_markdown_is_text_whatever_it_holds():
    table = pd.DataFrame({"x": ["<b>|\n`*_[a](b)", None], "n": [0.123456789, 2.0]})
    lines = to_markdown(table).splitlines()
    assert len(lines) == 4 and lines[2].count("|") == 3 and "<b>" not in lines[2] and "[a]" not in lines[2]
    assert "0.12346" in lines[2] and "nan" not in lines[3]


def test_long_cells_say_that_they_were_cut():
    assert shorten_text("a" * MOST_CHARACTERS) == "a" * MOST_CHARACTERS
    long = shorten_text("a" * 100_000)
    assert len(long) < MOST_CHARACTERS + 50 and long.endswith("(100,000 characters in all)")
    assert shorten_text("half \ud800 pair") == "half \ufffd pair"
