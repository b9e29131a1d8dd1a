"""A sweep over seeds: intervals that count every source of chance, Holm over the table, no star with two seeds."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from gradfiltering.judging.verdicts import Verdict, decide_verdict, write_verdicts
from gradfiltering.reports.seed_tables import build_seed_table, group_by_setting
from gradfiltering.reports.sweep_jobs import find_varying_options, read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from gradfiltering.statistics.paired_comparison import correct_by_holm
from gradfiltering.statistics.seed_intervals import estimate_mean_value
from tests.reports.folders import config_of, write_run

AUC_ENDS = {"low": 0.5, "high": 0.7}
SCORES = {1: ((9.0, 1.0), (1.0, 9.0)), 0: ((5.0, 5.0), (5.0, 5.0)), -1: ((1.0, 9.0), (9.0, 1.0))}


def seed_job(folder, number, scorer, seed, chance, loss, baselines=("random", "random_2", "full"), auc=0.6):
    """A judged run of a seed in which the candidate wins so many of 60 prompts."""
    path = folder / str(number)
    config = {**config_of(path, scorer), "seed": seed}
    losses = {"candidate": loss, "random": 1.6, "random_2": 1.8, "full": 1.2}
    result = {"steps": 4, "examples": 2, "tokens": 90, "seconds": 1.5, "final_loss": 2.25, "flops": 9, "reused": False}
    target = {name: {**result, "heldout_loss": losses[name]} for name in ("candidate", *baselines)}
    rng = np.random.default_rng([seed, len(scorer)])
    verdicts = []
    for baseline in baselines:
        for prompt, outcome in enumerate(rng.choice([1, -1], p=[chance, 1 - chance], size=60).tolist()):
            scores, reverse = SCORES[outcome]
            judged = ("r", scores, "r", reverse, decide_verdict(scores, reverse))
            verdicts.append(Verdict("candidate", baseline, "reference", 0, "tasks", str(prompt), *judged))
    score = {"value": 1.0, "low": 0.9, "high": 1.1, "wins": 1, "ties": 0, "losses": 1, "unparsed": 0}
    write_run(
        path, config, [f"scorer={scorer}", f"seed={seed}"], target=target,
        pws={baseline: {"all": score} for baseline in baselines},
        diagnostics={"warnings": [], "truth": {"share": {}, "auc": {"scorer": {"value": auc, **AUC_ENDS}}}},
    )  # fmt: skip
    write_verdicts(path / "verdicts.jsonl", verdicts)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """G-SNR wins plainly over four seeds; the raw drop has two."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in range(4):
        seed_job(folder, seed, "gsnr", seed, 0.9, 1.5 + 0.01 * seed, auc=0.6 + 0.01 * seed)
    for seed in range(2):
        seed_job(folder, 4 + seed, "raw_drop", seed, 0.5, 2.0 + 0.1 * seed)
    return folder


@pytest.fixture(scope="module")
def table(sweep):
    return build_seed_table(read_jobs(sweep), set())


def rows_of(table, setting):
    return table.table[table.table["setting"] == setting].set_index("measure")


def test_held_out_loss_stands_first_and_draws_are_one_baseline(table):
    measures = rows_of(table, "gsnr").index.tolist()
    assert measures == [
        "held-out loss − that of random", "held-out loss − that of full", "PWS against random", "PWS against full",
        "AUC, clean over planted",
    ]  # fmt: skip
    loss = rows_of(table, "gsnr").loc["held-out loss − that of random"]
    expected = estimate_mean_value([1.5 + 0.01 * seed - 1.7 for seed in range(4)], 0.95)
    assert (loss["value"], loss["low"], loss["high"], loss["p"]) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.p)
    )
    auc = rows_of(table, "gsnr").loc["AUC, clean over planted"]
    assert auc["value"] == pytest.approx(0.615) and auc["low"] > 0.5 and auc["by seed"] == "0.600 0.610 0.620 0.630"


def test_winning_scores_are_those_of_the_verdicts(table, sweep):
    score = rows_of(table, "gsnr").loc["PWS against random"]
    by_seed = []
    for seed in range(4):
        lines = [json.loads(line) for line in (sweep / str(seed) / "verdicts.jsonl").read_text().splitlines()]
        outcomes = [{"win": 1, "loss": -1}[line["verdict"]] for line in lines if line["against"].startswith("random")]
        by_seed.append(1 + np.mean(outcomes))
    assert score["value"] == pytest.approx(np.mean(by_seed))
    assert score["low"] > 1 and score["high"] <= 2 and score["shown"] == "*"


def test_two_seeds_have_values_and_neither_interval_nor_star(table):
    rows = rows_of(table, "raw_drop")
    assert rows["value"].notna().all() and rows[["low", "high", "p", "p (Holm)"]].isna().all(axis=None)
    assert (rows["shown"] == "").all() and (rows["seeds"] == "2").all()


def test_holm_counts_every_test_of_the_table(table):
    tested = table.table[table.table["p"].notna()]
    assert len(tested) == 5 and "5 tests, corrected by Holm's method" in table.note
    assert tested["p (Holm)"].tolist() == pytest.approx(correct_by_holm(tested["p"].tolist()))


def test_single_seeds_make_no_table(tmp_path):
    seed_job(tmp_path, 0, "gsnr", 0, 0.5, 2.0)
    seed_job(tmp_path, 1, "raw_drop", 0, 0.5, 2.0)
    assert build_seed_table(read_jobs(tmp_path), set()) is None
    assert set(group_by_setting(read_jobs(tmp_path), set())) == {"gsnr", "raw_drop"}


def test_the_sweep_prints_and_writes_it(sweep):
    stream = io.StringIO()
    write_sweep(sweep, Console(file=stream, width=220))
    text = stream.getvalue()
    assert "held-out loss − that of random" in text and "5 tests, corrected by Holm's method" in text
    page = (sweep / "sweep.html").read_text("utf-8")
    assert "What is left when all chance is counted?" in page and "Over seeds" in page
    assert (sweep / "tables" / "seeds.csv").read_text().startswith("setting,measure,seeds,by seed,value,low,high")


def test_searches_for_other_snapshots_are_other_settings(tmp_path):
    target = "gradfiltering.evidence.loss_fall.LossFallSnapshots"
    for number, (seed, early) in enumerate((seed, early) for seed in range(2) for early in (0.3, 0.5)):
        path = tmp_path / str(number)
        config = {**config_of(path, "gsnr"), "seed": seed, "epochs": {"_target_": target, "early": early, "late": 0.9}}
        write_run(path, config, ["epochs=loss_fall", f"epochs.early={early}", f"seed={seed}"])
    jobs = read_jobs(tmp_path)
    settings = group_by_setting(jobs, find_varying_options(jobs))
    assert [sorted(of_setting) for of_setting in settings.values()] == [[0, 1], [0, 1]]


def test_methods_that_share_a_scorer_are_settings_of_their_own(tmp_path):
    """High and low loss are one scorer and one selector, and differ by an option of the method."""
    names = ("loss", "low_loss", "superfiltering_d", "gradfiltering")
    for number, (seed, method) in enumerate((seed, method) for seed in range(2) for method in names):
        path = tmp_path / str(number)
        scorer = {"superfiltering_d": "ifd", "gradfiltering": "gsnr"}.get(method, "loss")
        config = {**config_of(path, scorer), "seed": seed}
        write_run(path, config, [f"method={method}", f"seed={seed}"])
    settings = group_by_setting(read_jobs(tmp_path), set())
    assert {name: sorted(jobs) for name, jobs in settings.items()} == {
        "loss": [0, 1], "low_loss": [0, 1], "superfiltering_d": [0, 1], "gsnr": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize("overrides", [["method=loss", "scorer=raw_drop"], ["method=null"]])
def test_a_replaced_method_does_not_name_the_setting(tmp_path, overrides):
    selection = {"scorer": "raw_drop", "selector": "top", "fraction": 0.2, "selected": 2}
    config = {**config_of(tmp_path / "0", "raw_drop"), "seed": 0}
    write_run(tmp_path / "0", config, overrides, selection=selection)
    assert list(group_by_setting(read_jobs(tmp_path), set())) == ["raw_drop"]
