"""Jobs of one sweep at the same time: what two of them need is made once, and nothing comes out otherwise."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.pipeline import ROOT, SMALL_MODELS, SMALL_RUN, SMALL_TASKS, run_train, summary
from tests.support.processes import launch

JOBS = ("0", "1")
SWEEP = ["-m", *SMALL_MODELS, *SMALL_RUN, *SMALL_TASKS, "logger=csv", "until=select", "scorer=gsnr,raw_drop"]
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
}


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sequential")
    run_train(*SWEEP, "ensemble.m=2", f"cache.path={folder / 'cache'}", f"hydra.sweep.dir={folder / 'sweep'}")
    return folder / "sweep"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_parallel_jobs_train_their_proxy_once(launcher, one_after_the_other, tmp_path):
    plugin, options = LAUNCHERS[launcher]
    pytest.importorskip(plugin, reason=f"the optional extra for {launcher} is not installed")
    sweep, places = tmp_path / "sweep", [f"cache.path={tmp_path / 'cache'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = launch(tmp_path / "temporary", str(ROOT / "train.py"), *SWEEP, "ensemble.m=2", *options, *places)
    assert done.returncode == 0, done.stderr
    made = {job: summary(sweep / job)["proxy"] for job in JOBS}
    assert sorted(one["trained"] for one in made.values()) == [0, 2 * 2], "each member and epoch is trained by one job"
    assert sorted(one["logged"] for one in made.values()) == [0, 2 * 2 * 2], "and logged by one"
    assert len(list((tmp_path / "cache" / "base_models").glob("*/artifact.json"))) == 1
    assert not list(tmp_path.rglob("*.part"))
    for job in JOBS:
        for name in ("scores.parquet", "subset.parquet"):
            assert pq.read_table(sweep / job / name).equals(pq.read_table(one_after_the_other / job / name)), name
        assert (sweep / job / "subset.jsonl").read_bytes() == (one_after_the_other / job / "subset.jsonl").read_bytes()
    tables = [json.loads((folder / "sweep.json").read_text("utf-8")) for folder in (sweep, one_after_the_other)]
    same = ("job", "scorer", "selected", "score_median", "jaccard", "rank_correlation")
    assert [[row[name] for name in same] for row in tables[0]] == [[row[name] for name in same] for row in tables[1]]


def test_sweep_over_sizes_trains_the_largest_ensemble_once(tmp_path):
    sizes = [f"cache.path={tmp_path / 'cache'}", "ensemble.m=2,4,3", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    run_train(*SWEEP, *sizes)
    made = [summary(tmp_path / "sweep" / str(job)) for job in range(6)]
    assert [one["proxy"]["members"] for one in made] == [2, 4, 3] * 2
    assert [one["proxy"]["trained"] for one in made] == [2 * 2, 2 * 2, 0, 0, 0, 0]
    assert [one["proxy"]["reused_seconds"] > 0 for one in made] == [False] + [True] * 5
    stages = [{stage["name"]: stage["reused"] for stage in one["stages"]} for one in made]
    assert [one["proxy"] for one in stages] == [False, False, True, True, True, True]
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert [row["saved"] > 0 for row in rows] == [False] + [True] * 5
