"""The dashboard as code: it is built without a server, and names what the runs log."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest

from gradfiltering.evidence.measurers import BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE

pytest.importorskip("wandb_workspaces")
wandb_dashboard = pytest.importorskip("scripts.wandb_dashboard")

STAGE_NAMES = {
    "data", "judge_check", "base_model", BASE_MODEL_STAGE, ENSEMBLE_STAGE, TASK_GRADIENT_STAGE, "heldout_member",
    "score", "select", "target", "judge", "report",
}  # fmt: skip


@pytest.fixture(scope="module")
def sent():
    with redirect_stdout(StringIO()) as printed:
        wandb_dashboard.main(["--entity", "team", "--project", "mine", "--dry-run"])
    return json.loads(printed.getvalue())


def panels(sent):
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_a_dry_run_prints_the_whole_specification(sent):
    assert (sent["entity"], sent["project"]) == ("team", "mine")
    assert len(panels(sent)) == 6 and all(panels(sent).values())
    assert sent["spec"]["section"]["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]


def test_panels_name_metrics_tables_and_figures_that_runs_log(sent):
    text = json.dumps(sent)
    metrics = {name for some in panels(sent).values() for one in some for name in one["config"].get("metrics", [])}
    stages = {"pws", "target", "diagnostics", "proxy", "cost", "system"}
    assert len(metrics) > 25 and {name.split("/")[0] for name in metrics} == stages
    costs = {name.split("/")[1] for name in metrics if name.startswith("cost/")}
    assert costs <= STAGE_NAMES, "a panel names a stage that no run has"
    for table in ("selection/top_rows", "selection/bottom_rows", "judge/verdicts", "run/warnings", "figures/norms"):
        assert table in text
