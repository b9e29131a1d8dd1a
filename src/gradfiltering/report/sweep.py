"""One table of all jobs of a sweep: what was asked for, what came out, what it cost."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from gradfiltering.errors import UserError
from gradfiltering.proxy.devices import is_first
from gradfiltering.store import atomic_path, write_json

PWS_COLUMNS = {"": "value", "_low": "low", "_high": "high"}
SHOWN = (
    "job", "asked_for", "selected", "pws", "heldout_loss", "jaccard", "rank_correlation", "warnings", "seconds",
    "saved",
)  # fmt: skip


class SweepTable(Callback):
    """Hydra's hook: at the end of a multirun, writes and prints the table of its folder."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Writes `sweep.csv` and `sweep.json` beside the jobs, if any of them got as far as a summary."""
        folder = Path(config.hydra.sweep.dir)
        if is_first() and any(folder.glob("*/summary.json")):
            write_sweep(folder, Console())


def write_sweep(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Reads the jobs of a sweep's folder, writes its tables and prints them.

    Returns:
        One row a job.

    Raises:
        UserError: the folder holds no run.
    """
    rows = sweep_rows(folder)
    write_json(folder / "sweep.json", rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(folder / "sweep.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*SHOWN, title=f"Sweep {folder}", title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in SHOWN))
    console.print(table)
    from gradfiltering.report.verdicts import compare_jobs

    compare_jobs(folder, [folder / row["job"] for row in rows], console)
    return rows


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """One row a job, in the order of the jobs."""
    jobs = sorted((path.parent for path in folder.glob("*/summary.json")), key=_order)
    if not jobs:
        raise UserError(f"{folder} holds no run with a summary.json; give the folder of a sweep (hydra.sweep.dir)")
    subsets, scores = [_subset(job) for job in jobs], [_scores(job) for job in jobs]
    rows = []
    for number, job in enumerate(jobs):
        row = _row(job)
        row["jaccard"] = _mean(_jaccard(subsets[number], other) for other in _others(subsets, number))
        row["rank_correlation"] = _mean(_spearman(scores[number], other) for other in _others(scores, number))
        rows.append(row)
    return rows


def _row(job: Path) -> dict[str, Any]:
    summary = json.loads((job / "summary.json").read_text("utf-8"))
    about = json.loads((job / "environment.json").read_text("utf-8"))
    row: dict[str, Any] = {"job": job.name, "asked_for": " ".join(about.get("overrides", []))}
    selection = summary.get("selection", {})
    row.update({name: selection.get(name) for name in ("scorer", "selector", "selected")})
    found = _scores(job)
    if found:
        values = sorted(found.values())
        row.update(score_min=values[0], score_median=values[len(values) // 2], score_max=values[-1])
    for name, value in summary["diagnostics"].items():
        if isinstance(value, int | float):
            row[name] = value
    truth = summary["diagnostics"].get("truth", {})
    if truth.get("auc"):
        row.update({f"auc_{name}": truth["auc"]["scorer"][name] for name in ("value", "low", "high")})
    if "clean" in truth.get("share", {}):
        row["clean_selected"] = truth["share"]["clean"]["selected"]
    row["warnings"] = len(summary["diagnostics"].get("warnings", []))
    row["heldout_loss"] = summary.get("target", {}).get("candidate", {}).get("heldout_loss")
    for against, sets in summary.get("pws", {}).items():
        pooled = sets["all"]
        row.update({f"pws_{against}{end}": pooled[name] for end, name in PWS_COLUMNS.items()})
    row["seconds"] = round(sum(stage["seconds"] for stage in summary["stages"]), 1)
    reused = [one["seconds"] for one in summary.get("target", {}).values() if one.get("reused")]
    row["saved"] = round(summary.get("proxy", {}).get("reused_seconds", 0.0) + sum(reused), 1)
    return row


def _cell(row: dict[str, Any], name: str) -> str:
    if name == "pws":
        opponents = [key.removeprefix("pws_") for key in row if key.startswith("pws_") and f"{key}_low" in row]
        return "\n".join(
            f"{against} {row[f'pws_{against}']:.2f} [{row[f'pws_{against}_low']:.2f}, {row[f'pws_{against}_high']:.2f}]"
            for against in opponents
            if row[f"pws_{against}"] is not None
        )
    value = row.get(name)
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and name not in ("seconds", "saved") else str(value)


def _order(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (1 << 31, job.name)


def _others(every: Sequence[Any], number: int) -> list[Any]:
    return [one for at, one in enumerate(every) if at != number]


def _subset(job: Path) -> set[int]:
    import pyarrow.parquet as pq

    path = job / "subset.parquet"
    return set(pq.read_table(path, columns=["example_id"])["example_id"].to_pylist()) if path.is_file() else set()


def _scores(job: Path) -> dict[int, float]:
    import pyarrow.parquet as pq

    path = job / "scores.parquet"
    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=["example_id", "score"])
    return dict(zip(table["example_id"].to_pylist(), table["score"].to_pylist(), strict=True))


def _jaccard(one: set[int], other: set[int]) -> float | None:
    return len(one & other) / len(one | other) if one and other else None


def _spearman(one: dict[int, float], other: dict[int, float]) -> float | None:
    from scipy.stats import spearmanr

    both = sorted(one.keys() & other.keys())
    if len(both) < 2:
        return None
    values = [[scores[key] for key in both] for scores in (one, other)]
    if any(min(some) == max(some) for some in values):
        return None  # constant scores have no ranking
    return float(spearmanr(*values)[0])


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
