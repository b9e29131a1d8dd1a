import json

import numpy as np
import pytest
import torch

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.runs.progress import run_display
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.runs.stages import StageRunner

CPU = torch.device("cpu")


@pytest.fixture
def stages(tmp_path):
    return StageRunner(RunFolder(tmp_path), CPU)


def read_summary(stages):
    return json.loads((stages.run_folder.path / "summary.json").read_text("utf-8"))


class Result:
    reused, flops = True, 12


def test_summary_is_there_after_every_step(stages):
    assert isinstance(stages.run("proxy", Result), Result)
    stages.add_to_summary(data={"examples": 5})
    stages.add_diagnostics({"easiness": 0.5}, [FailedDiagnostic("easiness", "too easy")])
    stages.add_warnings(["mind"])
    summary = read_summary(stages)
    assert [(stage["name"], stage["reused"]) for stage in summary["stages"]] == [("proxy", True)]
    assert set(summary["cost"]["proxy"]) == {"seconds", "flops", "peak_bytes"}
    assert summary["cost"]["proxy"]["flops"] == 12 and summary["cost"]["proxy"]["peak_bytes"] > 0
    assert summary["data"] == {"examples": 5}
    failed = [{"name": "easiness", "warning": "too easy", "forbids_use": False}]
    assert summary["diagnostics"] == {"warnings": ["too easy", "mind"], "failed": failed, "easiness": 0.5}


def test_stage_passes_arguments_and_result_on(stages, capsys):
    with run_display():
        assert stages.run("score", divmod, 7, 2) == (3, 1)
    assert capsys.readouterr().out == "scoring the rows\n"
    assert read_summary(stages)["cost"]["score"]["flops"] is None
    assert read_summary(stages)["stages"][0]["reused"] is False


def test_failing_stage_keeps_what_was_known(stages):
    stages.add_to_summary(data={"examples": 5})
    with pytest.raises(ZeroDivisionError):
        stages.run("proxy", divmod, 1, 0)
    assert read_summary(stages)["data"] == {"examples": 5} and read_summary(stages)["stages"] == []


def test_stage_measures_its_seconds(stages, monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("gradfiltering.runs.stages.time.monotonic", lambda: next(clock))
    stages.run("score", dict)
    assert read_summary(stages)["stages"] == [{"name": "score", "seconds": 2.5, "reused": False}]


def test_numbers_that_are_not_finite_become_null(stages):
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (-np.inf, np.float64("nan"))}, "e": 0.5}
    stages.add_to_summary(metrics=values)
    text = (stages.run_folder.path / "summary.json").read_text("utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert read_summary(stages)["metrics"] == {"a": None, "b": [1.0, None], "c": {"d": [None, None]}, "e": 0.5}


def test_cpu_run_on_a_machine_with_a_gpu_measures_the_cpu(stages, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def refuse(*_):
        raise AssertionError("CUDA was asked about a run on the CPU")

    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", refuse)
    stages.run("proxy", dict)
    assert read_summary(stages)["cost"]["proxy"]["peak_bytes"] > 0


def test_gpu_run_measures_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 1000 + device.index)
    stages = StageRunner(RunFolder(tmp_path), torch.device("cuda", 1))
    stages.run("proxy", dict)
    assert read_summary(stages)["cost"]["proxy"]["peak_bytes"] == 1001
