"""What the page says to a person who decides: savings, examples with reasons, spread, terms, and trust."""

import json

import numpy as np
import pandas as pd
import pytest

from gradfiltering.reports.page.answer_section import check_diagnostics, describe_checks
from gradfiltering.reports.page.glossary import mark_terms, mark_verdict
from gradfiltering.reports.page.row_measurements import measure_rows
from gradfiltering.reports.page.row_reasons import RowExplainer, pick_examples
from gradfiltering.reports.page.spread import compare_spread
from gradfiltering.reports.page.training_savings import estimate_savings
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.runs.run_folder import RunFolder
from tests.reports.page.runs import add_summary, plain_rows, write_bare, write_chosen, write_log


def selected_run(tmp_path, scorer="gsnr", members=3, count=40):
    """A run of which the ten rows with the highest numbers were selected; a row's score is its number."""
    rows = plain_rows(count)
    folder = write_bare(tmp_path / "run", rows)
    if members:
        write_log(folder, count, members)
    write_chosen(folder, rows, list(range(count - 10, count)), np.arange(float(count)))
    selection = json.loads((folder / "summary.json").read_text())["selection"]
    add_summary(folder, selection=selection | {"scorer": scorer})
    return folder


def explainer_of(folder, reselected_share=None):
    run_files = RunFiles(folder)
    return RowExplainer(run_files, measure_rows(run_files), reselected_share)


def test_a_reason_states_the_fall_the_members_and_the_resampling(tmp_path):
    folder = selected_run(tmp_path)
    log = GradientLogReader(folder / "gradient_log")
    early, late = (log.epoch(epoch).grad_norm.astype(float) for epoch in (1, 2))
    drop = 1 - late.mean(0) / early.mean(0)
    fallen = (late < early).sum(0)
    row_id = next(i for i in range(30, 40) if drop[i] > 0 and fallen[i] == 3)
    reason = explainer_of(folder, np.full(40, 0.94)).explain(row_id)
    assert reason.startswith(f"Its gradient fell by {drop[row_id]:.0%} and all 3 members agree")
    assert reason.endswith(f"rank {40 - row_id} of 40; chosen in 94% of resampled ensembles")


def test_a_good_rank_that_the_selector_passed_over_is_explained(tmp_path):
    folder = selected_run(tmp_path)
    write_chosen(folder, plain_rows(40), [38, 30], np.arange(40.0))
    explainer = explainer_of(folder)
    assert "rank 1 of 40, good enough by its score, but the selector looks at more" in explainer.explain(39)
    assert explainer.last_selected_rank == 10 and "good enough" not in explainer.explain(5)


def test_nobody_agrees_where_there_is_one_member(tmp_path):
    reason = explainer_of(selected_run(tmp_path, members=1)).explain(39)
    assert "its gradient" in reason.lower() and "member" not in reason


@pytest.mark.parametrize(
    ("scorer", "words"),
    [("random", "Drawn by chance, which says nothing about the row; rank 1 of 40"),
     ("length", "Its answer has 9 characters, more than 100%"), ("ifd", "Its score is 39; rank 1 of 40")],
)  # fmt: skip
def test_scores_without_gradients_have_reasons_of_their_own(tmp_path, scorer, words):
    folder = selected_run(tmp_path, scorer, members=0)
    texts = pd.read_parquet(folder / "rows.parquet")
    texts.loc[:38, "response"] = "short"
    texts.to_parquet(folder / "rows.parquet")
    assert explainer_of(folder).explain(39).startswith(words)


def test_a_score_by_ifd_says_how_far_the_prompt_helps(tmp_path):
    folder = selected_run(tmp_path, "ifd", members=0)
    scores = pd.read_parquet(folder / "scores.parquet").assign(ifd=np.nan)
    scores.loc[scores["example_id"] == 39, "ifd"] = 0.98
    scores.loc[scores["example_id"] == 0, ["ifd", "score"]] = [3.7, -3.7]
    scores.loc[scores["example_id"] == 1, "ifd"] = 1.2
    scores.to_parquet(folder / "scores.parquet")
    explainer = explainer_of(folder)
    assert explainer.explain(39) == "Its prompt makes the answer 2% less surprising (IFD 0.98); rank 1 of 40"
    last_reason = "Its prompt makes the answer no less surprising (IFD 3.70), so it comes after all others"
    assert explainer.explain(0) == f"{last_reason}; rank 40 of 40"
    assert explainer.explain(1) == "Its prompt makes the answer no less surprising (IFD 1.20); rank 39 of 40"
    assert explainer.explain(5).startswith("Its score is 5"), "scores of older versions have no ratio beside them"


def test_a_row_that_was_not_scored_says_why(tmp_path):
    folder = selected_run(tmp_path)
    RunFolder(folder).write_unscored([(3, "empty response")])
    assert explainer_of(folder).explain(3) == "Not scored: empty response"


def test_examples_are_spread_from_the_first_rank_to_the_last(tmp_path):
    run_files = RunFiles(selected_run(tmp_path))
    measured_rows = measure_rows(run_files)
    explainer = RowExplainer(run_files, measured_rows, None)
    went_in, stayed_out = pick_examples(explainer, run_files, measured_rows)
    assert [row.row_id for row in went_in] == [39, 37, 35, 32, 30]
    assert [row.row_id for row in stayed_out] == [29, 22, 15, 7, 0]
    assert went_in[0].prompt == "Name number 39." and went_in[0].response == "It is 39."


def test_examples_without_ranks_are_drawn_by_the_seed(tmp_path):
    rows = plain_rows(30)
    folder = write_bare(tmp_path / "run", rows)
    write_chosen(folder, rows, list(range(8)), None)
    run_files = RunFiles(folder)
    measured_rows = measure_rows(run_files)
    pairs = [pick_examples(RowExplainer(run_files, measured_rows, None), run_files, measured_rows) for _ in range(2)]
    assert pairs[0] == pairs[1] and {row.row_id for row in pairs[0][0]} <= set(range(8))
    assert len(pairs[0][0]) == len(pairs[0][1]) == 5
    assert pick_examples(RowExplainer(run_files, measured_rows, None), run_files, measured_rows)[0][0].reason


def costs_of(folder):
    return {saving.label: saving for saving in estimate_savings(RunFiles(folder))}


def test_savings_are_measured_where_both_models_were_trained(tmp_path):
    folder = selected_run(tmp_path)
    data = {"examples": 40, "unscored": 0, "tokens": 4000}
    add_summary(folder, data=data, target={"candidate": {"seconds": 30.0}, "full": {"seconds": 120.0}})
    costs = costs_of(folder)
    assert (costs["Rows"].subset, costs["Rows"].pool, costs["Rows"].saved_share) == ("10", "40", 0.75)
    texts = RunFiles(folder).row_texts
    characters = texts["prompt"].str.len() + texts["response"].str.len()
    tokens = 4000 * characters[30:].sum() / characters.sum()
    assert costs["Tokens"].subset == f"about {float(f'{tokens:.3g}'):,.0f}"
    training = costs["Training time"]
    assert (training.subset, training.pool, training.saved_share) == ("30 s", "2 min", 0.75)
    assert training.basis == "both measured in this run"


def test_savings_are_estimated_by_tokens_and_say_so(tmp_path):
    folder = selected_run(tmp_path)
    assert set(costs_of(folder)) == {"Rows"}, "without a count of tokens nothing else is known"
    add_summary(folder, data={"examples": 40, "unscored": 0, "tokens": 4000})
    training = costs_of(folder)["Training time"]
    assert "no model was trained" in training.basis and training.saved_share == costs_of(folder)["Tokens"].saved_share
    add_summary(folder, target={"candidate": {"seconds": 30.0}})
    training = costs_of(folder)["Training time"]
    assert training.basis == "all rows estimated by tokens" and training.pool.startswith("about ")


def test_a_subset_that_takes_longer_than_all_rows_saves_less_than_nothing(tmp_path):
    folder = selected_run(tmp_path)
    data = {"examples": 40, "unscored": 0, "tokens": 4000}
    add_summary(folder, data=data, target={"candidate": {"seconds": 150.0}, "full": {"seconds": 120.0}})
    assert costs_of(folder)["Training time"].saved_share == -0.25


def test_spread_compares_selected_rows_with_all_rows(tmp_path):
    folder = selected_run(tmp_path)
    signs = ("exact_duplicate", "near_duplicate", "unexpected_language", "refusal")
    hits = {name: np.zeros(40, dtype=bool) for name in signs}
    hits["near_duplicate"][[0, 1, 38, 39]] = True
    hits["refusal"][0] = True
    RunFolder(folder).write_hygiene(hits)
    add_summary(folder, hygiene={"rows": 40, "dropped": 0, "counts": {n: int(h.sum()) for n, h in hits.items()}})
    run_files = RunFiles(folder)
    spreads = {part.title: {line.name: line for line in part.lines} for part in
               compare_spread(run_files, measure_rows(run_files))}  # fmt: skip
    assert (spreads["Source"]["a"].pool, spreads["Source"]["a"].selected) == (0.5, 0.5)
    lines = spreads["Length of the answer"].values()
    assert sum(line.pool for line in lines) == pytest.approx(1) and len(lines) == 4
    near = spreads["Duplicates"]["near copies"]
    assert (near.pool, near.selected) == (0.1, 0.2)
    assert spreads["Language"]["another language"].pool == 0
    assert (spreads["Other signs of poor rows"]["refusal"].pool, len(spreads)) == (0.025, 5)


def test_many_sources_end_in_others(tmp_path):
    folder = selected_run(tmp_path)
    texts = pd.read_parquet(folder / "rows.parquet")
    texts["source"] = [f"s{n % 12}" for n in range(40)]
    texts.to_parquet(folder / "rows.parquet")
    run_files = RunFiles(folder)
    lines = compare_spread(run_files, measure_rows(run_files))[0].lines
    assert len(lines) == 8 and lines[-1].name == "5 others" and sum(line.pool for line in lines) == pytest.approx(1)


def test_terms_are_marked_once_and_text_stays_text():
    marked = mark_terms("<b>PWS</b> and PWS again, held-out loss of members; membership")
    assert marked.count("<dfn") == 3 and marked.startswith('&lt;b&gt;<dfn tabindex="0" data-tip="Pairwise')
    assert ">held-out loss</dfn>" in marked and marked.endswith(">members</dfn>; membership")
    assert mark_verdict("Not tested: one <seed>").startswith('<span class="word">Not tested:</span> one &lt;seed&gt;')


@pytest.mark.parametrize("scorer", ["random", "length", "ifd"])
def test_a_scorer_without_gradients_gets_no_ticks(tmp_path, scorer):
    run_files = RunFiles(selected_run(tmp_path, scorer, members=0))
    assert describe_checks(run_files, check_diagnostics(run_files)).startswith("Nothing was tested here")
    add_summary(
        run_files.path, diagnostics={"warnings": [], "easiness": 0.9, "score_spearman": {"response_tokens": 0.1}}
    )
    run_files = RunFiles(run_files.path)
    checks = check_diagnostics(run_files)
    assert list(checks["result"]) == ["within the limit"] * 2
    words = describe_checks(run_files, checks)
    assert words.startswith("2 of 11 diagnostics were measured, 2 are within limits") and "reads no gradients" in words
