"""Hold plans against what followed: operations, time and memory of whole runs on three sizes of models.

    export PYTHONPATH=.  # for the counter among the tests
    python scripts/check_plan.py --json plan_check.json
    python scripts/check_plan.py --sizes tiny,small

Each size runs twice with caches of its own: once as a user runs it, for time and memory, and once under PyTorch's
counter of operations. Ratios are planned over actual; 1 is exact.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
COMMON = ["logger=none", "report.page=false", "progress=false", "eval.limit=8", "target.tuning.epochs=1"]
# The target is the proxy's model, so that no stage that is planned trains one from scratch.
SAME_MODEL = [
    "target.base_model.architecture=gpt2", "target.base_model.context=128",
    "proxy.base_model.pretraining.steps=5", "target.base_model.pretraining.steps=5",
]  # fmt: skip
SIZES = {
    "tiny": ["data.rows=400", "data.heldout_rows=20", "ensemble.m=3", *SAME_MODEL],
    "small": [
        "data.rows=200", "data.heldout_rows=10", "ensemble.m=2", *SAME_MODEL,
        *(f"{model}.base_model.{option}" for model in ("proxy", "target") for option in (
            "layers=6", "width=384", "heads=6", "vocabulary=4096",
        )),
    ],
    "smollm2": [
        "proxy=smollm2", "target=smollm2", "data.rows=24", "data.heldout_rows=2", "ensemble.m=2", "eval.limit=2",
        "ensemble.batch_size=8", "target.max_new_tokens=8", "judge.against=[random]", "target.tuning.records=2",
    ],
}  # fmt: skip


def run_size(size: str, folder: Path, counts_operations: bool, options: list[str]) -> dict[str, Any]:
    """Run one size in a process of its own and return its summary."""
    run_folder = folder / ("counted" if counts_operations else "timed")
    overrides = [*COMMON, *SIZES[size], f"cache.path={run_folder / 'cache'}", f"hydra.run.dir={run_folder / 'run'}"]
    command = [sys.executable, __file__, "--child", *(["--count"] if counts_operations else [])]
    subprocess.run([*command, "--", *overrides, *options], check=True, cwd=ROOT)
    summary: dict[str, Any] = json.loads((run_folder / "run" / "summary.json").read_text("utf-8"))
    return summary


def run_child(overrides: list[str], counts_operations: bool) -> None:
    """Run one experiment in this process; with the counter, each stage's operations replace its own estimate."""
    from gradfiltering import run_experiment
    from gradfiltering.runs.stages import StageRunner
    from tests.support.operation_counter import OperationCounter

    run_stage = StageRunner.run

    def run_counted(runner: Any, stage_name: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
        counter = OperationCounter()
        with counter:
            result = run_stage(runner, stage_name, function, *arguments, **keywords)
        runner.summary["cost"][stage_name]["counted"] = counter.operations
        return result

    with patch.object(StageRunner, "run", run_counted if counts_operations else run_stage):
        run_experiment(overrides)


def compare(timed: dict[str, Any], counted: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return planned, actual and ratio of each stage's operations, seconds and peak memory."""
    stages = {}
    for stage in timed["plan"]["stages"]:
        name = stage["name"]
        actual = {
            "operations": counted["cost"][name]["counted"],
            "seconds": timed["cost"][name]["seconds"],
            "peak_bytes": timed["cost"][name]["peak_bytes"],
        }
        row: dict[str, float | None] = {}
        for quantity, value in actual.items():
            planned = stage[quantity]
            row |= {f"planned_{quantity}": planned, f"actual_{quantity}": value}
            row[f"{quantity}_ratio"] = round(planned / value, 4) if value and planned is not None else None
        stages[name] = row
    return stages


def main(command_line: Sequence[str] | None = None) -> None:
    """Compare plans with runs and print a line a stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated names of sizes")
    parser.add_argument("--json", type=Path, help="write the comparison there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further options of all runs, after --")
    arguments = parser.parse_args(command_line)
    if arguments.child:
        run_child(arguments.overrides, arguments.count)
        return
    comparison = {}
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory(prefix="check-plan-") as folder_name:
            folder = Path(folder_name)
            timed = run_size(size, folder, counts_operations=False, options=arguments.overrides)
            counted = run_size(size, folder, counts_operations=True, options=arguments.overrides)
        comparison[size] = {
            "device": timed["plan"]["device"],
            "calibration_seconds": timed["plan"]["calibration_seconds"],
            "stages": compare(timed, counted),
        }
        for stage_name, row in comparison[size]["stages"].items():
            ratios = {name: row[f"{name}_ratio"] for name in ("operations", "seconds", "peak_bytes")}
            print(size, stage_name, ratios, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(comparison, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
