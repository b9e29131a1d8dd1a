"""Settings of a sweep against each other: paired by seed and prompt, corrected over the table."""

import io

import numpy as np
import pytest
import yaml
from rich.console import Console

from gradfiltering.errors import UserError
from gradfiltering.judging.responses import Response, write_responses
from gradfiltering.reports.method_comparisons import build_method_table
from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from gradfiltering.statistics.paired_comparison import correct_by_holm
from tests.reports.test_seed_tables import seed_job

# Seeds differ by far more than the methods: 2.0, 1.0 and 3.0, and beside them 0.01, 0.02 and 0.03.
SEED_LOSSES = (2.0, 1.0, 3.0)


def write_answers(folder, seed):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["judge"] |= {"resamples": 100, "confidence": 0.95}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    answers = [Response("tasks", str(n), f"Ask {n}", f"answer of seed {seed}", 5, 3, "eos", False) for n in range(60)]
    write_responses(folder / "responses" / "random.jsonl", answers)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for seed, loss in enumerate(SEED_LOSSES):
        seed_job(folder, seed, "gsnr", seed, 0.9, loss, ["random"])
        seed_job(folder, 3 + seed, "raw_drop", seed, 0.5, loss + 0.01 * (seed + 1), ["random"])
        for number in (seed, 3 + seed):
            write_answers(folder / str(number), seed)
    for seed in range(2):
        seed_job(folder, 6 + seed, "ifd", seed, 0.5, SEED_LOSSES[seed], ["random"])
        write_answers(folder / str(6 + seed), "another")  # the baseline is not the same model
    seed_job(folder, 8, "length", 7, 0.5, 1.0, ["random"])  # a seed that no other setting has
    return folder


@pytest.fixture(scope="module")
def table(sweep):
    return build_method_table(read_jobs(sweep), set())


def lines_of(table, first, second):
    lines = table.table[(table.table["setting"] == first) & (table.table["minus"] == second)]
    return lines.set_index("measure")


def test_losses_are_compared_within_their_seeds(table):
    # -0.01, -0.02, -0.03: the mean has a standard error of 0.01/√3, t = 3.4641, p = 1 - t/√(t² + 2).
    line = lines_of(table, "gsnr", "raw_drop").loc["held-out loss"]
    reach = 4.302653 * 0.01 / 3**0.5
    assert (line["difference"], line["low"], line["high"]) == pytest.approx((-0.02, -0.02 - reach, -0.02 + reach))
    assert line["p"] == pytest.approx(1 - 3.4641016 / 14**0.5, abs=1e-6) and line["seeds"] == "3"


def test_winning_scores_are_subtracted_prompt_by_prompt(table, sweep):
    line = lines_of(table, "gsnr", "raw_drop").loc["PWS against random"]
    differences = []
    for seed in range(3):
        tables = [job.verdicts.set_index("prompt_id")["verdict"] for job in read_jobs(sweep)[seed : seed + 4 : 3]]
        first, second = (verdicts.map({"win": 1, "loss": -1}) for verdicts in tables)
        differences.append((first - second).mean())
    assert line["difference"] == pytest.approx(np.mean(differences))
    assert line["low"] > 0 and -2 <= line["low"] < line["high"] <= 2


def test_two_common_seeds_have_no_interval_and_none_no_line(table):
    line = lines_of(table, "gsnr", "ifd").loc["held-out loss"]
    assert line["difference"] == 0 and line[["low", "high", "p", "p (Holm)"]].isna().all() and line["shown"] == ""
    assert "length" not in {*table.table["setting"], *table.table["minus"]}


def test_scores_against_different_models_are_not_compared(table):
    assert lines_of(table, "gsnr", "ifd").index.tolist() == ["held-out loss"]


def test_losses_on_different_rows_are_not_compared(tmp_path):
    for seed in range(3):
        seed_job(tmp_path, seed, "gsnr", seed, 0.9, 1.0, ["random"])
        seed_job(tmp_path, 3 + seed, "raw_drop", seed, 0.9, 2.0, ["random"])
        config = tmp_path / str(3 + seed) / "config.yaml"
        config.write_text(config.read_text().replace("rows: 20", "rows: 30"))
    assert build_method_table(read_jobs(tmp_path), set()) is None


def test_holm_corrects_over_the_table(table):
    tested = table.table.dropna(subset="p")
    assert len(tested) == 2 and "2 tests, corrected by Holm's method" in table.note
    assert tested["p (Holm)"].tolist() == pytest.approx(correct_by_holm(tested["p"].tolist()))


def test_a_reference_leaves_fewer_pairs(sweep):
    jobs = read_jobs(sweep)
    assert {*build_method_table(jobs, set(), "ifd").table["minus"]} == {"ifd"}
    with pytest.raises(UserError, match="no setting 'other'; its settings: gsnr; raw_drop; ifd; length"):
        build_method_table(jobs, set(), "other")


def test_screen_page_and_files_have_the_comparisons(sweep):
    stream = io.StringIO()
    write_sweep(sweep, Console(file=stream, width=220), reference="gsnr")
    assert "gsnr − raw_drop" in stream.getvalue() and "raw_drop − ifd" not in stream.getvalue()
    assert "Which settings differ, seed by seed?" in (sweep / "sweep.html").read_text("utf-8")
    header = (sweep / "tables" / "methods.csv").read_text().partition("\n")[0]
    assert header == "setting,minus,measure,seeds,difference,low,high,p,p (Holm),shown"
