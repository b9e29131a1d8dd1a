"""A whole run whose target chooses its rows as it trains."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.pipeline import SMALL_MODELS, SMALL_RUN, SMALL_TASKS, run_train, summary

LEAD = ["target.data=lead", "target.lead.clusters=3", "logger=csv", *SMALL_MODELS, *SMALL_RUN, *SMALL_TASKS]


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lead")
    run_train(*LEAD, cache, "until=target", "judge.against=[random]", f"run_dir={folder}", f"hydra.run.dir={folder}")
    return folder


def test_it_trains_no_ensemble_and_runs_no_selector(whole):
    found = summary(whole)
    assert [stage["name"] for stage in found["stages"]] == [
        "data",
        "base_model",
        "base_model_passes",
        "score",
        "target",
    ]
    assert found["selection"]["selector"] == "lead" and found["selection"]["scorer"] is None
    assert not (whole / "gradient_log").exists() and not (whole / "adapters").exists()


def test_the_subset_is_the_rows_used_and_the_rival_has_as_many(whole):
    pool = pq.read_table(whole / "target/candidate/pool.parquet").to_pandas()
    chosen = pq.read_table(whole / "subset.parquet")["example_id"].to_pylist()
    assert chosen == pool[pool.uses > 0].example_id.tolist() and len(chosen) == 8
    lines = (whole / "subset.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 8 and set(json.loads(lines[0])) == {"instruction", "input", "output", "source"}
    found = summary(whole)
    assert found["target"]["candidate"]["examples"] == found["target"]["random"]["examples"] == 8
    assert "truth" in found["diagnostics"]


def test_every_row_is_in_the_pool_or_listed_as_unscored(whole):
    pool, unscored = (
        pq.read_table(whole / name)["example_id"].to_pylist()
        for name in ("target/candidate/pool.parquet", "unscored.parquet")
    )
    assert sorted([*pool, *unscored]) == list(range(80))


def test_choices_probabilities_and_rewards_are_logged(whole):
    rounds = pq.read_table(whole / "target/candidate/rounds.parquet").to_pylist()
    assert rounds[-1]["distinct"] == 8
    for one in rounds:
        assert sum(one["probability"]) == pytest.approx(1) and -1 <= one["reward"] <= 1
    metrics = (whole / "metrics" / "metrics.csv").read_text("utf-8").splitlines()
    names = metrics[0].split(",")
    column = names.index("target/candidate/lead/reward")
    logged = [float(line.split(",")[column]) for line in metrics[1:] if line.split(",")[column]]
    np.testing.assert_allclose(logged, [one["reward"] for one in rounds], rtol=1e-6)
    assert "target/candidate/lead/probability_0" in names and "target/candidate/lead/cluster" in names


@pytest.mark.parametrize("override", ["until=select", "until=proxy"])
def test_a_run_without_its_target_is_refused_before_anything_is_loaded(tmp_path, capsys, override):
    with pytest.raises(SystemExit):
        run_train(*LEAD, override, f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}")
    said = " ".join(capsys.readouterr().err.split())
    assert "target.data=lead" in said and "until=target" in said and "Traceback" not in said
    assert not (tmp_path / "environment.json").exists()
