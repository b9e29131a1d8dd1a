"""The verdict of a run and of a sweep's settings: the same words everywhere, and the command that would settle it."""

import html
import io
import json
import re
import shlex

import pytest
from huggingface_hub import DatasetCard, ModelCard
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from gradfiltering.reports.cards import write_cards
from gradfiltering.reports.logger_tables import build_logger_tables
from gradfiltering.reports.page.run_page import write_page
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.screen import print_result
from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.reports.sweep_table import write_sweep
from gradfiltering.reports.verdict import judge_run, judge_settings, read_verdict
from gradfiltering.reports.verdict_lines import Verdict, format_command_time, format_verdict
from tests.reports.folders import add_targets, config_of, write_run
from tests.reports.test_judge_lines import UNUSABLE
from tests.reports.test_seed_tables import seed_job


def change_summary(folder, **parts):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **parts}), "utf-8")


def command_options(verdict):
    """The overrides of a verdict's command, by name, as Hydra reads them."""
    words = shlex.split(verdict["command"])
    multirun = words.index("-m")
    overrides = OverridesParser.create().parse_overrides(words[multirun + 1 :])
    names = [override.get_key_element().lstrip("+") for override in overrides]
    assert len(set(names)) == len(names), "no option is named twice"
    return words[:multirun], dict(zip(names, overrides, strict=True))


@pytest.fixture
def judged_run(tmp_path):
    """A single seed whose candidate wins nine prompts in ten and has the lower held-out loss."""
    seed_job(tmp_path, 0, "gsnr", 7, 0.9, 1.0)
    folder = tmp_path / "0"
    stages = [{"name": name, "seconds": 60.0, "reused": False} for name in ("proxy", "target", "judge")]
    change_summary(
        folder,
        diagnostics={"warnings": [], "failed": []},
        stages=stages,
        cost={stage["name"]: {"seconds": 60.0, "flops": 1, "peak_bytes": 1} for stage in stages},
    )
    return folder


def test_one_seed_is_not_tested_whatever_its_numbers(judged_run):
    verdict = judge_run(judged_run)
    assert verdict["verdict"] == "not tested"
    assert verdict["reasons"] == ["one seed alone; it takes 3 to tell a difference from chance"]
    assert verdict["loss_difference"] == {"value": pytest.approx(-0.7), "low": None, "high": None, "seeds": 1}
    assert verdict["winning_score"]["value"] > 1.6 and verdict["winning_score"]["low"] is None


def test_the_command_adds_seeds_and_its_time_is_theirs(judged_run):
    verdict = judge_run(judged_run)
    assert verdict["command"] == "python train.py -m scorer=gsnr seed=7,8,9 until=report"
    assert (verdict["command_seconds"], format_command_time(verdict)) == (360.0, "about 6 min")
    program, options = command_options(verdict)
    assert program == ["python", "train.py"] and options["seed"].is_sweep_override()


def test_time_that_the_cache_saved_counts_for_other_seeds(judged_run):
    change_summary(judged_run, proxy={"members": 3, "reused_seconds": 30.0})
    assert judge_run(judged_run)["command_seconds"] == 420.0


def test_a_run_that_only_selected_gets_the_command_of_the_whole_test(tmp_path):
    config = config_of(tmp_path, data={"heldout": {"path": None, "rows": 200, "share": 0.0}, "limit": None})
    overrides = [
        "data=file", "data.path='a, b.jsonl'", "scorer=raw_drop", "until=select", "seed=3", "plan=false",
        "judge.against=[full]", f"run_dir={tmp_path}", "hydra.run.dir=here", "+data.columns={prompt: q}",
    ]  # fmt: skip
    write_run(tmp_path / "run", config, overrides)
    verdict = judge_run(tmp_path / "run")
    assert verdict["verdict"] == "not tested" and "no model was trained" in verdict["reasons"][0]
    _, options = command_options(verdict)
    assert {name: override.value() for name, override in options.items() if name != "seed"} == {
        "data": "file", "data.path": "a, b.jsonl", "scorer": "raw_drop", "data.columns": {"prompt": "q"},
        "judge.against": ["full", "random"], "data.heldout.share": 0.1, "until": "report",
    }  # fmt: skip
    assert [*options["seed"].sweep_iterator()] == [0, 1, 2]
    for heldout_rows, adds_share in ((0, True), (9, False)):  # whatever the options ask for
        change_summary(tmp_path / "run", heldout_rows=heldout_rows)
        assert ("data.heldout.share" in command_options(judge_run(tmp_path / "run"))[1]) == adds_share
    assert format_command_time(verdict) == "at least 4 s: training and judging of the models were not timed"


def test_an_installed_program_is_named_where_there_is_no_checkout(judged_run):
    path = judged_run / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "git_commit": None}))
    assert judge_run(judged_run)["command"].startswith("gradfiltering run -m ")


@pytest.mark.parametrize(
    ("changes", "reason", "has_command"),
    [
        ({"judge_agreement": UNUSABLE}, "the judge's verdicts are unusable; take another judge", False),
        ({"target": {"candidate": {"heldout_loss": 1.0}}, "pws": {}}, "no model was trained on random rows", True),
        (
            {"target": {"candidate": {"heldout_loss": None}, "random": {"heldout_loss": None}}},
            "no held-out loss was measured, as no row is held out", True,
        ),
        ({"selection": None}, None, True),
    ],
)  # fmt: skip
def test_what_is_missing_for_a_test_is_named(judged_run, changes, reason, has_command):
    change_summary(judged_run, **changes)
    verdict = judge_run(judged_run)
    assert verdict["verdict"] == "not tested"
    assert reason is None or any(text.startswith(reason) for text in verdict["reasons"])
    assert (verdict["command"] is not None) == has_command


def test_a_forbidding_diagnostic_forbids_a_single_run(judged_run):
    failed = [{"name": "heldout_loss_fell", "warning": "it did not fall", "forbids_use": True}]
    change_summary(judged_run, diagnostics={"warnings": ["it did not fall"], "failed": failed})
    verdict = judge_run(judged_run)
    assert verdict["verdict"] == "do not use it" and verdict["command"] is None
    assert verdict["reasons"] == [
        "the ensemble learned nothing that holds beyond its rows, so that its gradients say nothing "
        "(heldout_loss_fell failed)"
    ]


def test_runs_of_old_versions_have_a_verdict_too(judged_run):
    assert read_verdict(RunFiles(judged_run)) == judge_run(judged_run)
    change_summary(judged_run, diagnostics={"warnings": ["w"], "proxy_knows_rows": False})
    assert read_verdict(RunFiles(judged_run))["verdict"] == "do not use it"
    change_summary(judged_run, verdict={"verdict": "use it"})
    assert read_verdict(RunFiles(judged_run)) == {"verdict": "use it"}


def shown_words(folder):
    """The verdict's sentence as each output shows it, by output."""
    stream = io.StringIO()
    print_result(RunFiles(folder).summary, folder, Console(file=stream, width=1000))
    write_page(folder, 5, figures=False)
    write_cards(folder)
    page = html.unescape((folder / "report.html").read_text("utf-8"))
    verdict_line = re.search(r'id="verdict"><strong class="([^"]*)">(.*?)\.</strong>', page)
    table = build_logger_tables(RunFiles(folder))["run/verdict"]
    words = {
        "screen": stream.getvalue().splitlines()[1],
        "page": re.sub("<[^>]+>", "", verdict_line[2]),
        "card": re.search(r"## Verdict\n\n\*\*(.*?)\.\*\*", DatasetCard.load(folder / "README.md").text)[1],
        "table": f"{table['verdict'][0].capitalize()}: {table['why'][0]}",
        "python": str(Verdict.from_json(RunFiles(folder).summary["verdict"])),
    }
    return words, verdict_line[1], page, stream.getvalue()


def test_all_outputs_say_the_same_and_none_is_green(judged_run):
    verdict = judge_run(judged_run)
    change_summary(judged_run, verdict=verdict)
    words, color, page, screen = shown_words(judged_run)
    assert set(words.values()) == {format_verdict(verdict)}
    assert color == "" and verdict["command"] in page and verdict["command"] in screen
    assert 'class="good">better' not in page and "better" not in screen


def test_the_card_of_the_candidate_has_the_verdict(tmp_path):
    folder = write_run(tmp_path / "run")
    add_targets(folder)
    write_cards(folder)
    sentence = format_verdict(judge_run(folder))
    assert f"**{sentence}.**" in ModelCard.load(folder / "target/candidate/adapter/README.md").text
    assert sentence not in (folder / "target/full/adapter/README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """G-SNR wins over three seeds, the raw drop loses over three, the inverse variance has two."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in range(3):
        seed_job(folder, seed, "gsnr", seed, 0.9, 1.5 + 0.01 * seed)
        seed_job(folder, 3 + seed, "raw_drop", seed, 0.1, 2.0 + 0.01 * seed)
    for seed in range(2):
        seed_job(folder, 6 + seed, "inverse_variance", seed, 0.9, 1.2)
    return folder


def test_a_sweep_has_a_verdict_on_each_setting(sweep):
    stream = io.StringIO()
    write_sweep(sweep, Console(file=stream, width=300))
    verdicts = {verdict["setting"]: verdict for verdict in json.loads((sweep / "verdicts.json").read_text())}
    assert {setting: verdict["verdict"] for setting, verdict in verdicts.items()} == {
        "gsnr": "use it", "raw_drop": "do not use it", "inverse_variance": "not tested"
    }  # fmt: skip
    # Held-out loss 1.51 against 1.7; three seeds 0.01 apart reach 0.0248 to both sides.
    assert verdicts["gsnr"]["reasons"][0] == "held-out loss minus that of random rows -0.190 [-0.215, -0.165]"
    assert verdicts["gsnr"]["settings"] == 2 and verdicts["gsnr"]["command"] is None
    assert "seed=0,1,2 until=report" in verdicts["inverse_variance"]["command"]
    page = html.unescape((sweep / "sweep.html").read_text("utf-8"))
    for setting, verdict in verdicts.items():
        color = {"use it": "good", "do not use it": "bad"}.get(verdict["verdict"], "")
        assert f'{setting}: <strong class="{color}">{format_verdict(verdict)}.</strong>' in page
        assert "; ".join(verdict["reasons"]) in stream.getvalue()
    assert verdicts["inverse_variance"]["command"] in page
    assert (sweep / "tables" / "verdicts.csv").read_text().startswith("setting,verdict,seeds,why,time to settle it")


@pytest.mark.parametrize(
    ("loss", "token_loss", "answers"),
    [
        (1.5, 1.9, "better on short answers and worse on long ones"),
        (1.9, 1.5, "better on long answers and worse on short ones"),
    ],
)
def test_a_loss_that_goes_with_the_length_of_answers_does_not_count(tmp_path, loss, token_loss, answers):
    # Random rows have 1.7 in both means.
    for seed in range(3):
        seed_job(tmp_path, seed, "gsnr", seed, 0.95, loss + 0.01 * seed)
        folder = tmp_path / str(seed)
        target = json.loads((folder / "summary.json").read_text("utf-8"))["target"]
        for name, result in target.items():
            result["heldout_token_loss"] = token_loss + 0.01 * seed if name == "candidate" else result["heldout_loss"]
        change_summary(folder, target=target)
    (verdict,) = judge_settings(read_jobs(tmp_path), set()).values()
    assert verdict["verdict"] == "no difference shown" and verdict["command"] is None
    assert f"the loss is {answers}, so it does not count" in verdict["reasons"]
    assert verdict["reasons"][1].startswith("the same by tokens ")
    assert verdict["token_loss_difference"]["value"] == pytest.approx(token_loss + 0.01 - 1.7)


def test_a_mean_over_tokens_that_some_seeds_lack_is_not_asked(tmp_path):
    for seed in range(4):
        seed_job(tmp_path, seed, "gsnr", seed, 0.95, 1.5 + 0.01 * seed)
        target = json.loads((tmp_path / str(seed) / "summary.json").read_text("utf-8"))["target"]
        for name, result in target.items() if seed else ():
            result["heldout_token_loss"] = 2.0 + 0.01 * seed if name == "candidate" else 1.7
        change_summary(tmp_path / str(seed), target=target)
    (verdict,) = judge_settings(read_jobs(tmp_path), set()).values()
    assert verdict["verdict"] == "use it" and verdict["token_loss_difference"] is None


def test_a_sweep_of_one_setting_prints_its_verdict_and_command(tmp_path):
    for seed in range(2):
        seed_job(tmp_path, seed, "gsnr", seed, 0.9, 1.5)
    stream = io.StringIO()
    write_sweep(tmp_path, Console(file=stream, width=300))
    text = stream.getvalue()
    assert "Not tested: 2 seeds alone; it takes 3 to tell a difference from chance" in text
    assert "python train.py -m scorer=gsnr seed=0,1,2 until=report" in text


def test_of_several_settings_an_advantage_must_be_left_by_holm(tmp_path):
    # Losses 0.063 apart around an advantage of 0.2: t = 5.4987, p = 0.0315 by two degrees of freedom; twice that is
    # above 5 %.
    for seed in range(3):
        seed_job(tmp_path, seed, "gsnr", seed, 0.95, 1.5 + 0.063 * (seed - 1))
    (alone,) = judge_settings(read_jobs(tmp_path), set()).values()
    assert alone["verdict"] == "use it"
    for seed in range(3):
        seed_job(tmp_path, 3 + seed, "raw_drop", seed, 0.5, 1.7 + 0.1 * (seed - 1))
    beside = judge_settings(read_jobs(tmp_path), set())
    assert [verdict["verdict"] for verdict in beside.values()] == ["no difference shown"] * 2
    assert "Holm's correction over 2 settings does not leave it" in beside["gsnr"]["reasons"]
    assert beside["gsnr"]["command"] is None and "seed=0,1,2,3" in beside["raw_drop"]["command"]


def test_one_failed_seed_of_three_keeps_a_setting_from_use(tmp_path):
    for seed in range(3):
        seed_job(tmp_path, seed, "gsnr", seed, 0.95, 1.5 + 0.01 * seed)
    failed = [{"name": "easiness", "warning": "w", "forbids_use": False}]
    change_summary(tmp_path / "1", diagnostics={"warnings": ["w"], "failed": failed})
    (verdict,) = judge_settings(read_jobs(tmp_path), set()).values()
    assert verdict["verdict"] == "no difference shown" and verdict["command"] is None
    assert verdict["reasons"][-1] == "diagnostics failed: easiness (1 of 3 seeds)"
