"""Whole runs on preference rows: scores, the subset as it came in, and a target that learns preferences."""

import csv
import json

import pytest

from tests.support.pipeline import TINY_MODELS, TINY_RUN, run_train, summary

EXAMPLE_ROWS = [
    {"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": f"It is {n + 1}.", "annotator": n} for n in range(24)
]


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "preferences.jsonl"
    rows = [*EXAMPLE_ROWS, {"prompt": "Say it.", "chosen": "same", "rejected": "same"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.slow
def test_a_file_of_preferences_gives_subset_and_target(tmp_path, rows_file, cache):
    options = [option for option in TINY_RUN if not option.startswith(("data.", "eval."))]
    run_train(
        "data=file", f"data.path={rows_file}", "objective=dpo", *TINY_MODELS, *options, cache,
        f"run_dir={tmp_path / 'run'}", "data.heldout.share=0.2", "judge=reference", "report.page=true",
        "report.figures=false", "until=target", "target.tuning.records=3",
    )  # fmt: skip
    results = summary(tmp_path / "run")
    assert results["objective"] == {"name": "DirectPreference", "pairs": True, "unit": "nats per pair of answers"}
    selected = [json.loads(line) for line in (tmp_path / "run" / "subset.jsonl").read_text("utf-8").splitlines()]
    assert selected and all(row in EXAMPLE_ROWS for row in selected)
    assert results["data"]["unscored_reasons"]["chosen and rejected answer are equal"] == 1
    candidate = results["target"]["candidate"]
    assert 0 <= candidate["heldout_accuracy"] <= 1 and candidate["heldout_loss"] == pytest.approx(0.693, abs=0.1)
    with (tmp_path / "run" / "target" / "candidate" / "curve.csv").open() as curve_file:
        curve = list(csv.DictReader(curve_file))
    assert float(curve[0]["heldout_loss"]) == pytest.approx(0.6931, abs=1e-3), "nothing is learnt at the start"
    assert float(curve[-1]["heldout_accuracy"]) == candidate["heldout_accuracy"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "of the pairs ranked right" in page and "nats per pair of answers" in page
    card = (tmp_path / "run" / "target" / "candidate" / "adapter" / "README.md").read_text("utf-8")
    assert "DPO loss of the chosen against the rejected answer" in card and "reward accuracy" in card


def test_preferences_and_responses_are_not_taken_for_each_other(tmp_path, rows_file, cache, capsys):
    with pytest.raises(SystemExit):
        run_train(
            "data=file", f"data.path={rows_file}", "data.schema=preference", *TINY_MODELS, cache, "until=score",
            f"run_dir={tmp_path / 'run'}", "logger=none",
        )  # fmt: skip
    assert "choose an objective that learns preferences, such as dpo" in capsys.readouterr().err


def test_lead_refuses_preferences(tmp_path, cache, capsys):
    with pytest.raises(SystemExit):
        run_train("objective=dpo", "method=lead", *TINY_RUN, cache, f"run_dir={tmp_path / 'run'}")
    assert "LEAD clusters and ranks rows by losses of their responses" in capsys.readouterr().err
