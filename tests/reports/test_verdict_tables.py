"""How far verdicts can be trusted, and candidates of a sweep held against each other."""

import io
import json
from copy import deepcopy

import pytest
import yaml
from rich.console import Console

from gradfiltering.judging.responses import Response, write_responses
from gradfiltering.judging.verdicts import Verdict, decide_verdict, write_verdicts
from gradfiltering.reports.sweep_jobs import SweepJob
from gradfiltering.reports.verdict_tables import build_trust_table, compare_jobs
from tests.reports.test_screen import JUDGE

WIN, LOSS = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))


def shown(table):
    stream = io.StringIO()
    Console(file=stream, width=160).print(table)
    return " ".join(stream.getvalue().split())


def test_several_baselines_share_the_level_of_the_sign_test():
    pws, judge = deepcopy(JUDGE["pws"]), deepcopy(JUDGE["judge"])
    pws["random"], judge["random"] = deepcopy(pws["full"]), deepcopy(judge["full"])
    pws["full"]["all"]["sign_p"], pws["random"]["all"]["sign_p"] = 0.03, 0.02
    assert "p = 0.03 (Holm 0.04) │ p = 0.02 (Holm 0.04)" in shown(build_trust_table(pws, judge))
    pws["full"]["all"]["sign_p"] = None
    assert "– │ p = 0.02 │" in shown(build_trust_table(pws, judge))


def test_missing_values_are_dashes_and_missing_repeats_left_out():
    pws, judge = deepcopy(JUDGE["pws"]), deepcopy(JUDGE["judge"])
    pws["full"]["all"] = {**pws["full"]["none"], "sign_p": None, "detectable": None}
    empty = dict.fromkeys(judge["full"], None)
    judge["full"] = {**empty, "judged": 0, "decided": 0, "agreement": {"raters": [], "judges": [], "not_found": []}}
    text = shown(build_trust_table(pws, judge))
    assert "repeats" not in text and "agreement" not in text and "9 of 9" in text and text.count("│ – │") >= 7


def job(folder, name, outcomes, baseline="the same", against="full"):
    """A run folder of a sweep, judged."""
    path = folder / name
    path.mkdir()
    verdicts = [
        Verdict("candidate", against, "test", 0, "s", str(n), "", scores[0], "", scores[1], decide_verdict(*scores))
        for n, scores in enumerate(outcomes)
    ]
    write_verdicts(path / "verdicts.jsonl", verdicts)
    for model, text in (("candidate", name), (against, baseline)):
        said = [Response("s", str(n), "p", text, 1, 1, "eos", False) for n in range(len(outcomes))]
        write_responses(path / "responses" / f"{model}.jsonl", said)
    (path / "summary.json").write_text("{}")
    (path / "environment.json").write_text("{}")
    (path / "config.yaml").write_text(yaml.safe_dump({"judge": {"resamples": 400, "confidence": 0.95}, "seed": 0}))
    return SweepJob(path)


def test_candidates_are_compared_where_the_baseline_is_the_same(tmp_path):
    jobs = [
        job(tmp_path, "0", [WIN] * 30), job(tmp_path, "1", [LOSS] * 30), job(tmp_path, "2", [WIN, LOSS] * 15),
        job(tmp_path, "3", [LOSS] * 30, baseline="another"), job(tmp_path, "4", [WIN] * 30, against="random"),
    ]  # fmt: skip
    stream = io.StringIO()
    compare_jobs(tmp_path, jobs, Console(file=stream, width=160))
    ((name, found),) = json.loads((tmp_path / "comparisons.json").read_text()).items()
    assert name == "full (0, 1, 2)" and [(one["one"], one["other"]) for one in found] == [
        ("0", "1"), ("0", "2"), ("1", "2"),
    ]  # fmt: skip
    assert [one["difference"] for one in found] == [2.0, 1.0, -1.0] and all(one["p_holm"] >= one["p"] for one in found)
    text = " ".join(stream.getvalue().split())
    assert "Candidates against full (0, 1, 2)" in text and "0 – 1 │ 30 │ +2.000" in text


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_jobs_there_is_nothing_to_compare(tmp_path, count):
    jobs = [job(tmp_path, str(n), [WIN] * 3) for n in range(count)]
    compare_jobs(tmp_path, jobs, Console(quiet=True))
    assert not (tmp_path / "comparisons.json").exists()
