import io
from copy import deepcopy

import pytest
from rich.console import Console

from gradfiltering.reports.data_lines import (
    describe_cut_rows,
    describe_data,
    describe_heldout_loss,
    describe_hygiene,
    describe_proxy,
)
from gradfiltering.reports.screen import (
    FILE_MEANINGS,
    describe_next_step,
    describe_selection,
    format_details,
    print_result,
)

ENSEMBLE = {
    "positive_drop_share": 0.23, "median_relative_drop": -0.187, "relative_variance": {"1": 0.0123, "2": None},
    "update_ratio": {"1": 0.1}, "member_agreement": 0.5, "heldout_loss": {"base_model": 2.345, "2": 1.987},
}  # fmt: skip
VERDICT = {
    "verdict": "not tested", "reasons": ["one seed alone; it takes 3 to tell a difference from chance"], "seeds": 1,
    "command": "python train.py -m seed=0,1,2 until=report", "command_seconds": 130.0, "command_seconds_are_all": True,
}  # fmt: skip
PROXY = {
    "verdict": VERDICT | {"reasons": ["no rows were selected, as the run ended before"], "command": None},
    "stages": [
        {"name": "backbone", "seconds": 12.34, "reused": True}, {"name": "proxy", "seconds": 56.78, "reused": False}
    ],
    "cost": {
        "backbone": {"seconds": 12.34, "flops": None, "peak_bytes": 123 * 2**20},
        "proxy": {"seconds": 56.78, "flops": 7, "peak_bytes": 2345 * 2**20},
    },
    "data": {
        "examples": 2000, "unscored": 17, "truncated": {"rows": 145, "tokens": 1234}, "max_tokens": 128, "tokens": 5000
    },
    "diagnostics": {"warnings": ["norms rose [bold]everywhere[/]; raise ensemble.lr"], **ENSEMBLE},
}  # fmt: skip
SELECT = deepcopy(PROXY) | {
    "verdict": VERDICT,
    "selection": {"scorer": "gsnr", "selector": "top", "fraction": 0.1, "selected": 199},
}
SELECT["diagnostics"] |= {
    "score_spearman": {"response_tokens": -0.73, "base_loss": None},
    "truth": {
        "share": {"clean": {"pool": 0.741, "selected": 0.912, "low": 0.853, "high": 0.964}},
        "auc": {"scorer": {"value": 0.678, "low": 0.611, "high": 0.733}},
    },
}
JUDGE = deepcopy(SELECT) | {
    "target": {
        "candidate": {"steps": 31, "examples": 198, "final_loss": 1.234, "heldout_loss": 1.567},
        "full": {"steps": 312, "examples": 1983, "final_loss": 0.876, "heldout_loss": None},
    },
    "metrics": {"candidate": {"tasks": {"exact_match": 0.4, "chrf": 55.5}, "more": {"exact_match": 0.2, "chrf": None}}},
    "pws": {
        "full": {
            "all": {
                "value": 1.203,
                "low": 1.15,
                "high": 1.256,
                "wins": 507,
                "ties": 225,
                "losses": 298,
                "unparsed": 4,
                "sign_p": 1.7e-13,
                "detectable": 0.0764,
            },
            "none": {"value": None, "low": None, "high": None, "wins": 0, "ties": 0, "losses": 0, "unparsed": 9},
        }
    },
    "judge": {
        "full": {
            "judged": 1030,
            "contradiction_rate": 0.141,
            "first_slot_share": 0.567,
            "decided": 805,
            "longer_wins_share": 0.712,
            "candidate_mean_length": 1234.5,
            "against_mean_length": 987.6,
            "length_controlled": {"value": 1.123, "low": 1.061, "high": 1.187, "length_effect": 0.5},
            "repeats": {"repeats": 3, "same_verdict_share": 0.881, "pws_deviation": 0.0213},
            "agreement": {
                "raters": [
                    {
                        "raters": ["ann", "[bob]"],
                        "share": 0.913,
                        "kappa": 0.852,
                        "kappa_low": 0.824,
                        "kappa_high": 0.879,
                    }
                ],
                "judges": [{"raters": ["human", "gpt.jsonl"], "share": 0.716, "kappa": None}],
                "not_found": ["other.json"],
            },
        }
    },
}

HYGIENE_WORDS = ("exact_duplicate", "near_duplicate", "empty_answer", "one_word_answer", "refusal", "repetition")
PROXY_SAYS = ["backbone", "12.3", "reused", "123 MiB", "56.8", "2,345 MiB", "23% of rows", "-0.187", "0.0123 (epoch 1)",
              "Held-out loss of the proxy: 2.35 before, 1.99 after epoch 2",
              "norms rose [bold]everywhere[/]; raise ensemble.lr"]  # fmt: skip
SELECT_SAYS = ["199 of 2000 selected, 17 not scored", "top by gsnr", "Spearman of score and response_tokens", "-0.73",
               "clean", "74.1%", "91.2%", "85.3% – 96.4%",
               "AUC of clean over planted: scorer 0.678 [0.611, 0.733]"]  # fmt: skip
JUDGE_SAYS = ["candidate", "198", "31", "1.234", "1.567", "1983", "0.876", "0.300", "55.500",
              "1.203", "1.150 – 1.256", "507 / 225 / 298", "0 / 0 / 0",
              "p = 1.7e-13", "0.076", "1.123 [1.061, 1.187]", "71.2% of 805", "1234 / 988", "14.1% of 1030", "56.7%",
              "4 of 1034", "88.1% in 3", "0.021", "agreement of ann, [bob] │ 91.3% equal, kappa 0.852 [0.824, 0.879]",
              "agreement of human, gpt.jsonl │ 71.6% equal",
              "other.json │ no judgement of these answers in it"]  # fmt: skip


def shown(summary, folder, width=80):
    stream = io.StringIO()
    print_result(summary, folder, Console(file=stream, width=width))
    return stream.getvalue()


def flowing(text):
    return " ".join(text.split())  # rich may break a line anywhere


@pytest.mark.parametrize(
    ("summary", "said"),
    [(PROXY, PROXY_SAYS), (SELECT, PROXY_SAYS + SELECT_SAYS), (JUDGE, PROXY_SAYS + SELECT_SAYS + JUDGE_SAYS)],
    ids=["until=proxy", "until=select", "until=judge"],
)
def test_the_log_has_all_numbers_of_a_run(summary, said):
    text = format_details(summary)
    assert not [part for part in said if part not in flowing(text)], text
    assert "\x1b" not in text


def test_details_do_not_mention_what_was_not_run():
    text = format_details(PROXY)
    assert not any(title in text for title in ("Selection", "Planted truth", "Target models", "Pairwise"))


def test_details_name_the_prompt_template_of_each_model():
    text = flowing(format_details({**PROXY, "templates": {"proxy": "alpaca", "target": "chat"}}))
    assert "Prompt template proxy: alpaca; target: the model's own chat template" in text


def test_details_of_a_selection_without_scorer_or_ensemble():
    summary = deepcopy(SELECT)
    summary["diagnostics"] = {"warnings": []}
    summary["selection"] |= {"scorer": None, "selector": "random"}
    text = format_details(summary)
    assert "random" in text and " by " not in text and "Proxy ensemble" not in text


def test_rows_that_were_not_taken_are_told_from_those_that_were():
    summary = {**deepcopy(SELECT), "counted_rows": 500}
    assert "of 500 rows taken from 2,000 selected by gsnr" in describe_selection(summary)[0]


def test_result_of_a_judged_run_reads_as_people_speak(tmp_path):
    for name in ("report.html", "subset.jsonl", "scores.parquet", "verdicts.jsonl"):
        (tmp_path / name).write_text("")
    text = shown(JUDGE, tmp_path).replace(str(tmp_path), "FOLDER")
    assert text == (
        "──────────────────────────────────── Result ────────────────────────────────────\n"
        "Not tested: one seed alone; it takes 3 to tell a difference from chance\n"
        "199 of 2,000 rows selected by gsnr; 17 were not scored\n"
        "Winning score (even: 1): 1.20 against all rows\n"
        "! norms rose [bold]everywhere[/]\n"
        "145 of 1,983 rows were cut to 128 tokens and lost 1,234 tokens, 19.8% of all\n"
        "To settle it (about 2 min): python train.py -m seed=0,1,2 until=report\n"
        "Files in FOLDER\n"
        "  report.html     what was selected and why, for a browser\n"
        "  subset.jsonl    the selected rows\n"
        "  scores.parquet  score and rank of every row\n"
        "Next  see in report.html what to change (!), then run the command above\n"
    )


def test_result_never_takes_more_than_twenty_lines(tmp_path):
    for name in FILE_MEANINGS:
        (tmp_path / name).write_text("")
    summary = deepcopy(JUDGE) | {"hygiene": {"rows": 9000, "dropped": 0, "counts": dict.fromkeys(HYGIENE_WORDS, 1234)}}
    summary["pws"]["random"] = summary["pws"]["full"]
    summary["diagnostics"]["warnings"] = [f"warning {number} " + 30 * "about something " for number in range(9)]
    summary["diagnostics"] |= {"base_loss": 9.6, "chance_loss": 6.93, "unknown_token_share": 0.31}
    for proxy_knows_rows, doubt in ((True, "7 more warnings are"), (False, "9 warnings are")):
        summary["diagnostics"]["proxy_knows_rows"] = proxy_knows_rows
        lines = shown(summary, tmp_path).replace(str(tmp_path), "FOLDER").splitlines()
        assert len(lines) <= 20 and max(map(len, lines)) <= 80, "\n".join(lines)
        assert f"! {doubt} in report.html" in lines


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ({"held out for evaluation (data.heldout.share)": 17}, "; 17 held out"),
        ({"held out for evaluation (data.heldout.share)": 15, "empty response": 2}, "; 15 held out, 2 were not scored"),
        ({}, ""),
    ],
)
def test_rows_set_aside_are_told_from_those_without_a_score(reasons, said):
    summary = deepcopy(SELECT)
    summary["data"] |= {"unscored": sum(reasons.values()), "unscored_reasons": reasons}
    assert describe_selection(summary)[0] == f"199 of 2,000 rows selected by gsnr{said}"


@pytest.mark.parametrize(
    ("ends", "said"),
    [((1.2, 1.1, 1.3), "1.20"), ((0.8, 0.7, 0.9), "0.80"), ((1.0, None, None), "1.00"), ((None,) * 3, "not readable")],
)
def test_the_score_of_one_seed_is_told_without_a_judgement(ends, said):
    summary = deepcopy(JUDGE)
    summary["pws"]["full"]["all"] |= dict(zip(("value", "low", "high"), ends, strict=True))
    assert describe_selection(summary)[1] == f"Winning score (even: 1): {said} against all rows"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy_knows_rows": False, "warnings": ["w"]}, "take a proxy that knows such rows"),
        ({"warnings": ["w"]}, "see in summary.json what to change (!), then run the command above"),
        ({"warnings": []}, "run the command above to decide; summary.json shows the rows, and why"),
    ],
)
def test_next_step_follows_from_what_is_known(changes, said):
    summary = deepcopy(JUDGE)
    summary["diagnostics"] |= changes
    assert describe_next_step(summary, "summary.json").startswith(said)


def test_next_step_where_more_seeds_would_change_nothing():
    summary = deepcopy(JUDGE)
    summary["verdict"]["command"], summary["diagnostics"]["warnings"] = None, []
    said = "open report.html before you train on subset.jsonl: no advantage is shown yet"
    assert describe_next_step(summary, "report.html") == said
    summary["diagnostics"]["warnings"] = ["w"]
    assert describe_next_step(summary, "report.html").endswith("for each warning (!)"), "there is no command above"


def test_the_next_step_is_training_where_the_verdict_allows_it():
    summary = deepcopy(JUDGE) | {"verdict": VERDICT | {"verdict": "use it"}}
    summary["diagnostics"]["warnings"] = []
    assert describe_next_step(summary, "report.html").startswith("train on subset.jsonl")
    summary |= {"verdict": VERDICT | {"verdict": "do not use it"}}
    assert describe_next_step(summary, "report.html").startswith("do not train on subset.jsonl")


def test_next_step_before_judging_is_a_test_or_the_rest():
    summary = deepcopy(SELECT)
    summary["diagnostics"]["warnings"] = []
    assert "run the command above" in describe_next_step(summary, "report.html")
    assert "until=select" in describe_next_step(PROXY, "report.html")


def test_a_proxy_that_knows_little_is_named_first(tmp_path):
    summary = deepcopy(SELECT)
    summary["diagnostics"]["proxy_knows_rows"] = False
    assert shown(summary, tmp_path).splitlines()[1].startswith("The proxy knows little of these rows")


def test_existing_files_are_listed_with_their_folder(tmp_path):
    folder = tmp_path / "judge.against=[full]"  # square brackets are markup to rich
    folder.mkdir()
    (folder / "subset.jsonl").write_text("")
    text = shown(PROXY, folder)
    assert str(folder) in text
    assert FILE_MEANINGS["subset.jsonl"] in text and FILE_MEANINGS["report.html"] not in text


def test_nothing_is_said_of_cuts_where_a_run_of_an_old_version_did_not_count_them():
    assert describe_cut_rows({"data": {"examples": 4, "unscored": 0, "truncated": 3, "tokens": 9}}) is None
    whole = {"examples": 4, "unscored": 0, "truncated": {"rows": 0, "tokens": 0}, "max_tokens": 512, "tokens": 9}
    assert describe_cut_rows({"data": whole}) == "No row was cut: each fits into 512 tokens"


def test_signs_of_poor_rows_are_counted_in_a_line():
    counts = {"exact_duplicate": 2, "near_duplicate": 0, "refusal": 1234}
    hygiene = {"rows": 5000, "counts": counts, "dropped": 0}
    line = "Signs of poor rows, of 5,000: exact duplicate 2, refusal 1,234; none was dropped"
    assert describe_hygiene({"hygiene": hygiene}) == line
    dropped = describe_hygiene({"hygiene": hygiene | {"dropped": 1236}})
    assert dropped == line.replace("none was dropped", "1,236 were dropped")
    clean = hygiene | {"counts": dict.fromkeys(counts, 0)}
    assert describe_hygiene({"hygiene": clean}) == "None of 5,000 rows shows a sign of poor quality"
    assert describe_hygiene({}) is None


@pytest.mark.parametrize(
    ("origin", "rows"),
    [("extra_member", "1,040 rows that this extra member never saw"), ("dataset", "1,040 rows set aside by the data")],
)
def test_the_heldout_loss_is_told_with_its_rows(origin, rows):
    losses = {"base_model": 2.314, "1": 2.046, "2": 1.981}
    diagnostics = {"heldout_loss": losses, "heldout_rows": {"count": 1040, "origin": origin}}
    line = f"Held-out loss of the proxy: 2.31 before, 2.05 after epoch 1, 1.98 after epoch 2 ({rows})"
    assert describe_heldout_loss({"diagnostics": diagnostics}) == line
    assert describe_data({"diagnostics": diagnostics}) == [line]
    assert describe_heldout_loss({"diagnostics": {}}) is None
    nothing = describe_heldout_loss({"diagnostics": {"heldout_loss": {"base_model": None}}})
    assert nothing == "Held-out loss of the proxy: not measured, since no row was held out"


def test_the_heldout_loss_of_an_earlier_run_is_told_too():
    losses = {"bare": 2.314, "1": 2.046}  # the loss before training, as it was called
    line = "Held-out loss of the proxy: 2.31 before, 2.05 after epoch 1"
    assert describe_heldout_loss({"diagnostics": {"heldout_loss": losses}}) == line


def test_what_the_proxy_knows_is_told_against_guessing():
    diagnostics = {"base_loss": 9.6, "chance_loss": 6.93, "unknown_token_share": 0.123}
    line = (
        "The proxy without adapters predicts the responses at 9.60 nats a token, guessing at 6.93; 12.3% of the rows' "
        "tokens are unknown to it"
    )
    assert describe_proxy({"diagnostics": diagnostics}) == line
    assert describe_proxy({"diagnostics": {}}) is None
