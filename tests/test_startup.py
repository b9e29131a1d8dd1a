"""What the command line shows before the large libraries are loaded, which takes seconds."""

import os
import re
import subprocess
import sys

import pytest

from gradfiltering.config.composition import composed
from gradfiltering.config.plain_options import LAUNCHER_VARIABLES, runs_on_one_cpu
from gradfiltering.interruption import STOPPED_MESSAGE
from tests.support.pipeline import ROOT

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


def read_lines_until(process, text):
    """Read the lines of a process up to one that holds a text, and end the process."""
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError("".join(lines[-20:]))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_run_says_where_it_writes_before_it_loads_a_large_library(tmp_path):
    folder = tmp_path / "run"
    process = start(f"run_dir={folder}", f"hydra.run.dir={folder}", f"cache.path={tmp_path / 'cache'}", "logger=none")
    assert not large_imports(read_lines_until(process, str(folder)))


HEAVY_BEFORE_MODELS = LARGE - {"torch", "datasets", "pandas", "pyarrow"} | {"altair", "matplotlib", "accelerate"}


def heavy_imports(lines):
    """Libraries that no stage before the models needs; of SciPy its parts, of PyTorch its compiler."""
    found = [match.group(1) for line in lines if (match := IMPORTED.match(line.rstrip()))]
    parts = {name for name in found if name in ("scipy.stats", "torch._dynamo")}
    return ({name.partition(".")[0] for name in found} & HEAVY_BEFORE_MODELS) - {"scipy"} | parts


def test_parts_of_a_run_are_built_and_checked_without_the_libraries_of_models(tmp_path):
    program = """
from gradfiltering.config.build import build_experiment
from gradfiltering.config.composition import composed
from gradfiltering.experiment import run
from gradfiltering.experiment.checks import check_experiment

with composed(["until=report", "run_dir=FOLDER"]) as cfg:
    check_experiment(build_experiment(cfg))
    print("checked")
""".replace("FOLDER", str(tmp_path))
    checked = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert checked.stdout == "checked\n" and "gradfiltering.experiment.run" in checked.stderr
    assert not heavy_imports(checked.stderr.splitlines())


def test_the_first_stage_begins_without_the_libraries_of_models(tmp_path):
    folder = tmp_path / "run"
    process = start(
        f"run_dir={folder}",
        f"hydra.run.dir={folder}",
        f"cache.path={tmp_path / 'cache'}",
        "trainer=cpu",
        "data.rows=40",
    )
    assert not heavy_imports(read_lines_until(process, "reading the rows"))


@pytest.mark.parametrize(
    ("overrides", "variables", "is_plain"),
    [
        (["trainer=cpu"], {}, True),
        (["trainer=cpu"], {"WORLD_SIZE": "2"}, False),
        (["trainer=cpu"], {"SLURM_NTASKS": "1"}, False),
        (["trainer=cpu", "trainer.devices=2"], {}, False),
        (["trainer=cpu", "+trainer.strategy=ddp"], {}, False),
        (["trainer=cpu", "trainer.precision=bf16-mixed"], {}, False),
        (["trainer=gpu"], {}, False),
        (["trainer=ddp"], {}, False),
    ],
)
def test_lightning_decides_wherever_one_cpu_is_not_plain(overrides, variables, is_plain, monkeypatch, tmp_path):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with composed([*overrides, f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}"]) as cfg:
        assert runs_on_one_cpu(cfg) is is_plain
