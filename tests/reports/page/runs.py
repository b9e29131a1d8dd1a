"""Run folders made by hand, in the files that a run leaves."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.json_rows import JsonRows
from gradfiltering.data.row_texts import write_row_texts
from gradfiltering.data.schemas import Instruction
from gradfiltering.requests import EpochLog
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.scorers.gradient_statistics import gradient_statistics
from gradfiltering.scorers.gsnr import GSNR
from tests.support.gradient_logs import write_epoch

ALPACA = Instruction("alpaca", "instruction", "input", "output")
LIMITS = {
    "positive_drop_share": 0.5, "median_relative_drop": 0.0, "relative_variance": 0.005, "update_ratio": 0.5,
    "negative_selected_share": 0.0, "length_correlation": 0.7, "member_agreement": 0.1, "source_spread": 0.5,
    "easiness": 0.5,
}  # fmt: skip
PWS = {"value": 1.2, "low": 1.05, "high": 1.3, "wins": 60, "ties": 10, "losses": 30, "unparsed": 2, "detectable": 0.1}
WARNING = "the subset is narrow: one source in two is left (limit 50%); raise selector.fraction"


def records(rows: list[dict]) -> InstructionDataset:
    held = JsonRows.from_list(rows)
    return InstructionDataset(held, None, ALPACA, None, frozenset(), "plain", "rows of a test", JSON_LINES)


def typed_records(rows: list[dict]) -> InstructionDataset:
    return InstructionDataset(Dataset.from_list(rows), None, ALPACA, None, frozenset(), "plain", "a table", JSON_LINES)


def plain_rows(count: int) -> list[dict]:
    return [
        {"instruction": f"Name number {n}.", "input": "", "output": f"It is {n}.", "source": "ab"[n % 2]}
        for n in range(count)
    ]


def write_bare(folder: Path, rows: list[dict]) -> Path:
    """A run that chose nothing: what each one leaves, and the rows' text."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "seed": 3, "epochs": {"early": 1, "late": 2}, "diagnostics": LIMITS, "report": {"rows": 5000},
        "scorer": {"_target_": "gradfiltering.scorers.gsnr.GSNR", "epsilon": 1e-8, "ddof": 0},
        "selector": {"_target_": "gradfiltering.selectors.top.TopSelector", "fraction": 0.25},
        "judge": {"confidence": 0.95, "judge": {"_target_": "gradfiltering.judging.reference.ReferenceJudge"}},
        "data": {"_target_": "gradfiltering.data.sources.FileSource", "schema": "auto", "columns": {
            "_target_": "gradfiltering.data.dataset.Columns", "instruction": "instruction", "input": "input",
            "output": "output",
        }},
        "proxy": {"model": "gpt2"},
    }  # fmt: skip
    about = {
        "packages": {"torch": "2.0"}, "python": "3.11", "git_commit": "0" * 40 + "-dirty", "seed": 3, "device": "cpu",
        "cpus": 2, "platform": "Linux", "overrides": ["data=file", "data.path=a b.jsonl"],
    }  # fmt: skip
    summary = {
        "stages": [{"name": "backbone", "seconds": 1.5, "reused": True}],
        "cost": {"backbone": {"seconds": 1.5, "flops": None, "peak_bytes": 2**20}},
        "diagnostics": {"warnings": []}, "data": {"examples": len(rows), "unscored": 0},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps(about))
    (folder / "summary.json").write_text(json.dumps(summary))
    if rows:
        write_row_texts(folder, records(rows), Cache(folder.parent / "cache"))
    return folder


def add_summary(folder: Path, **parts) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def write_log(folder: Path, count: int, members: int = 3, name: str = "gradient_log") -> None:
    """Norms that fall from epoch 1 to 2, by another share in each row."""
    rng = np.random.default_rng(0)
    first = rng.lognormal(1, 0.3, (members, count))
    tokens = rng.integers(1, 60, count).astype(np.int32)
    for epoch, norm in ((1, first), (2, first * rng.uniform(0.4, 1.1, count) * rng.lognormal(0, 0.05, first.shape))):
        write_epoch(folder / name, EpochLog(np.arange(count), norm, norm / 2, tokens), range(members), epoch)


def write_chosen(folder: Path, rows: list[dict], chosen: list[int], score: np.ndarray | None) -> None:
    if score is not None:
        ids = np.arange(len(score))
        rank = np.empty(len(score), dtype=np.int64)
        rank[np.lexsort((ids, -score))] = ids + 1
        RunFolder(folder).write_scores({"example_id": ids, "score": score, "rank": rank})
    ids = np.array(sorted(chosen))
    values = np.full(len(ids), np.nan) if score is None else score[ids]
    pq.write_table(pa.table({"example_id": ids, "score": values}), folder / "subset.parquet")
    (folder / "subset.jsonl").write_text("".join(json.dumps(rows[row]) + "\n" for row in ids))
    add_summary(folder, selection={
        "scorer": "gsnr" if score is not None else None, "selector": "top", "fraction": len(ids) / len(rows),
        "selected": len(ids),
    })  # fmt: skip


def write_curve(folder: Path, model: str, points: list[tuple]) -> None:
    path = folder / "target" / model / "curve.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "examples_seen", "tokens_seen", "seconds", "train_loss", "heldout_loss"])
        writer.writerows(points)


def write_whole(folder: Path, rows: list[dict]) -> Path:
    """A run with everything: ensemble, scores, subset, targets, verdicts."""
    from gradfiltering.runs.gradient_log import GradientLogReader

    count = len(rows)
    write_bare(folder, rows)
    write_log(folder, count)
    write_log(folder, 30, name="gradient_log_heldout")
    log = GradientLogReader(folder / "gradient_log")
    score = GSNR(1e-8, 0).formula(gradient_statistics(log.epoch(1).grad_norm, log.epoch(2).grad_norm, 0))
    write_chosen(folder, rows, np.argsort(-score, kind="stable")[: count // 4].tolist(), score)
    rng = np.random.default_rng(1)
    steps = [{"member": m, "step": s, "sketch": rng.normal(m, 1, 64).tolist()} for m in range(3) for s in (0, 5, 9)]
    pq.write_table(pa.Table.from_pylist(steps), folder / "trajectory.parquet")
    write_curve(folder, "random", [(0, 0, 0, 0.1, "", 4.0), (2, 20, 200, 1.0, 3.5, 2.0)])
    write_curve(folder, "candidate", [(0, 0, 0, 0.1, "", 4.0), (2, 20, 200, 1.0, 3.0, 1.0)])
    kinds = ["clean" if n % 4 else "gibberish" for n in range(count)]
    pq.write_table(pa.table({"example_id": range(count), "kind": kinds}), folder / "truth.parquet")
    share = {"pool": 0.75, "selected": 0.9, "low": 0.8, "high": 1.0}
    found = {
        "warnings": [WARNING], "positive_drop_share": 0.9, "relative_variance": {"1": 0.01, "2": 0.002},
        "update_ratio": {"1": 0.1, "2": 0.2}, "score_spearman": {"response_tokens": -0.8},
        "truth": {"share": {"clean": share}, "auc": {"scorer": {"value": 0.7, "low": 0.6, "high": 0.8}}},
        "sources": {"share": {s: {"pool": 0.5, "selected": p} for s, p in (("a", 0.1), ("b", 0.9))}, "effective": 0.6},
    }  # fmt: skip
    done = {"steps": 2, "examples": 20, "seconds": 1.0, "heldout_loss": 1.0, "final_loss": 1.0, "reused": True}
    add_summary(
        folder, diagnostics=found, pws={"random": {"all": PWS, "tasks": PWS}}, judge={"random": {}},
        target={"candidate": done, "random": {**done, "reused": False}},
        metrics={"candidate": {"tasks": {"references": 5, "exact_match": 0.5, "chrf": 0.4}}},
    )  # fmt: skip
    return folder
