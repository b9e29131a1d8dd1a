"""The second half of `make demo`: what it runs, and when it prints the command instead."""

import json
import re

import pytest

from gradfiltering.models.smollm2 import INSTALL_COMMAND
from gradfiltering.synthetic.task_generator import generate_rows
from scripts import demo
from tests.support.pipeline import ROOT, SMALL_MODELS, run_train, summary


@pytest.fixture
def demo_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "has_model", lambda: True)
    return tmp_path


def planned_at(seconds, started, monkeypatch):
    """Stand in for train.py with a plan of so many seconds; whole runs are noted."""

    def run_training(options):
        folders = [option.partition("=")[2] for option in options if option.startswith("hydra.run.dir=")]
        if "plan=true" not in options:
            started.append(options)
        for folder in folders:
            content = json.dumps({"plan": {"seconds": seconds}})
            (demo.Path(folder) / "summary.json").write_text(content, "utf-8")

    monkeypatch.setattr(demo, "run_training", run_training)


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, True), (120.0, True), (120.5, False), (3000.0, False)])
def test_the_plan_decides_whether_the_demo_runs(demo_folder, monkeypatch, capsys, seconds, runs):
    started = []
    planned_at(seconds, started, monkeypatch)
    demo.main()
    printed = capsys.readouterr().out
    expected = [*demo.OPTIONS, "data.path=logs/demo/rows.jsonl"]
    assert started == ([expected] if runs else [])
    assert (f"python train.py {' '.join(expected)}" in printed) is not runs
    assert (f"about {seconds / 60:.0f} minutes" in printed) is not runs


def test_without_the_model_both_commands_are_printed(demo_folder, monkeypatch, capsys):
    monkeypatch.setattr(demo, "has_model", lambda: False)
    monkeypatch.setattr(demo, "run_training", lambda options: pytest.fail("it ran"))
    demo.main()
    printed = capsys.readouterr().out
    assert INSTALL_COMMAND in printed and "python train.py data=file proxy=smollm2 ensemble.m=2" in printed


@pytest.mark.slow
def test_the_demo_selects_a_quarter_and_writes_its_page(demo_folder, monkeypatch):
    changes = [option for option in SMALL_MODELS if option.startswith("proxy.")]
    tiny_options = ["proxy=tiny" if option == "proxy=smollm2" else option for option in demo.OPTIONS]
    monkeypatch.setattr(
        demo, "OPTIONS", [*tiny_options, "target=tiny", *changes, f"cache.path={demo_folder / 'cache'}"]
    )
    monkeypatch.setattr(
        demo,
        "run_training",
        lambda options: run_train(
            *[option.replace("data.path=", f"data.path={demo_folder}/") for option in options],
            *([] if "plan=true" in options else ["logger=none", f"hydra.run.dir={demo_folder / 'run'}"]),
        ),
    )
    demo.main()
    rows = [json.loads(line) for line in (demo_folder / "logs/demo/rows.jsonl").read_text("utf-8").splitlines()]
    assert rows == generate_rows(24, 0, "train")
    found = summary(demo_folder / "run")
    assert found["data"]["examples"] == 24 and found["selection"]["selected"] == 6
    assert found["plan"]["members"] == 2
    assert (demo_folder / "run" / "report.html").is_file()


def test_make_demo_goes_on_to_the_real_model():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe[1].split("\n")[:2] == ["\t$(BIN)/python train.py", "\t$(BIN)/python scripts/demo.py"]
