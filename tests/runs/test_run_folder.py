import json

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from gradfiltering.errors import UserError
from gradfiltering.methods.diagnostics import Diagnostics
from gradfiltering.runs.run_folder import OUTPUTS, Run, environment, git_commit, peak_bytes, reset_peak, without_secrets

CONFIG = {
    "seed": 0, "run_dir": "logs/x", "scorer": {"epsilon": 1e-8, "name": "„gsnr“"}, "list": [1, None, {"a": 2.5}],
    "logger": {"settings": {"api_key": "sk-very-secret"}},
}  # fmt: skip
CPU = torch.device("cpu")
BYTES = 64 * 2**20


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run", CPU)
    run.start(CONFIG, seed=3)
    return run


def read(run):
    return json.loads((run.folder / "summary.json").read_text("utf-8"))


def test_config_reloads_to_what_was_run_without_secrets(run):
    expected = {**CONFIG, "logger": {"settings": {"api_key": "***"}}}
    assert yaml.safe_load((run.folder / "config.yaml").read_text("utf-8")) == expected
    assert OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml")) == expected
    assert run.config == expected, "the logger gets run.config"


@pytest.mark.parametrize(
    "key", ["api_key", "apikey", "OPENAI_API_KEY", "token", "hf_token", "password", "client_secret", "Secret"]
)
@pytest.mark.parametrize("value", ["x", 12345, ["x"], {"value": "x"}])
def test_secrets_are_masked_wherever_they_stand(key, value):
    masked = without_secrets({"a": [{"b": {key: value}}], key: value})
    assert masked == {"a": [{"b": {key: "***"}}], key: "***"}


@pytest.mark.parametrize("key", ["max_tokens", "tokens", "tokenizer", "micro_batch_tokens", "keys", "max_new_tokens"])
def test_what_is_no_secret_stays(key):
    assert without_secrets({key: 512, "x": {key: "gpt2"}}) == {key: 512, "x": {key: "gpt2"}}


def test_unset_secrets_stay_unset_and_the_input_is_left_alone():
    config = {"api_key": None, "deep": [{"token": "x"}]}
    assert without_secrets(config)["api_key"] is None
    assert config == {"api_key": None, "deep": [{"token": "x"}]}


def test_environment_names_versions_commit_seed_and_device(run):
    found = json.loads((run.folder / "environment.json").read_text("utf-8"))
    assert found == {**environment(3, CPU), "overrides": []} and found["seed"] == 3
    assert {"torch", "transformers", "datasets"} <= set(found["packages"])
    assert found["git_commit"] == git_commit() and found["device"] and found["python"].startswith("3.")


def test_what_was_asked_for_is_kept_without_secrets(tmp_path):
    Run(tmp_path, CPU).start(CONFIG, 0, ["ensemble.m=3", "judge.api_key=abc=1"])
    found = json.loads((tmp_path / "environment.json").read_text("utf-8"))
    assert found["overrides"] == ["ensemble.m=3", "judge.api_key=***"]


def test_summary_is_there_after_every_step(run):
    with run.stage("backbone") as cost:
        cost.update(reused=True)
    assert read(run)["stages"][0]["reused"] is True
    run.add(data={"examples": 5, "unscored": 1})
    assert read(run)["data"] == {"examples": 5, "unscored": 1}
    with run.stage("proxy") as cost:
        cost.update(flops=12)
    run.diagnose(Diagnostics({"easiness": 0.5}, ["too easy"]))
    run.warn(["mind"])
    found = read(run)
    assert [stage["name"] for stage in found["stages"]] == ["backbone", "proxy"]
    assert set(found["cost"]["proxy"]) == {"seconds", "flops", "peak_bytes"} and found["cost"]["proxy"]["flops"] == 12
    assert found["cost"]["backbone"]["flops"] is None and found["cost"]["proxy"]["peak_bytes"] > 0
    assert found["diagnostics"] == {"warnings": ["too easy", "mind"], "easiness": 0.5}


def test_a_failing_stage_keeps_what_was_known(run):
    run.add(data={"examples": 5})
    with pytest.raises(RuntimeError), run.stage("proxy"):
        raise RuntimeError("boom")
    assert read(run)["data"] == {"examples": 5} and read(run)["stages"] == []


def test_stage_measures_its_seconds(run, monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("gradfiltering.runs.run_folder.time.monotonic", lambda: next(clock))
    with run.stage("score"):
        pass
    assert read(run)["stages"] == [{"name": "score", "seconds": 2.5, "reused": False}]


def test_numbers_that_are_not_finite_become_null(run):
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (-np.inf, np.float64("nan"))}, "e": 0.5}
    run.add(metrics=values)
    text = (run.folder / "summary.json").read_text("utf-8")
    assert "NaN" not in text and "Infinity" not in text
    assert read(run)["metrics"] == {"a": None, "b": [1.0, None], "c": {"d": [None, None]}, "e": 0.5}


def test_an_earlier_runs_outputs_are_removed_and_nothing_else(run):
    kept = run.folder / "notes.txt"
    kept.write_text("mine")
    for name in OUTPUTS:
        path = run.folder / name
        if "." in name:
            path.write_text("old")
        else:
            (path / "member=00").mkdir(parents=True)
            (path / "member=00" / "old.parquet").write_text("old")
    Run(run.folder, CPU).start({"seed": 1}, seed=1)
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"config.yaml", "environment.json", "summary.json", "notes.txt"}
    assert json.loads((run.folder / "summary.json").read_text())["stages"] == []
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == {"seed": 1}


def test_links_into_the_store_are_removed_and_their_targets_kept(run, tmp_path):
    target = tmp_path / "cache" / "part-0.parquet"
    target.parent.mkdir()
    target.write_text("precious")
    leaf = run.folder / "gradient_log" / "member=00"
    leaf.mkdir(parents=True)
    (leaf / "part-0.parquet").symlink_to(target)
    Run(run.folder, CPU).start(CONFIG, seed=0)
    assert not (run.folder / "gradient_log").exists() and target.read_text() == "precious"


@pytest.mark.parametrize("name", ["target", "subset.jsonl"])
def test_files_that_are_no_runs_are_never_removed(name, tmp_path):
    """`run_dir=.` in a folder with a `target/` of its own must not delete it."""
    foreign = tmp_path / name
    if "." in name:
        foreign.write_text("mine")
    else:
        foreign.mkdir()
        (foreign / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"run_dir={tmp_path} holds {name}.*give another folder"):
        Run(tmp_path, CPU).start(CONFIG, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_peak_memory_sees_a_large_buffer():
    reset_peak(CPU)
    before = peak_bytes(CPU)
    buffer = np.ones(BYTES, dtype=np.uint8)
    assert peak_bytes(CPU) - before >= BYTES // 2, "a 64 MiB buffer did not show in the peak"
    del buffer


def test_a_cpu_run_on_a_machine_with_a_gpu_reports_the_cpu(run, monkeypatch):
    """The device is the trainer's; what else the machine has was not used."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def asked(*_):
        raise AssertionError("CUDA was asked about a run on the CPU")

    for name in ("max_memory_allocated", "reset_peak_memory_stats", "get_device_name"):
        monkeypatch.setattr(f"torch.cuda.{name}", asked)
    assert environment(0, CPU)["device"] == "cpu"
    with run.stage("proxy"):
        pass
    assert read(run)["cost"]["proxy"]["peak_bytes"] > 0


def test_a_gpu_run_reports_that_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 1000 + device.index)
    run = Run(tmp_path, torch.device("cuda", 1))
    run.start(CONFIG, seed=0)
    with run.stage("proxy"):
        pass
    assert json.loads((tmp_path / "environment.json").read_text("utf-8"))["device"] == "GPU number 1"
    assert read(run)["cost"]["proxy"]["peak_bytes"] == 1001
