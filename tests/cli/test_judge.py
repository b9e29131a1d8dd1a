import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from gradfiltering.cli import judge
from gradfiltering.judging.verdicts import write_verdicts
from tests.support.command import run_command

PWS_TOLERANCE = 0.005


@pytest.fixture
def rescore(capsys):
    """Exit status, parsed standard output and standard error of `rescore FILE... --json`."""

    def run(*arguments):
        status = run_command("judge", "rescore", *arguments, "--json")
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


def test_published_reviews(shared_data, review_files):
    command = [sys.executable, "-m", "gradfiltering", "judge", "rescore", *map(str, review_files), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    entries = json.loads(finished.stdout)
    published = json.loads((shared_data / "judge" / "published_counts_gpt4.json").read_text())["gpt4"]
    for name, counts in published.items():
        entry = entries[f"{name}_wrap_reviews_gpt4"]
        assert [entry["wins"], entry["ties"], entry["losses"], entry["unparsed"]] == [*counts, 0]
    pooled = entries["pooled"]
    assert [pooled["wins"], pooled["ties"], pooled["losses"], pooled["unparsed"]] == [507, 225, 298, 0]
    assert (pooled["pws"], pooled["low"], pooled["high"]) == pytest.approx((1.203, 1.150, 1.256), abs=PWS_TOLERANCE)
    assert pooled["contradiction_rate"] == pytest.approx(0.141, abs=0.0005)
    assert pooled["longer_wins_share"] == pytest.approx(0.71, abs=0.005)


def test_own_verdicts_with_two_baselines_are_not_mixed(rescore, tmp_path, make_verdict):
    path = tmp_path / "verdicts.jsonl"
    win, loss = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))
    write_verdicts(
        path,
        [
            make_verdict(*win, against="full"),
            make_verdict(*win, against="full", repeat=1),
            make_verdict(*loss, against="random"),
            make_verdict(None, None, against="random", prompt_id="1"),
        ],
    )
    status, entries, _ = rescore(path)
    assert status == 0
    assert list(entries) == ["verdicts/full", "verdicts/random", "pooled/full", "pooled/random"]
    assert (entries["pooled/full"]["wins"], entries["pooled/full"]["pws"]) == (1, 2.0)
    assert (entries["verdicts/random"]["losses"], entries["verdicts/random"]["unparsed"]) == (1, 1)
    assert entries["pooled/full"]["longer_wins_share"] is None


def test_files_of_equal_stem_keep_their_own_entry(rescore, tmp_path, make_verdict):
    files = [tmp_path / run / "verdicts.jsonl" for run in ("a", "b")]
    for file in files:
        write_verdicts(file, [make_verdict((9.0, 1.0), (1.0, 9.0))])
    _, entries, _ = rescore(*files)
    assert list(entries) == [str(files[0]), str(files[1]), "pooled"]
    assert entries["pooled"]["wins"] == 2


def test_the_interval_follows_seed_and_options(rescore, tmp_path, make_verdict):
    path = tmp_path / "verdicts.jsonl"
    win, loss = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))
    write_verdicts(path, [make_verdict(*(win if n % 3 else loss), prompt_id=str(n)) for n in range(200)])

    def interval(*options):
        entry = rescore(path, *options)[1]["verdicts"]
        return entry["low"], entry["high"]

    assert interval() == interval("--seed", 0)
    assert interval("--resamples", 50, "--seed", 1) != interval("--resamples", 50, "--seed", 2)
    narrow, wide = interval("--confidence", 0.5), interval("--confidence", 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_table_shows_every_file(tmp_path, make_verdict, capsys):
    path = tmp_path / "mine.jsonl"
    write_verdicts(path, [make_verdict((9.0, 1.0), (1.0, 9.0)), make_verdict(None, None, prompt_id="1")])
    assert run_command("judge", "rescore", path) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown and "pooled" in shown and "2.000" in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "no such file"),
        ("absent.jsonl", None, "no such file"),
        ("broken.json", '{"data": [', "not valid JSON"),
        ("broken.jsonl", '{"candidate": ', "line 1, is not valid JSON"),
        ("other.json", '{"rows": []}', "no list of reviews under 'data'"),
        ("other.jsonl", '{"prompt": "Why?"}\n', "line 1: Verdict needs the argument candidate"),
        ("empty.jsonl", "", "holds no verdict"),
        ("binary.json", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_errors_name_the_file_and_exit_1(rescore, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = rescore(path)
    assert (status, out) == (1, None)
    assert err.startswith("error  ") and str(path) in err and message in err
    assert "Traceback" not in err


def test_the_same_file_twice_is_refused(rescore, tmp_path, make_verdict):
    path = tmp_path / "verdicts.jsonl"
    write_verdicts(path, [make_verdict((9.0, 1.0), (1.0, 9.0))])
    status, _, err = rescore(path, path)
    assert status == 1 and "named twice" in err


def test_defaults_are_those_of_a_run(conf_folder):
    common = OmegaConf.load(conf_folder / "shared" / "judging.yaml")
    assert (common.resamples, common.confidence) == (judge.RESAMPLES, judge.CONFIDENCE)


def test_candidates_of_several_runs_are_compared(tmp_path, capsys, make_verdict):
    win, loss = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))
    for name, scores in (("a", win), ("b", loss)):
        write_verdicts(tmp_path / f"{name}.jsonl", [make_verdict(*scores, prompt_id=str(n)) for n in range(30)])
    files = [f"{name}={tmp_path / name}.jsonl" for name in "ab"]
    assert run_command("judge", "compare", *files, "--json", "--resamples", 500) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["one"], found["other"], found["prompts"], found["difference"]) == ("a", "b", 30, 2.0)
    assert run_command("judge", "compare", *files) == 0 and "+2.000" in capsys.readouterr().out
    assert run_command("judge", "compare", files[0]) == 1 and "at least two files" in capsys.readouterr().err
