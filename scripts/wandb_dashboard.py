"""Makes the W&B workspace of a project: the same panels for everyone in a team, by one command.

    pip install 'gradfiltering[dashboard]' && wandb login
    python scripts/wandb_dashboard.py --entity TEAM --project gradfiltering
    python scripts/wandb_dashboard.py --entity TEAM --dry-run        # prints what would be sent, sends nothing

Panels are named by the metrics that `logger=wandb` logs; runs of a sweep are one group.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

NAME = "gradfiltering: what was selected and why"
STEP = "trainer/global_step"
MODELS = ("candidate", "random", "full")
TABLES = ("selection/top_rows", "selection/bottom_rows", "judge/verdicts", "run/warnings")
# Charts of the run's page that are logged as pictures.
FIGURES = (
    "pws", "norms", "variance", "score", "drop_by_length", "kept_by_length", "trajectories", "collapse", "heldout",
    "stability",
)  # fmt: skip


def build_workspace(entity: str, project: str) -> ws.Workspace:
    """Build the workspace, not yet sent anywhere."""
    sections = [
        ws.Section("Is the subset as good as the rest?", _verdicts(), is_open=True, pinned=True),
        ws.Section("Can the score be trusted?", _diagnostics(), is_open=True),
        ws.Section("How fast did the models learn?", _learning(), is_open=True),
        ws.Section("What was selected?", _selected(), is_open=True),
        ws.Section("Across a sweep", _sweep()),
        ws.Section("What did it cost?", _costs()),
    ]
    grouped = ws.RunsetSettings(
        groupby=[ws.Metric("Group")],
        order=[ws.Ordering(ws.Metric("CreatedTimestamp"), ascending=False)],
    )
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=grouped)


def _verdicts() -> list[Any]:
    return [
        wr.BarPlot("PWS against full data (1 = on a par)", ["pws/full/all/value"], range_x=(0, 2)),
        wr.BarPlot("PWS against a random subset", ["pws/random/all/value"], range_x=(0, 2)),
        wr.BarPlot("Held-out loss of the candidate, nats", ["target/candidate/heldout_loss"]),
        wr.BarPlot("Wins, ties, losses against full data", [f"pws/full/all/{n}" for n in ("wins", "ties", "losses")]),
    ]


def _diagnostics() -> list[Any]:
    return [
        wr.BarPlot("Share of rows whose norm fell", ["diagnostics/positive_drop_share"], range_x=(0, 1)),
        wr.BarPlot("Members' agreement", ["diagnostics/member_agreement"]),
        wr.BarPlot("Spearman of score and length", ["diagnostics/score_spearman/response_tokens"], range_x=(-1, 1)),
        wr.BarPlot("Ease: loss of the subset over the pool's", ["diagnostics/easiness"]),
        wr.BarPlot("AUC of clean over planted rows", ["diagnostics/truth/auc/scorer/value"], range_x=(0, 1)),
        wr.MediaBrowser("Scores", media_keys=["score/histogram"]),
    ]


def _learning() -> list[Any]:
    return [
        wr.LinePlot("Proxy: loss, nats", x=STEP, y=["proxy/loss"]),
        wr.LinePlot("Proxy: gradient norm", x=STEP, y=["proxy/grad_norm"]),
        wr.LinePlot("Targets: training loss, nats", x=STEP, y=[f"target/{name}/train_loss" for name in MODELS]),
        wr.LinePlot("Targets: held-out loss, nats", x=STEP, y=[f"target/{name}/heldout_loss" for name in MODELS]),
    ]


def _selected() -> list[Any]:
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    keys = [f"figures/{name}" for name in FIGURES]
    return [*tables, wr.MediaBrowser("Figures of the run's page", num_columns=3, media_keys=keys)]


def _sweep() -> list[Any]:
    option_columns = [wr.Config(name) for name in ("ensemble.m", "epochs.early", "epochs.late", "selector.fraction")]
    result_columns = [wr.SummaryMetric(name) for name in ("diagnostics/easiness", "pws/full/all/value")]
    columns = [wr.ParallelCoordinatesPlotColumn(column) for column in option_columns]
    columns += [wr.ParallelCoordinatesPlotColumn(column) for column in result_columns]
    return [
        wr.ParallelCoordinatesPlot(columns, title="Options and what came of them"),
        wr.ParameterImportancePlot(with_respect_to="pws/full/all/value"),
        wr.ScatterPlot(
            "Easy subsets and PWS",
            x=wr.SummaryMetric("diagnostics/easiness"),
            y=wr.SummaryMetric("pws/full/all/value"),
        ),
        wr.RunComparer(diff_only=True),
    ]


def _costs() -> list[Any]:
    stages = ("base_model", "base_model_passes", "proxy", "heldout_member", "score", "select", "target", "judge")
    return [
        wr.BarPlot("Seconds of each stage", [f"cost/{name}/seconds" for name in stages]),
        wr.BarPlot("Peak memory of each stage, bytes", [f"cost/{name}/peak_bytes" for name in stages]),
        wr.LinePlot("Processor, %", x="_runtime", y=["system/cpu"]),
        wr.LinePlot("Memory of the process, MB", x="_runtime", y=["system/proc.memory.rssMB"]),
    ]


def read_specification(workspace: ws.Workspace) -> dict[str, Any]:
    """Read the specification that W&B would be sent."""
    specification: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return specification


def main(command_line: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="user or team of W&B")
    parser.add_argument("--project", default="gradfiltering", help="as in logger.wandb.project")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    arguments = parser.parse_args(command_line)
    workspace = build_workspace(arguments.entity, arguments.project)
    if arguments.dry_run:
        print(json.dumps(read_specification(workspace), indent=2))
        return
    workspace.save()
    print(workspace.url)


if __name__ == "__main__":
    main()
