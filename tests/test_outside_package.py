"""The example of a package that adds to this one: installed, its parts are found by name."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.pipeline import ROOT, SMALL_MODELS, SMALL_RUN, TINY_MODELS

EXAMPLE = ROOT / "examples" / "outside_package"
ROW = '[[rows]]\ninstruction = "Say {number}."\noutput = "{word} it is"\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed."""
    folder, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(EXAMPLE, source)  # building leaves files behind
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, str(source)], check=True)
    return folder


def test_every_part_of_it_is_found_by_name(site, cache, tmp_path):
    rows = tmp_path / "rows.toml"
    rows.write_text("".join(ROW.format(number=number, word="w" * (number + 1)) for number in range(30)))
    run = tmp_path / "run"
    overrides = [
        f"run_dir={run}", f"hydra.run.dir={run}", cache, *TINY_MODELS, *SMALL_MODELS, *SMALL_RUN, "logger=none",
        "until=report", "data=file", f"data.path={rows}", "data.template=interview", "data.heldout.share=0.2",
        "scorer=short_words", "judge=shorter", "selector.fraction=0.1", "judge.resamples=50",
    ]  # fmt: skip
    paths = os.pathsep.join([str(site), str(ROOT / "src")])
    command = [sys.executable, "-m", "gradfiltering", "run", *overrides]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    subset = [json.loads(line) for line in (run / "subset.jsonl").read_text("utf-8").splitlines()]
    assert [len(row["output"]) for row in subset] == sorted(len(row["output"]) for row in subset)
    assert max(len(row["output"]) for row in subset) < 15, "long words were selected"
    verdict = json.loads((run / "verdicts.jsonl").read_text("utf-8").splitlines()[0])
    assert verdict["judge"] == "shorter"
    response = json.loads(next((run / "responses").rglob("*.jsonl")).read_text("utf-8").splitlines()[0])
    assert "Q: Say" in json.dumps(response)
