"""The whole path: every contract file, the stages somebody needs and no others, and the same result twice."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.sweep_jobs import SweepJob
from gradfiltering.scorers.from_file import NOT_LISTED
from tests.support.documentation import read_commands
from tests.support.pipeline import ROOT, SMALL_MODELS, SMALL_RUN, SMALL_TASKS, TINY_MODELS, run_train, summary

SMALL = [*SMALL_MODELS, *SMALL_RUN, *SMALL_TASKS]
FILES = [
    "config.yaml", "environment.json", "trajectory.parquet", "scores.parquet", "unscored.parquet", "subset.jsonl",
    "subset.parquet", "rows.parquet", "verdicts.jsonl", "summary.json", "truth.parquet", "hygiene.parquet",
    *(f"gradient_log/member={m:02d}/epoch={e:02d}/part-0.parquet" for m in range(2) for e in (1, 2)),
    *(f"gradient_log_heldout/member={m:02d}/epoch={e:02d}/part-0.parquet" for m in range(2) for e in (1, 2)),
    *(f"adapters/member={m:02d}/epoch={e:02d}/adapter_model.safetensors" for m in range(2) for e in (1, 2)),
    *(f"target/{model}/adapter/adapter_config.json" for model in ("candidate", "full", "random")),
    *(f"target/{model}/curve.csv" for model in ("candidate", "full", "random")),
    *(f"responses/{model}.jsonl" for model in ("candidate", "full", "random")),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("own_cache")
    run_train(*SMALL, f"cache.path={cache}", "ensemble.m=2", f"run_dir={folder}", f"hydra.run.dir={folder}")
    return folder


def test_every_contract_file_is_there(whole):
    assert [name for name in FILES if not (whole / name).is_file()] == []
    assert list(whole.glob("wandb/offline-run-*")), "the default logger writes an offline W&B run"
    assert not list(whole.rglob("*.part")), "a half-written file was left behind"


def test_summary_holds_the_contract(whole):
    found = summary(whole)
    assert found["data"]["examples"] == 80 and found["selection"]["selected"] == 8
    assert found["selection"] | {"fraction": 0} == {"scorer": "gsnr", "selector": "top", "fraction": 0, "selected": 8}
    assert found["proxy"]["members"] == 2 and found["proxy"]["epochs"] == [1, 2] and found["proxy"]["tokens"] > 0
    for against in ("full", "random"):
        for prompts in ("tasks", "all"):
            one = found["pws"][against][prompts]
            assert one["wins"] + one["ties"] + one["losses"] + one["unparsed"] == 6
            assert one["low"] <= one["value"] <= one["high"]
    assert set(found["metrics"]["candidate"]["tasks"]) >= {"exact_match", "chrf"}
    assert {"steps", "final_loss", "heldout_loss"} <= set(found["target"]["full"])
    assert [stage["name"] for stage in found["stages"]] == [
        "data", "base_model", "base_model_passes", "proxy", "score", "select", "target", "judge",
    ]  # fmt: skip
    for cost in found["cost"].values():
        assert set(cost) == {"seconds", "flops", "peak_bytes"} and cost["peak_bytes"] > 0
    diagnostics = found["diagnostics"]
    assert {"positive_drop_share", "median_relative_drop", "relative_variance", "update_ratio", "member_agreement",
            "heldout_loss", "score_spearman", "easiness", "truth", "warnings"} <= set(diagnostics)  # fmt: skip
    assert set(diagnostics["truth"]["auc"]) == {"scorer", "random"}


def test_scores_and_unscored_hold_every_row_once_and_the_subset_is_the_top(whole):
    scores = pq.read_table(whole / "scores.parquet").to_pandas()
    unscored = pq.read_table(whole / "unscored.parquet").to_pandas()
    assert sorted([*scores.example_id, *unscored.example_id]) == list(range(80))
    assert [str(kind) for kind in scores.dtypes[["example_id", "score", "rank"]]] == ["int64", "float64", "int64"]
    chosen = pq.read_table(whole / "subset.parquet").to_pandas()
    assert set(chosen.example_id) == set(scores[scores["rank"] <= 8].example_id)
    rows = load_dataset("json", data_files=str(whole / "subset.jsonl"), split="train")
    assert len(rows) == 8 and set(rows.column_names) == {"instruction", "input", "output", "source"}


def test_scores_follow_from_the_log_on_disk(whole):
    table = (
        pq.read_table(whole / "gradient_log").to_pandas().pivot_table("grad_norm", ["epoch", "member"], "example_id")
    )
    early, late = table.loc[1].to_numpy(float), table.loc[2].to_numpy(float)
    gsnr = (early.mean(0) - late.mean(0)) / (early.mean(0) + 1e-8) / (late.var(0) + 1e-8)
    scores = pq.read_table(whole / "scores.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores, gsnr, rtol=1e-9)


def test_same_seed_twice_is_identical(whole, cache, tmp_path):
    again = [*SMALL, cache, "ensemble.m=2", "until=select", "logger=none", f"run_dir={tmp_path}"]
    run_train(*again, f"hydra.run.dir={tmp_path}")
    for name in ("scores.parquet", "subset.parquet"):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(whole / name)), f"{name} differs"
    assert (tmp_path / "subset.jsonl").read_bytes() == (whole / "subset.jsonl").read_bytes()


def test_sweep_gives_each_job_its_own_run_folder(cache, tmp_path):
    run_train(
        "-m", *SMALL, cache, "logger=csv", "until=select", "scorer=gsnr,raw_drop", "ensemble.m=2,3",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    found = {job: summary(tmp_path / job) for job in ("0", "1", "2", "3")}
    assert [found[job]["selection"]["scorer"] for job in found] == ["gsnr", "gsnr", "raw_drop", "raw_drop"]
    assert [found[job]["proxy"]["members"] for job in found] == [2, 3, 2, 3]
    assert all((tmp_path / job / "metrics" / "metrics.csv").is_file() for job in found)


@pytest.mark.parametrize(
    ("overrides", "there", "absent"),
    [
        (["until=proxy"], ["gradient_log", "summary.json"], ["scores.parquet", "subset.jsonl"]),
        (["until=score"], ["scores.parquet", "unscored.parquet"], ["subset.jsonl", "target"]),
        (["scorer=random", "until=select"], ["scores.parquet", "subset.jsonl"], ["gradient_log", "adapters"]),
        (["selector=random", "until=select"], ["subset.jsonl"], ["gradient_log", "scores.parquet"]),
        (["selector=full", "until=target"], ["subset.jsonl", "target/full"], ["gradient_log", "verdicts.jsonl"]),
        (["scorer=ifd", "until=select"], ["scores.parquet", "subset.jsonl"], ["gradient_log", "adapters"]),
        (["scorer=length", "until=select"], ["scores.parquet", "subset.jsonl"], ["gradient_log", "adapters"]),
        (
            ["scorer=less", "until=select", "projection.width=64"],
            ["influence", "subset.jsonl"],
            ["gradient_log", "adapters", "projections"],
        ),
        (["selector=k_center", "until=select"], ["selection.parquet"], ["gradient_log", "scores.parquet"]),
    ],
)
def test_only_the_stages_somebody_needs_run(cache, tmp_path, overrides, there, absent):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}"]
    run_train(*SMALL, cache, "logger=none", "ensemble.m=2", *overrides, *places)
    assert all((tmp_path / name).exists() for name in there)
    assert not any((tmp_path / name).exists() for name in absent)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scorer=ifd", "selector=two_stage", "selector.fraction=0.1"], ["scorer=ifd_loss", "selector=stratified"],
        ["scorer=el2n", "selector=stratified", "selector.by=cluster", "selector.strata=3"],
        ["scorer=perplexity_middle"],
        ["scorer=length_controlled", "scorer@scorer.base=loss"], ["selector=facility_location"],
        ["scorer=fused_rank", "ensemble.m=1"], ["scorer=gsnr_rank", "selector=stratified", "selector.by=source"],
        ["scorer=direction_gsnr", "projection.width=64"], ["selector=spice", "projection.width=64"],
        ["scorer=less", "scorer.combine=round_robin", "selector=spice", "projection.width=64", "scorer.members=2"],
    ],
)  # fmt: skip
def test_other_scorers_and_selectors_give_every_row_once_and_a_whole_subset(overrides, cache, tmp_path):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}", "logger=none", "until=select", "ensemble.m=2"]
    run_train(*SMALL, cache, *places, *overrides)
    found = summary(tmp_path)
    assert found["selection"]["selected"] == 8
    stages = {stage["name"] for stage in found["stages"]}
    logged = any(name in one for one in overrides for name in ("fused_rank", "gsnr"))
    assert ("proxy" in stages) == (logged or "selector=spice" in overrides) and "base_model_passes" in stages
    assert ("gradient_log" in {path.name for path in tmp_path.iterdir()}) == logged
    unscored = pq.read_table(tmp_path / "unscored.parquet")["example_id"].to_pylist()
    assert found["data"]["unscored"] == len(unscored)
    if (tmp_path / "scores.parquet").exists():
        scored = pq.read_table(tmp_path / "scores.parquet")["example_id"].to_pylist()
        assert sorted([*scored, *unscored]) == list(range(80))


def test_a_choice_of_another_tool_is_tested_as_any_other(whole, cache, tmp_path):
    """A subset that another run gave back is found again row by row, and its scores give the same choice."""
    for name, chosen in (("rows", "subset.jsonl"), ("ids", "scores.parquet")):
        places = [f"run_dir={tmp_path / name}", f"hydra.run.dir={tmp_path / name}", "logger=none", "until=select"]
        run_train(*SMALL, cache, *places, "scorer=from_file", f"scorer.path={whole / chosen}")
        subset = pq.read_table(tmp_path / name / "subset.parquet")["example_id"]
        assert subset.equals(pq.read_table(whole / "subset.parquet")["example_id"])
        assert "proxy" not in {stage["name"] for stage in summary(tmp_path / name)["stages"]}, "nothing is trained"
    unscored = pq.read_table(tmp_path / "rows" / "unscored.parquet").to_pylist()
    listed = len(pq.read_table(whole / "subset.parquet"))
    assert len(unscored) == 80 - listed and {row["reason"] for row in unscored} == {NOT_LISTED}


def test_projections_lie_in_the_run_folder_and_are_found_again(cache, tmp_path):
    for run, override, members in (("one", "scorer=direction_gsnr", 2), ("two", "selector=spice", 1)):
        places = [f"run_dir={tmp_path / run}", f"hydra.run.dir={tmp_path / run}", "logger=none", "until=select"]
        run_train(*SMALL, cache, *places, "ensemble.m=2", override, "projection.width=32")
        files = sorted((tmp_path / run / "projections").rglob("projections.npy"))
        assert [file.parent.relative_to(tmp_path / run).as_posix() for file in files] == [
            f"projections/member=0{member}/epoch=02" for member in range(members)
        ]
        assert summary(tmp_path / run)["proxy"]["members"] == members
    log = pq.read_table(tmp_path / "one" / "gradient_log").to_pandas().query("epoch == 2 and member == 0")
    lengths = np.linalg.norm(np.load(files[0]), axis=1)
    assert np.load(files[0]).shape == (len(log), 32) and np.load(files[0]).dtype == np.float32
    assert np.corrcoef(lengths, log.grad_norm)[0, 1] > 0.8, "a sketch's length is about the gradient's"
    assert {stage["name"]: stage["reused"] for stage in summary(tmp_path / "two")["stages"]}["proxy"]


def test_influences_are_measured_once_for_all_runs(cache, tmp_path):
    less = [*SMALL, cache, "scorer=less", "ensemble.m=2", "projection.width=32", "logger=none", "until=select"]
    for run, how in (("one", "max"), ("two", "max"), ("turns", "round_robin")):
        places = [f"run_dir={tmp_path / run}", f"hydra.run.dir={tmp_path / run}"]
        run_train(*less, f"scorer.combine={how}", *places)
    found = {run: summary(tmp_path / run) for run in ("one", "two", "turns")}
    assert [stage["name"] for stage in found["one"]["stages"]] == ["data", "base_model", "influence", "score", "select"]
    assert found["one"]["influence"]["trained"] <= 2, "one member up to epoch 2, and none that nobody asks for"
    for run in ("two", "turns"):
        assert {stage["name"]: stage["reused"] for stage in found[run]["stages"]}["influence"]
        assert found[run]["influence"]["tokens"] == 0
    assert (tmp_path / "one" / "subset.jsonl").read_bytes() == (tmp_path / "two" / "subset.jsonl").read_bytes()
    scores = pq.read_table(tmp_path / "one" / "scores.parquet").to_pandas()
    by_task = scores.filter(regex="^influence_")
    assert by_task.shape[1] > 1 and np.allclose(scores.score, by_task.max(axis=1)) and scores.score.abs().max() <= 1


@pytest.mark.parametrize(("ensemble", "trained"), [("bootstrap", 4), ("mc_dropout", 2), ("snapshots", 2)])
def test_other_ensembles_serve_the_same_scorers_from_the_same_files(ensemble, trained, cache, tmp_path):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}", "logger=none", "until=select", "ensemble.m=2"]
    run_train(*SMALL, cache, *places, f"ensemble={ensemble}", "scorer=direction_gsnr", "projection.width=32")
    log = pq.read_table(tmp_path / "gradient_log").to_pandas()
    assert set(log.member) == {0, 1} and set(log.epoch) == {1, 2} and len(log) == 80 * 2 * 2
    assert (pq.read_table(tmp_path / "scores.parquet")["variance_late"].to_numpy() > 0).all()
    assert len(list((tmp_path / "projections").glob("member=0[01]/epoch=02/projections.npy"))) == 2
    assert len(list((tmp_path / "adapters").glob("member=0[01]/epoch=0[12]/adapter_model.safetensors"))) == 4
    found = summary(tmp_path)
    assert found["proxy"]["members"] == 2 and found["proxy"]["trained"] <= trained
    assert found["diagnostics"]["relative_variance"]["2"] > 0


def test_a_smaller_ensemble_in_the_same_folder_leaves_no_member_behind(cache, tmp_path):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}", "logger=none", "until=proxy"]
    for members in (3, 2):
        run_train(*SMALL, cache, f"ensemble.m={members}", *places)
    assert sorted(path.name for path in (tmp_path / "gradient_log").iterdir()) == ["member=00", "member=01"]


def test_real_alpaca_rows_and_vicuna_prompts(shared_data, cache, tmp_path):
    rows = json.loads((shared_data / "alpaca" / "alpaca_data.json").read_text("utf-8"))[270:330]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows), encoding="utf-8")  # holds row 284, whose output is empty
    text = tmp_path / "prose.txt"
    text.write_text((shared_data / "text" / "alice_11.txt").read_text("utf-8")[:60000], encoding="utf-8")
    run_train(
        *TINY_MODELS, *SMALL_MODELS, *SMALL_RUN, cache, "logger=none", "data=alpaca", "until=report",
        f"data.path={tmp_path / 'alpaca.json'}",
        "data.limit=40", "data.heldout.rows=8", f"proxy.base_model.text=[{text}]", f"target.base_model.text=[{text}]",
        "ensemble.m=3", "ensemble.batch_size=8", "eval=[vicuna,heldout]", f"eval.path={shared_data / 'eval'}",
        "eval.limit=4", f"run_dir={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    found = summary(tmp_path / "run")
    unscored = pq.read_table(tmp_path / "run" / "unscored.parquet").to_pylist()
    assert {"example_id": 14, "reason": "empty response"} in unscored
    assert found["data"]["examples"] == 40 and found["selection"]["selected"] == 4
    assert found["pws"]["full"]["vicuna"]["unparsed"] == 4, "vicuna has no references, so nothing can be judged by them"
    assert found["pws"]["full"]["heldout"]["unparsed"] == 0
    assert any("reference" in warning for warning in found["diagnostics"]["warnings"])


@pytest.mark.slow
def test_full_size_gpt2_with_the_real_tokenizer_trains_and_logs(shared_data, cache, tmp_path):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2").save_pretrained(folder)
    rows = shared_data / "alpaca" / "alpaca_data.json"
    run_train(
        *SMALL_RUN, cache, "logger=none", "data=alpaca", f"data.path={rows}", "data.limit=8", "data.heldout.rows=2",
        "proxy=gpt2", f"proxy.model={folder}", "ensemble.m=2", "ensemble.batch_size=4", "batch.tokens=1024",
        "until=select", "selector.fraction=0.5", f"run_dir={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    log = pq.read_table(tmp_path / "run" / "gradient_log").to_pandas()
    assert len(log) == 2 * 2 * 8 and (log.grad_norm > 0).all()


DOCUMENTED = ("README.md", "docs/index.md", "docs/own_rows.md", "docs/choosing.md")  # what a new user runs


def documented_commands():
    for name in DOCUMENTED:
        for words in read_commands(ROOT / name):
            if words[:2] == ["python", "train.py"] and "experiment=shootout" not in words:
                marks = () if name == "README.md" else (pytest.mark.slow,)
                yield pytest.param(words[2:], id=f"{name}: {' '.join(words[2:])}", marks=marks)


@pytest.mark.parametrize("overrides", documented_commands())
def test_documented_commands_run(overrides, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} it is."} for n in range(60)]
    for file_name in ("my.jsonl", "other.json"):
        Path(file_name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    small = [*SMALL_MODELS, *SMALL_RUN, cache, "logger=none"]
    if not any(one.startswith("data=") for one in overrides):
        small += ["data.rows=40", "data.heldout_rows=5", "eval.limit=3"]
    else:
        small += TINY_MODELS
    if not any(one.startswith("ensemble.m=") for one in overrides):
        small.append("ensemble.m=2")
    run_train(*overrides, *small, *(["hydra.sweep.dir=out"] if "-m" in overrides else ["hydra.run.dir=out"]))
    assert "plan=true" in overrides or list(Path("out").rglob("summary.json"))


def test_command_line_entry_lists_its_options():
    done = subprocess.run([sys.executable, ROOT / "train.py", "scorer=best"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "scorer/best" in done.stderr and "raw_drop" in done.stderr


def test_an_ensemble_that_finds_its_own_size_and_epoch_says_why(cache, tmp_path, capsys):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}", "logger=none", "until=select"]
    sizes = ["ensemble.m=auto", "adaptive.limit=4", "adaptive.step=1", "adaptive.stability=1", "adaptive.resamples=10"]
    run_train(*SMALL, cache, *places, *sizes, "epochs=auto", "epochs.limit=3", "epochs.overlap=1", "report.page=true")
    found = summary(tmp_path)["proxy"]
    chosen = found["adaptive"]
    assert found["members"] == chosen["members"]["m"] == 4 and "limit was reached" in chosen["members"]["why"]
    assert found["epochs"] == [1, 3] and chosen["epochs"]["late"] == 3
    assert f"members: 4, since {chosen['members']['why']}" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "gradient_log" / "member=03" / "epoch=03").is_dir()
    assert (tmp_path / "report.html").is_file() and SweepJob(tmp_path).epoch_pair == "auto early=1"
    assert "gradients after epochs 1 and 3" in (tmp_path / "README.md").read_text("utf-8")
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 80 - summary(tmp_path)["data"]["unscored"]


def test_a_page_shows_the_updates_that_a_fall_of_loss_chose(cache, tmp_path):
    places = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}", "logger=none", "until=select", "report.page=true"]
    run_train(*SMALL, cache, *places, "ensemble.m=2", "epochs=loss_fall", "ensemble.lr=1e-2", "ensemble.batch_size=4")
    chosen = summary(tmp_path)["proxy"]["adaptive"]["epochs"]
    run_files = RunFiles(tmp_path)
    assert run_files.epochs == (chosen["early"], chosen["late"]) and run_files.gradient_log.unit == "update"
    assert (tmp_path / "report.html").is_file() and SweepJob(tmp_path).epoch_pair == "loss_fall early=0.5 late=0.9"
