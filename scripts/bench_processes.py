"""Time of each stage, and its share of communication, with several processes on this machine.

    python scripts/bench_processes.py --processes 1 2 4 -- data.rows=1200 ensemble.m=3

Each number of processes runs once, under torchrun, with a cache of its own. Of each collective the seconds of the
process that came last are those of the exchange itself; the rest of what the others spend in it is waiting. Gradients
are timed through a hook of DDP.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
COMMON = ["logger=none", "report.page=false", "progress=false", "until=select"]
COLLECTIVES = ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier")
STAGES = ("base_model", "proxy")


def main(command_line: Sequence[str] | None = None) -> None:
    """Run each number of processes and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, help="write the measurements there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="options of all runs, after --")
    arguments = parser.parse_args(command_line)
    if arguments.child is not None:
        run_child(arguments.child, arguments.overrides)
        return
    measured = {}
    for process_count in arguments.processes:
        measured[process_count] = measure(process_count, arguments.overrides)
        print(process_count, json.dumps(measured[process_count]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


def measure(process_count: int, overrides: list[str]) -> dict[str, Any]:
    """Run once in so many processes; return the plan for them, and what the proxy stage took."""
    with tempfile.TemporaryDirectory(prefix="bench-processes-") as folder_name:
        folder = Path(folder_name)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(process_count)]
        trainer = ["trainer=cpu"] if process_count == 1 else ["trainer=ddp_cpu", f"trainer.devices={process_count}"]
        command = [sys.executable, *launcher, __file__, "--child", folder_name, "--", *COMMON, *trainer]
        command += [f"cache.path={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}", *overrides]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        ranks = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("rank-*.json"))]
        summary = json.loads((folder / "run" / "summary.json").read_text("utf-8"))
    stages = {}
    for stage_name in STAGES:
        seconds = max(rank["stages"][stage_name] for rank in ranks)
        durations = list(zip(*(rank["collectives"][stage_name] for rank in ranks), strict=True))  # of each, by process
        exchange_seconds = sum(min(by_process) for by_process in durations)
        collective_seconds = sum(sum(by_process) for by_process in durations) / len(ranks)
        stages[stage_name] = {
            "seconds": round(seconds, 2),
            "collectives": len(durations),
            "exchange_share": round(exchange_seconds / seconds, 4),
            "waiting_share": round((collective_seconds - exchange_seconds) / seconds, 4),
        }
    planned = {stage["name"]: stage["seconds"] for stage in summary["plan"]["stages"]}
    return {
        "stages": stages,
        "planned_seconds": planned,
        "fleet": summary["plan"]["fleet"],
        "processor_seconds": round(sum(rank["processor_seconds"] for rank in ranks), 1),
    }


def run_child(folder: Path, overrides: list[str]) -> None:
    """Run one experiment in this process, timing its stages and the collectives within each."""
    import torch
    from lightning.pytorch.strategies import DDPStrategy

    from gradfiltering import run_experiment
    from gradfiltering.distributed.process_group import rank
    from gradfiltering.runs.stages import StageRunner

    stage_seconds: dict[str, float] = defaultdict(float)
    collective_seconds: dict[str, list[float]] = defaultdict(list)
    current_stages = ["other"]
    own_rank = 0

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **keywords: Any) -> Any:
            started_at = time.perf_counter()
            result = collective(*positional, **keywords)
            collective_seconds[current_stages[-1]].append(time.perf_counter() - started_at)
            return result

        return call

    exchange = torch.distributed.all_reduce

    def timed_exchange(state: object, bucket: Any) -> Any:
        """Average one bucket of gradients, as DDP does without a hook."""
        started_at = time.perf_counter()
        gradients = bucket.buffer().div_(torch.distributed.get_world_size())

        def finish(future: Any) -> Any:
            collective_seconds[current_stages[-1]].append(time.perf_counter() - started_at)
            return future.value()[0]

        return exchange(gradients, async_op=True).get_future().then(finish)

    run_stage, init_strategy = StageRunner.run, DDPStrategy.__init__

    def run_timed(runner: Any, stage_name: str, function: Any, *positional: Any, **keywords: Any) -> Any:
        nonlocal own_rank
        own_rank = rank()
        current_stages.append(stage_name)
        started_at = time.perf_counter()
        try:
            return run_stage(runner, stage_name, function, *positional, **keywords)
        finally:
            stage_seconds[current_stages.pop()] += time.perf_counter() - started_at

    def init_with_hook(strategy: Any, *positional: Any, **keywords: Any) -> None:
        init_strategy(strategy, *positional, **{"ddp_comm_hook": timed_exchange, **keywords})

    timed_collectives: dict[str, Any] = {name: timed(getattr(torch.distributed, name)) for name in COLLECTIVES}
    with (
        patch.multiple(torch.distributed, **timed_collectives),
        patch.object(StageRunner, "run", run_timed),
        patch.object(DDPStrategy, "__init__", init_with_hook),
    ):
        run_experiment(overrides)
    content = {
        "stages": stage_seconds,
        "collectives": {name: collective_seconds[name] for name in stage_seconds},
        "processor_seconds": time.process_time(),
    }
    (folder / f"rank-{own_rank}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
