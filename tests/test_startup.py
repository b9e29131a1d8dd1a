"""What the command line shows before the large libraries are loaded, which takes seconds."""

import os
import re
import subprocess
import sys

import pytest
from tests.support.pipeline import ROOT

from gradfiltering.interruption import STOPPED_MESSAGE

LARGE = {
    "torch", "lightning", "transformers", "peft", "datasets", "torchmetrics", "wandb", "pandas", "scipy", "sklearn",
    "pyarrow", "sacrebleu",
}  # fmt: skip
IMPORTED = re.compile(r"import time: .*\| +([\w.]+)$")


def start(*arguments):
    """`python train.py arguments`; what it imports, when that is done, goes to the same pipe as what it prints."""
    return subprocess.Popen(
        [sys.executable, "-u", "-X", "importtime", "train.py", *arguments], cwd=ROOT, env={**os.environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def large_imports(lines):
    found = [match.group(1) for line in lines if (match := IMPORTED.match(line.rstrip()))]
    assert "hydra" in found, "the imports were not seen"
    return {name.partition(".")[0] for name in found} & LARGE


@pytest.mark.parametrize("arguments", [["run", "seed=1"], ["cache", "list"]], ids=["run", "cache"])
def test_ctrl_c_while_the_command_is_imported_is_one_sentence(arguments, tmp_path):
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}
    ended = subprocess.run(
        [sys.executable, "-m", "gradfiltering", *arguments], env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{STOPPED_MESSAGE}\n")


def test_help_loads_no_large_library():
    output, _ = start("--help").communicate(timeout=60)
    assert "python train.py" in output
    assert not large_imports(output.splitlines())


def test_a_run_says_where_it_writes_before_it_loads_a_large_library(tmp_path):
    folder = tmp_path / "run"
    process = start(f"run_dir={folder}", f"hydra.run.dir={folder}", f"cache.path={tmp_path / 'cache'}", "logger=none")
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if str(folder) in line:
                break
        else:
            raise AssertionError("".join(lines[-20:]))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert not large_imports(lines)
