"""Whole runs small enough for seconds, of one process and of several, and what must be the same of both."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from tests.support.pipeline import SMALL_MODELS, SMALL_RUN, run_train

ADAPTER_RTOL = 1e-8  # float64
LOG_RTOL = 2e-7  # the log on disk is float32
BATCH = 8

SMALL = [
    *SMALL_MODELS, *SMALL_RUN, "data.heldout_rows=5", "eval.limit=5", "ensemble.m=2", f"ensemble.batch_size={BATCH}",
    "precision=fp64", "generation.batch_size=2", "logger=csv",
]  # fmt: skip


def at(run_folder: Path, cache: Path) -> list[str]:
    return [f"cache.path={cache}", f"run_dir={run_folder}", f"hydra.run.dir={run_folder}"]


def one_process(run_folder: Path, cache: Path, *overrides: str) -> Path:
    run_train(*SMALL, "trainer=cpu", *overrides, *at(run_folder, cache))
    return run_folder


def assert_same_log(first_run: Path, second_run: Path, rows: int) -> None:
    for name in ("gradient_log", "gradient_log_heldout"):
        first_log, second_log = (pq.read_table(folder / name).to_pandas() for folder in (first_run, second_run))
        keys = ["member", "epoch", "example_id"]
        assert len(second_log) == len(second_log[keys].drop_duplicates()), f"{name}: an example was logged twice"
        assert first_log[keys].equals(second_log[keys])
        np.testing.assert_allclose(second_log.grad_norm, first_log.grad_norm, rtol=LOG_RTOL)
        np.testing.assert_allclose(second_log.loss, first_log.loss, rtol=LOG_RTOL)
    assert len(pq.read_table(second_run / "gradient_log")) == 2 * 2 * rows


def assert_same_adapters(first_run: Path, second_run: Path) -> None:
    adapter_files = sorted(first_run.glob("adapters/**/*.safetensors"))
    assert len(adapter_files) == 4
    for file in adapter_files:
        first_adapter, second_adapter = load_file(file), load_file(second_run / file.relative_to(first_run))
        for name, value in first_adapter.items():
            assert value.dtype == np.float64
            atol = ADAPTER_RTOL * np.abs(value).max()
            np.testing.assert_allclose(second_adapter[name], value, rtol=ADAPTER_RTOL, atol=atol)


def assert_same_choice(first_run: Path, second_run: Path) -> None:
    scores = [pq.read_table(folder / "scores.parquet") for folder in (first_run, second_run)]
    assert scores[0]["rank"].equals(scores[1]["rank"])
    assert (first_run / "subset.jsonl").read_bytes() == (second_run / "subset.jsonl").read_bytes()


def assert_same_run(first_run: Path, second_run: Path, rows: int) -> None:
    """Two run folders have the same files, gradient logs, adapters and selection."""
    assert_same_log(first_run, second_run, rows)
    assert_same_adapters(first_run, second_run)
    assert_same_choice(first_run, second_run)
    assert files_of(first_run) == files_of(second_run)


def files_of(run_folder: Path) -> set[str]:
    return {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
