"""The judge's agreement in the first lines of screen, page, card and sweep; verdicts that are shown as no result."""

import io
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from gradfiltering.reports.cards import write_cards
from gradfiltering.reports.judge_lines import describe_judge, verdicts_are_usable
from gradfiltering.reports.page.answer_section import draw_winning_scores, summarise_verdicts
from gradfiltering.reports.page.run_page import write_page
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.screen import format_details, print_result
from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from gradfiltering.reports.verdict import judge_run
from tests.reports.folders import add_targets, write_run

UNUSABLE = {
    "judge": "local", "source": "bundled", "pairs": 40, "share": 0.2, "kappa": 0.034, "kappa_low": -0.11,
    "kappa_high": 0.19, "contradiction_rate": 0.7, "unreadable_share": 0.25, "least_kappa": 0.4, "usable": False,
}  # fmt: skip
USABLE = {**UNUSABLE, "kappa": 0.81, "kappa_low": 0.66, "kappa_high": 0.94, "usable": True}
UNUSABLE_LINE = (
    "The judge's verdicts are unusable: kappa 0.03 [-0.11, 0.19] with 40 labelled pairs, 0.4 is asked for "
    "(25% without readable scores; orders contradict in 70% of the others)"
)


def judged_run(folder: Path, agreement=None) -> Path:
    write_run(folder)
    summary = add_targets(folder)
    bias = {
        "judged": 10, "contradiction_rate": 0.1, "first_slot_share": 0.5, "decided": 9, "longer_wins_share": 0.5,
        "candidate_mean_length": 5.0, "against_mean_length": 5.0, "length_controlled": None, "repeats": None,
        "agreement": {"raters": [], "judges": [], "not_found": []},
    }  # fmt: skip
    for score in summary["pws"]["full"].values():
        score |= {"sign_p": 0.5, "detectable": 0.3}
    summary["judge"] = {"full": bias}
    summary["diagnostics"] = {"warnings": []}
    if agreement is not None:
        summary["judge_agreement"] = agreement
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    (folder / "summary.json").write_text(json.dumps({**summary, "verdict": judge_run(folder)}), "utf-8")
    return folder


def shown_lines(folder: Path) -> str:
    stream = io.StringIO()
    print_result(RunFiles(folder).summary, folder, Console(file=stream, width=200))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("agreement", "line", "usable"),
    [
        (UNUSABLE, UNUSABLE_LINE, False),
        ({**UNUSABLE, "contradiction_rate": None, "unreadable_share": 1.0}, None, False),
        (USABLE, "The judge agrees with known preferences: kappa 0.81 [0.66, 0.94]", True),
        (None, None, True),
    ],
)
def test_the_line_says_what_was_measured(agreement, line, usable):
    summary = {} if agreement is None else {"judge_agreement": agreement}
    assert verdicts_are_usable(summary) is usable
    described = describe_judge(summary)
    assert (described is None) == (agreement is None)
    assert line is None or (described or "").startswith(line)


def test_the_screen_opens_with_an_unusable_judge(tmp_path):
    folder = judged_run(tmp_path / "run", UNUSABLE)
    text = shown_lines(folder)
    assert UNUSABLE_LINE.partition(" (")[0] in "\n".join(text.splitlines()[1:4])
    assert "Winning score" not in text and "choose another judge" in text
    details = format_details(RunFiles(folder).summary)
    assert "(1 = on a par): unusable, its judge agrees too little" in " ".join(details.split())
    usable = shown_lines(judged_run(tmp_path / "other", USABLE))
    assert "kappa 0.81" in "\n".join(usable.splitlines()[1:4]) and "unusable" not in usable


def test_the_page_colours_no_verdict_of_an_unusable_judge(tmp_path):
    folder = judged_run(tmp_path / "run", UNUSABLE)
    write_page(folder, 5, figures=False)
    page = (folder / "report.html").read_text("utf-8")
    answer = page[page.index('id="answer"') : page.index('id="provenance"')]
    assert answer.index("verdicts are unusable: kappa 0.03") < answer.index("Against full:")
    assert "– unusable: its judge agrees too little" in answer
    assert draw_winning_scores(RunFiles(folder)) is None
    for agreement in (USABLE, None):
        other = judged_run(tmp_path / str(agreement)[:9], agreement)
        assert summarise_verdicts(RunFiles(other))[0]["meaning"].startswith("the whole interval lies above 1")
        assert draw_winning_scores(RunFiles(other)) is not None


def test_the_card_warns_before_the_scores(tmp_path):
    folder = judged_run(tmp_path / "run", UNUSABLE)
    write_cards(folder)
    text = ModelCard.load(folder / "target" / "candidate" / "adapter" / "README.md").text
    assert text.index(f"> **Warning:** {UNUSABLE_LINE}.") < text.index("| against |")


def test_a_sweep_shows_no_winning_score_of_an_unusable_judge(tmp_path):
    judged_run(tmp_path / "0", UNUSABLE)
    judged_run(tmp_path / "1", USABLE)
    stream = io.StringIO()
    rows = write_sweep(tmp_path, Console(file=stream, width=200))
    assert [(row["judge_usable"], row["judge_kappa"]) for row in rows] == [(False, 0.034), (True, 0.81)]
    assert "unusable judge, kappa 0.03" in stream.getvalue() and "full 1.20 [1.10, 1.30]" in stream.getvalue()
    assert "Candidates against" not in stream.getvalue(), "one job is left, which is compared with none"
    assert [job.winning_scores("full") for job in read_jobs(tmp_path)] == [{}, {"tasks": 1.2, "all": 1.2}]
    page = (tmp_path / "sweep.html").read_text("utf-8")
    assert "verdicts are unusable in 1 job" in page and page.count("1.200") >= 1
