"""A sweep is refused for a mistake in any of its overrides before its first job starts, without composing every job."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from hydra_plugins.gradfiltering_sweeper import covering
from tests.support.pipeline import run_train

ROOT = Path(__file__).parents[2]


def test_every_override_is_in_a_job_that_is_composed_and_few_jobs_are():
    batch = [list(job) for job in product(("m=3", "m=5"), ("e=1", "e=2", "e=3"), ("s=a", "s=b", "s=c", "s=d"))]
    composed = covering(batch)
    assert {override for job in composed for override in job} == {override for job in batch for override in job}
    assert len(composed) == 1 + (2 - 1) + (3 - 1) + (4 - 1)


def test_a_mistake_in_the_last_job_shows_before_the_first_starts(tmp_path):
    sweep = ["-m", "scorer=random,nosuch", f"hydra.sweep.dir={tmp_path}", f"cache.path={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep, "until=data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "nosuch" in done.stderr
    assert not (tmp_path / "0").exists()


SHARED_FOLDERS = {
    "named folder": ["run_dir={folder}/x"],
    "sweep folder": ["hydra.sweep.subdir=."],
    "fixed subfolder": ["hydra.sweep.subdir=all"],
    "interpolated to one name": ["run_dir={folder}/${{scorer.ddof}}"],
    "roundabout name": ["run_dir={folder}/x,{folder}/../{name}/x", "seed=0"],
    "link": ["run_dir={folder}/real,{folder}/link", "seed=0"],
    "subfolder named by one override": ["hydra.sweep.subdir=${{scorer.ddof}}"],
}


@pytest.mark.parametrize("case", SHARED_FOLDERS)
def test_jobs_that_share_a_folder_are_refused_before_the_first(case, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    overrides = [override.format(folder=tmp_path, name=tmp_path.name) for override in SHARED_FOLDERS[case]]
    with pytest.raises(SystemExit) as ended:
        run_train("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}", *overrides, "until=proxy")
    shown = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 1 and "Traceback" not in shown
    assert "jobs 0 (" in shown and "and 1 (" in shown and "would both write into" in shown
    assert "Leave out run_dir= and hydra.sweep.subdir=" in shown
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["multirun.yaml"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["s/0", "s/1"]),
        (["run_dir={folder}/${{seed}}"], ["0", "1"]),
        (["run_dir={folder}/${{hydra:job.num}}"], ["0", "1"]),
        (["hydra.sweep.subdir=seed${{seed}}"], ["s/seed0", "s/seed1"]),
    ],
)
def test_jobs_with_folders_of_their_own_pass(overrides, names, tmp_path, monkeypatch):
    given = [override.format(folder=tmp_path) for override in overrides]
    found = []
    monkeypatch.setattr("gradfiltering.config.launch.run_task", lambda cfg: found.append(cfg.run_dir))
    run_train("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}", *given)
    assert found == [str(tmp_path / name) for name in names]
