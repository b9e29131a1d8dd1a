"""Plans held against runs: ratios are planned over actual, and every planned stage has its own."""

import json
from pathlib import Path

import pytest

from scripts import check_plan
from tests.support.pipeline import TINY_RUN


def summaries(seconds, counted):
    plan = {"stages": [{"name": "proxy", "operations": 200.0, "seconds": 3.0, "peak_bytes": None}]}
    return (
        {"plan": plan, "cost": {"proxy": {"seconds": seconds, "peak_bytes": 10}}},
        {"cost": {"proxy": {"counted": counted}}},
    )


def test_ratios_are_planned_over_actual():
    row = check_plan.compare(*summaries(seconds=6.0, counted=100.0))["proxy"]
    assert (row["planned_operations"], row["actual_operations"], row["operations_ratio"]) == (200.0, 100.0, 2.0)
    assert row["seconds_ratio"] == 0.5 and row["peak_bytes_ratio"] is None
    assert check_plan.compare(*summaries(seconds=6.0, counted=0))["proxy"]["operations_ratio"] is None


@pytest.mark.slow
def test_a_size_is_run_twice_and_compared(replace_subprocesses, tmp_path, monkeypatch, capsys):
    replace_subprocesses(check_plan, lambda command: check_plan.main(command[2:]))
    monkeypatch.setitem(check_plan.SIZES, "tiny", TINY_RUN)
    json_file = tmp_path / "plan_check.json"
    check_plan.main(["--sizes", "tiny", "--json", str(json_file), "--", "until=score"])
    comparison = json.loads(Path(json_file).read_text())
    assert list(comparison) == ["tiny"] and comparison["tiny"]["device"]
    stages = comparison["tiny"]["stages"]
    assert list(stages) == ["base_model_passes", "proxy"]
    assert stages["proxy"]["operations_ratio"] == pytest.approx(1, abs=0.2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny ")]
    assert [line.split()[1] for line in lines] == list(stages)
