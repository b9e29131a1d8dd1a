"""The table of a sweep's jobs."""

import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.text import Text

from gradfiltering.errors import UserError
from gradfiltering.reports.sweep_jobs import compute_overlaps, compute_rank_correlations, read_jobs
from gradfiltering.reports.sweep_table import build_rows, format_rows, write_sweep

PWS = {"value": 1.2, "low": 1.1, "high": 1.3, "wins": 6, "ties": 1, "losses": 3, "unparsed": 0}

TRUTH = {
    "share": {"clean": {"pool": 0.7, "selected": 0.9}},
    "auc": {"scorer": {"value": 0.64, "low": 0.6, "high": 0.7}, "random": {"value": 0.5, "low": 0.4, "high": 0.6}},
}


def sweep_rows(folder):
    jobs = read_jobs(folder)
    return build_rows(jobs, compute_overlaps(jobs), compute_rank_correlations(jobs))


def job(folder, number, chosen=None, scores=None, overrides=(), pws=None, saved=0.0):
    """A run folder with what the table reads."""
    path = folder / str(number)
    path.mkdir(parents=True)
    summary = {
        "stages": [{"name": "proxy", "seconds": 2.0}, {"name": "score", "seconds": 0.5}],
        "diagnostics": {"warnings": ["one"], "positive_drop_share": 0.7, "sources": {}, "truth": TRUTH},
        "proxy": {"reused_seconds": saved},
        "selection": {"scorer": "gsnr", "selector": "top", "selected": len(chosen or [])},
    }  # fmt: skip
    if pws:
        summary["pws"] = {"random": {"all": pws, "tasks": pws}}
        summary["target"] = {"candidate": {"heldout_loss": 1.5}, "full": {"reused": True, "seconds": 7.0}}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "environment.json").write_text(json.dumps({"overrides": list(overrides)}))
    if chosen:
        pq.write_table(pa.table({"example_id": chosen, "score": [0.0] * len(chosen)}), path / "subset.parquet")
    if scores:
        pq.write_table(pa.table({"example_id": list(range(len(scores))), "score": scores}), path / "scores.parquet")


@pytest.fixture
def sweep(tmp_path):
    job(tmp_path, 0, [1, 2, 3, 4], [0.1, 0.2, 0.3], ["scorer=gsnr", "ensemble.m=3"], PWS, saved=1.5)
    job(tmp_path, 1, [3, 4, 5, 6], [3.0, 2.0, 1.0], ["scorer=raw_drop", "ensemble.m=3"])
    job(tmp_path, 10, [1, 2, 3, 4], [0.1, 0.2, 0.4])
    job(tmp_path, 2)
    return tmp_path


def test_rows_stand_in_the_order_of_the_jobs(sweep):
    assert [row["job"] for row in sweep_rows(sweep)] == ["0", "1", "2", "10"]


def test_a_row_holds_overrides_results_and_costs(sweep):
    row = sweep_rows(sweep)[0]
    assert row["asked_for"] == "scorer=gsnr ensemble.m=3" and row["positive_drop_share"] == 0.7
    assert (row["score_min"], row["score_median"], row["score_max"]) == (0.1, 0.2, 0.3)
    assert (row["pws_random"], row["pws_random_low"], row["pws_random_high"]) == (1.2, 1.1, 1.3)
    assert row["auc_value"] == 0.64 and row["clean_selected"] == 0.9
    assert row["heldout_loss"] == 1.5 and row["warnings"] == 1
    assert row["seconds"] == 2.5 and row["saved"] == 1.5 + 7.0


def test_what_the_store_saved_is_counted_once(tmp_path):
    job(tmp_path, 0, saved=1.5)
    job(tmp_path, 1, pws=PWS)
    path = tmp_path / "0" / "summary.json"
    summary = json.loads(path.read_text())
    for extra, saved in (
        ({"answers": {"reused_seconds": 4.0}}, 1.5 + 4.0),
        ({"influence": {"reused_seconds": 3.0}}, 1.5),  # the members that the proxy stage left
        ({"proxy": None, "influence": {"reused_seconds": 3.0}}, 3.0),
    ):
        known = {name: value for name, value in {**summary, **extra}.items() if value is not None}
        path.write_text(json.dumps(known))
        assert [row["saved"] for row in sweep_rows(tmp_path)] == [saved, 7.0], extra


def test_a_lead_run_is_not_named_by_an_unused_selector(tmp_path):
    job(tmp_path, 0, overrides=["selector=spice", "target.data=lead"])
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    summary["selection"] = {"scorer": None, "selector": "lead", "selected": 0}
    (tmp_path / "0" / "summary.json").write_text(json.dumps(summary))
    (only,) = read_jobs(tmp_path)
    assert only.method == "selector lead"


def test_overlap_and_correlation_are_means_over_other_jobs(sweep):
    first, second, third, last = sweep_rows(sweep)
    assert first["jaccard"] == pytest.approx((2 / 6 + 1) / 2) and second["jaccard"] == pytest.approx(2 / 6)
    assert first["rank_correlation"] == pytest.approx((-1 + 1) / 2)
    assert second["rank_correlation"] == pytest.approx(-1)
    assert third["jaccard"] is None and third["rank_correlation"] is None
    assert last["jaccard"] == first["jaccard"]


def test_constant_scores_have_no_rank_correlation(tmp_path):
    job(tmp_path, 0, [1], [1.0, 1.0, 1.0])
    job(tmp_path, 1, [1], [1.0, 2.0, 3.0])
    assert sweep_rows(tmp_path)[0]["rank_correlation"] is None


def test_both_files_hold_every_row(sweep):
    rows = write_sweep(sweep, Console(quiet=True))
    assert json.loads((sweep / "sweep.json").read_text()) == rows
    with (sweep / "sweep.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["job"] for row in read] == [row["job"] for row in rows]
    assert float(read[0]["pws_random"]) == 1.2 and read[1]["pws_random"] == ""


@pytest.mark.slow
def test_shared_overrides_are_printed_once_and_never_as_markup(tmp_path):
    shared = "proxy.base_model.text=[/books/a.txt,/books/b.txt]"
    for number, scorer in enumerate(("gsnr", "raw_drop")):
        job(tmp_path, number, overrides=[shared, f"scorer={scorer}", "names=[/bold]"])
    console = Console(width=200, record=True)
    write_sweep(tmp_path, console)
    seen = console.export_text()
    assert seen.count(shared) == 1 and seen.count("[/bold]") == 1
    assert all(seen.count(f"scorer={scorer}") == 1 for scorer in ("gsnr", "raw_drop"))


def printed_sweep(folder, width):
    jobs = read_jobs(folder)
    console = Console(width=width, record=True, file=io.StringIO())
    for block in format_rows(folder.relative_to(folder.parent), jobs, sweep_rows(folder), width):
        console.print(block, soft_wrap=isinstance(block, Text))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_columns_that_do_not_differ_are_told_once(tmp_path, width):
    for number, (scorer, value) in enumerate((("gsnr", 1.2), ("raw_drop", 1.1))):
        job(tmp_path, number, [1, 2, 3 + number], overrides=["seed=1", f"scorer={scorer}"], pws=PWS | {"value": value})
    text = printed_sweep(tmp_path, width)
    first_line, *table_lines = text.splitlines()
    assert first_line.startswith("All jobs  seed=1; warnings 1; held-out loss 1.5; selected 3; ")
    table_text = "\n".join(table_lines)
    assert "warnings" not in table_text and "seed=1" not in table_text
    assert all(part in table_text for part in ("scorer=gsnr", "scorer=raw_drop", "random 1.20 [1.10, 1.30]"))
    assert max(map(len, table_lines)) <= width


def test_a_narrow_terminal_names_what_it_leaves_out(sweep):
    text = printed_sweep(sweep, 60)
    assert "options" in text and "winning score" in text
    assert "in sweep.csv, too: held-out loss, selected, same rows as others, same order as others" in text
    assert "in sweep.csv" not in printed_sweep(sweep, 200) and "same rows as others" in printed_sweep(sweep, 200)


def test_an_old_sweep_by_the_command_line(sweep, tmp_path):
    command = [sys.executable, "-m", "gradfiltering", "report", "sweep"]
    done = subprocess.run([*command, str(sweep)], capture_output=True, text=True, env={"COLUMNS": "200"})
    assert done.returncode == 0 and "1.20 [1.10, 1.30]" in done.stdout
    none = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert none.returncode == 1 and "Traceback" not in none.stderr


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run"):
        sweep_rows(tmp_path)
