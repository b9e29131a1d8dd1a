"""The second half of `make demo`: rows of a file are selected with SmolLM2-135M, where that takes two minutes at most.

    python scripts/demo.py

The file has 24 generated rows. The run's own plan decides: where it says more than two minutes, or the model's package
is not installed, the command is printed instead of run.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from gradfiltering.models.smollm2 import INSTALL_COMMAND, SmolLM2
from gradfiltering.synthetic.task_generator import generate_rows

ROOT = Path(__file__).parents[1]
ROW_COUNT = 24
LONGEST_SECONDS = 120.0
# An extra member for the held-out loss would take a third of the time once more.
OPTIONS = ["data=file", "proxy=smollm2", "ensemble.m=2", "selector.fraction=0.25", "heldout_member.train=false"]


def main() -> None:
    """Write the rows, plan the run, and start it or say why not."""
    options = [*OPTIONS, f"data.path={write_rows(ROOT / 'logs' / 'demo' / 'rows.jsonl')}"]
    command = f"python train.py {shlex.join(options)}"
    if not has_model():
        print(f"A real model would be next, but SmolLM2 is not installed. Install it and select rows with it:\n"
              f"  {INSTALL_COMMAND}\n  {command}")  # fmt: skip
        return
    print(f"Next, a real model: SmolLM2-135M selects from {ROW_COUNT} rows of a file. First the plan.", flush=True)
    seconds = plan_seconds(options)
    if seconds > LONGEST_SECONDS:
        print(f"On this machine that takes about {seconds / 60:.0f} minutes, more than this demo may. To run it:\n  "
              f"{command}")  # fmt: skip
        return
    run_training(options)


def has_model() -> bool:
    """Return True where SmolLM2's package is installed."""
    return SmolLM2().packaged_file is not None


def write_rows(file: Path) -> str:
    """Write the rows as a user's file has them, and return its path within the checkout where it lies there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in generate_rows(ROW_COUNT, seed=0, split="train")]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def plan_seconds(options: list[str]) -> float:
    """Return the seconds that the plan of a run gives it."""
    with tempfile.TemporaryDirectory(prefix="demo-plan-") as folder:
        run_training([*options, "plan=true", "logger=none", f"hydra.run.dir={folder}"])
        summary = json.loads((Path(folder) / "summary.json").read_text("utf-8"))
    return float(summary["plan"]["seconds"])


def run_training(options: list[str]) -> None:
    """Run `train.py` in a process of its own."""
    subprocess.run([sys.executable, "train.py", *options], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
