import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from gradfiltering.synthetic.task_generator import generate_rows, prose

WIDTH = 16  # of the proxy


@pytest.fixture
def replace_subprocesses(monkeypatch) -> Callable[[ModuleType, Callable[[list[str]], str | None]], None]:
    """Let a function run the commands that a script would start; it returns what they print."""

    def replace(script: ModuleType, run_command: Callable[[list[str]], str | None]) -> None:
        def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
            return subprocess.CompletedProcess(command, 0, stdout=run_command(command))

        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))

    return replace


@pytest.fixture(scope="session")
def proxy_folder(tmp_path_factory) -> Path:
    """A small GPT-2 with its tokenizer."""
    folder = tmp_path_factory.mktemp("proxy")
    tokenizer = train_tokenizer(prose(20_000, 0), 300)
    shape = {"architecture": "gpt2", "layers": 2, "heads": 2, "width": WIDTH, "context": 256, "vocabulary": 300}
    new_model(shape, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """Forty rows of the task generator, as Alpaca's file has them."""
    rows = [{name: row[name] for name in ("instruction", "input", "output")} for row in generate_rows(40, 0, "train")]
    file = tmp_path_factory.mktemp("rows") / "alpaca_data.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file
