"""Running train.py inside the test process, on models small enough for seconds."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import lightning as L

ROOT = Path(__file__).parents[2]

TINY_MODELS = ["proxy=tiny", "target=tiny"]  # for a user's rows, whose default is a real model
SMALL_MODELS = [
    "proxy.base_model.layers=1", "proxy.base_model.width=32", "proxy.base_model.heads=2",
    "proxy.base_model.characters=60000", "proxy.base_model.pretraining.steps=20",
    "target.base_model.layers=1", "target.base_model.width=32", "target.base_model.heads=2",
    "target.base_model.characters=60000", "target.base_model.pretraining.steps=20",
]  # fmt: skip
SMALL_RUN = [
    "target.tuning.epochs=1", "target.max_new_tokens=8", "diagnostics.bootstrap=50", "progress=false",
    "report.page=false",
]  # fmt: skip
# A whole run in three seconds of one core, where a test needs many of them and their quality does not matter.
TINY_RUN = [
    *SMALL_MODELS, *SMALL_RUN, "proxy.base_model.pretraining.steps=3", "target.base_model.pretraining.steps=3",
    "proxy.base_model.characters=20000", "target.base_model.characters=20000", "data.rows=24", "data.heldout_rows=4",
    "eval.limit=3", "ensemble.m=2", "ensemble.batch_size=8", "selector.fraction=0.25", "target.tuning.batch_size=8",
    "target.tuning.records=2", "judge.resamples=200", "logger=none",
]  # fmt: skip
SMALL_TASKS = ["data.rows=80", "data.heldout_rows=10", "eval.limit=6"]


def run_train(*overrides: str) -> None:
    """`python train.py overrides` in this process; SystemExit passes through."""
    before, sys.argv = sys.argv, [str(ROOT / "train.py"), *overrides]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        sys.argv = before


def summary(folder: Path) -> dict[str, Any]:
    """`summary.json` of a run folder."""
    return json.loads((folder / "summary.json").read_text("utf-8"))


def tiny_gpt2(folder: Path, vocabulary: int = 300) -> Path:
    """A GPT-2 folder as a user has one, but small: the loading code is the real one."""
    from gradfiltering.synthetic.pretraining import new_model, train_tokenizer

    tokenizer = train_tokenizer(["Say it is. 0 1 2 3 4 5 6 7 8 9"], vocabulary)
    shape = {"architecture": "gpt2", "layers": 1, "heads": 2, "width": 16, "context": 128, "vocabulary": vocabulary}
    new_model(shape, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet_trainer(**options: Any) -> L.Trainer:
    """One CPU and nothing on the screen."""
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, **options,
    )  # fmt: skip
