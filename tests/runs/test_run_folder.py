import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from gradfiltering.errors import UserError
from gradfiltering.masking import mask_secrets
from gradfiltering.requests import EpochLog
from gradfiltering.runs.run_folder import OUTPUTS, RunFolder
from tests.support.gradient_logs import write_epoch

CONFIG = {
    "seed": 0, "run_dir": "logs/x", "scorer": {"epsilon": 1e-8, "name": "„gsnr“"}, "list": [1, None, {"a": 2.5}],
    "logger": {"settings": {"api_key": "sk-very-secret"}},
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def run_folder(tmp_path):
    run_folder = RunFolder(tmp_path / "run")
    run_folder.begin(CONFIG, 3, CPU, ["ensemble.m=3", "judge.api_key=abc=1"])
    run_folder.write_summary({"stages": []})
    return run_folder


def test_config_reloads_to_what_was_run_without_secrets(run_folder):
    expected = {**CONFIG, "logger": {"settings": {"api_key": "***"}}}
    assert run_folder.read_config() == expected
    assert OmegaConf.to_container(OmegaConf.load(run_folder.path / "config.yaml")) == expected


@pytest.mark.parametrize(
    "key", ["api_key", "apikey", "OPENAI_API_KEY", "token", "hf_token", "password", "client_secret", "Secret"]
)
@pytest.mark.parametrize("value", ["x", 12345, ["x"], {"value": "x"}])
def test_secrets_are_masked_at_every_depth(key, value):
    masked = mask_secrets({"a": [{"b": {key: value}}], key: value})
    hidden = {"value": "***"} if isinstance(value, dict) else ["***"] if isinstance(value, list) else "***"
    assert masked == {"a": [{"b": {key: hidden}}], key: hidden}


@pytest.mark.parametrize(
    "key",
    [
        "max_tokens",
        "key_variable",
        "token_limit_name",
        "tokens",
        "tokenizer",
        "micro_batch_tokens",
        "keys",
        "max_new_tokens",
    ],
)
def test_names_that_are_no_secret_stay(key):
    assert mask_secrets({key: 512, "x": {key: "gpt2"}}) == {key: 512, "x": {key: "gpt2"}}


def test_unset_secrets_stay_unset_and_the_input_is_left_alone():
    config = {"api_key": None, "deep": [{"token": "x"}]}
    assert mask_secrets(config)["api_key"] is None
    assert config == {"api_key": None, "deep": [{"token": "x"}]}


def test_environment_keeps_overrides_without_secrets(run_folder):
    environment = run_folder.read_environment()
    assert environment["overrides"] == ["ensemble.m=3", "judge.api_key=***"] and environment["seed"] == 3


def test_earlier_outputs_are_removed_and_nothing_else(run_folder):
    (run_folder.path / "notes.txt").write_text("mine")
    for name in OUTPUTS:
        path = run_folder.path / name
        if "." in name:
            path.write_text("old")
        else:
            (path / "member=00").mkdir(parents=True)
            (path / "member=00" / "old.parquet").write_text("old")
    RunFolder(run_folder.path).begin({"seed": 1}, 1, CPU)
    assert {path.name for path in run_folder.path.iterdir()} == {"config.yaml", "environment.json", "notes.txt"}
    assert yaml.safe_load((run_folder.path / "config.yaml").read_text()) == {"seed": 1}


def test_links_into_the_cache_are_removed_and_their_targets_stay(run_folder, tmp_path):
    target = tmp_path / "cache" / "part-0.parquet"
    target.parent.mkdir()
    target.write_text("precious")
    member_folder = run_folder.path / "gradient_log" / "member=00"
    member_folder.mkdir(parents=True)
    (member_folder / "part-0.parquet").symlink_to(target)
    run_folder.begin(CONFIG, 0, CPU)
    assert not (run_folder.path / "gradient_log").exists() and target.read_text() == "precious"


@pytest.mark.parametrize("name", ["target", "subset.jsonl"])
def test_files_that_no_run_made_are_never_removed(name, tmp_path):
    """`run_dir=.` in a folder with a `target/` of its own must not delete it."""
    foreign = tmp_path / name
    if "." in name:
        foreign.write_text("mine")
    else:
        foreign.mkdir()
        (foreign / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"{tmp_path} holds {name}.*give another folder"):
        RunFolder(tmp_path).begin(CONFIG, 0, CPU)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_tables_read_back_as_they_were_written(run_folder):
    ids = np.array([0, 2], dtype=np.int64)
    run_folder.write_scores({"example_id": ids, "score": np.array([0.5, np.nan]), "rank": ids})
    run_folder.write_unscored([(3, "empty"), (1, "no response")])
    run_folder.write_hygiene({"refusal": np.array([True, False]), "repetition": np.array([False, False])})
    run_folder.write_truth(["clean", "noise"])
    run_folder.write_subset(ids, np.array([0.5, np.nan]))
    run_folder.write_selection({"gain": np.array([2.0, 1.0])})
    opened = RunFolder(run_folder.path)
    pd.testing.assert_frame_equal(
        opened.read_scores(), pd.DataFrame({"example_id": ids, "score": [0.5, np.nan], "rank": ids})
    )
    assert opened.read_unscored().to_dict("list") == {"example_id": [1, 3], "reason": ["no response", "empty"]}
    signs = {"example_id": [0, 1], "refusal": [True, False], "repetition": [False, False]}
    assert opened.read_hygiene().to_dict("list") == signs
    assert opened.read_truth()["kind"].tolist() == ["clean", "noise"]
    assert opened.read_subset()["example_id"].tolist() == [0, 2]
    assert opened.read_selection()["gain"].tolist() == [2.0, 1.0]


def test_files_that_a_run_did_not_reach_read_as_none(run_folder):
    opened = RunFolder(run_folder.path)
    tables = (opened.read_scores, opened.read_truth, opened.read_subset, opened.read_selection, opened.read_rows,
              opened.read_hygiene)  # fmt: skip
    assert [read() for read in tables] == [None] * len(tables)
    assert opened.read_trajectory() is None and opened.read_gradient_log() is None
    assert opened.read_curves() == {} and len(opened.read_unscored()) == 0


def test_no_unscored_rows_leave_a_typed_table(run_folder):
    run_folder.write_unscored([])
    assert run_folder.read_unscored().dtypes["example_id"] == np.int64


def test_gradient_log_reads_back_member_by_member(run_folder):
    ids = np.array([1, 4], dtype=np.int64)
    log = EpochLog(ids, np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((2, 2)), np.array([5, 6], dtype=np.int32))
    write_epoch(run_folder.path / "gradient_log", log, [0, 1], 2)
    found = run_folder.read_gradient_log()
    assert found.members == [0, 1] and found.epochs == [2]
    np.testing.assert_array_equal(found.epoch(2).grad_norm, log.grad_norm)
    assert run_folder.read_gradient_log(heldout=True) is None


def test_curves_come_with_the_candidate_first(run_folder):
    for model in ("a_full", "candidate"):
        curve = run_folder.target_folder(model) / "curve.csv"
        curve.parent.mkdir(parents=True)
        curve.write_text("step,examples_seen,tokens_seen,seconds,train_loss\n0,0,0,0.1,\n3,9,90,0.2,1.5\n")
    curves = run_folder.read_curves()
    assert list(curves) == ["candidate", "a_full"]
    assert np.isnan(curves["candidate"]["heldout_loss"]).all() and curves["candidate"]["train_loss"][1] == 1.5


def test_summary_is_valid_json(run_folder):
    run_folder.write_summary({"loss": float("nan")})
    assert json.loads((run_folder.path / "summary.json").read_text("utf-8")) == {"loss": None}
